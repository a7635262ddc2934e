"""Which images make up a batch and how each is augmented: pure arithmetic of (seed, stream, epoch, position).

Each of the two streams, a and b, is an infinite sequence: the concatenation of one permutation of the training set per
epoch, so every image occurs exactly once per epoch and stream, and a batch may straddle two epochs. Rank r of W takes
its consecutive share of every global batch; W processes of batch N therefore see what one process of batch N * W sees.
Nothing is kept between calls: any iteration can be asked for in any order, which makes resuming exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Random erasing, Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, algorithm 1 (docs/method, section 2).
ERASE_AREA = (0.02, 0.4)  # share of the image
ERASE_ASPECT = (0.3, 3.3)  # height / width, drawn uniformly as in the paper (not log-uniformly)
ERASE_TRIES = 100

_PERMUTATIONS_KEPT = 4  # two streams, each at most in two epochs at a time


@dataclass(frozen=True, slots=True)
class View:
    """How an image is augmented, in pixels of the output.

    Mirror; resize to the output size; pad every side by `pad` with the border's colour; cut the output size out at
    (`top`, `left`) of the padded image, both in 0 .. 2 * pad. `erase` is (top, left, height, width) in the output, or
    None.
    """

    mirror: bool
    top: int
    left: int
    erase: tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and another one of the same identity (itself where there is none): indices into the training records."""

    image: int
    positive: int
    image_view: View
    positive_view: View


def views_of(streams: tuple[list[Sample], list[Sample]]) -> list[tuple[int, View]]:
    """(image, view) of 4 N pictures: stream a's images, their positives, stream b's images, their positives."""
    return [
        view
        for stream in streams
        for view in (*((s.image, s.image_view) for s in stream), *((s.positive, s.positive_view) for s in stream))
    ]


class PairSampler:
    """The samples of both streams, for one rank.

    Args:
        labels: identity of every training image, any integers.
        seed: in 0 .. 2**63 - 1; the same on all ranks.
        batch: samples per stream, rank and iteration.
        rank, world_size: this process and how many there are.
        image_size: (height, width) of the augmented image in pixels.
        pad: border in pixels before the random crop; 0 means no crop.
        erase_probability, mirror_probability: in 0 .. 1.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        labels: Sequence[int],
        *,
        seed: int,
        batch: int,
        rank: int = 0,
        world_size: int = 1,
        image_size: tuple[int, int] = (256, 128),
        pad: int = 10,
        erase_probability: float = 0.5,
        mirror_probability: float = 0.5,
    ):
        if len(labels) == 0:
            raise ValueError("labels is empty; expected the identity of at least one image")
        if batch < 1 or pad < 0 or min(image_size) < 1:
            raise ValueError(f"batch {batch}, pad {pad}, image_size {image_size}; expected batch, sizes >= 1, pad >= 0")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of world_size {world_size}: expected 0 <= rank < world_size")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed {seed}: expected 0 <= seed < 2**63")
        self.seed = seed
        self.batch_size = batch
        self.rank = rank
        self.world_size = world_size
        self.image_size = tuple(image_size)
        self.pad = pad
        self.erase_probability = erase_probability
        self.mirror_probability = mirror_probability

        members: dict[int, list[int]] = {}
        self._place = []  # of each image within its identity
        for index, label in enumerate(labels):
            of_identity = members.setdefault(int(label), [])
            self._place.append(len(of_identity))
            of_identity.append(index)
        self._members = [members[int(label)] for label in labels]
        self._permutations: dict[tuple[int, int], np.ndarray] = {}

    @property
    def epoch_length(self) -> int:
        """Samples per epoch and stream, over all ranks: the number of training images."""
        return len(self._place)

    @property
    def global_batch(self) -> int:
        """Samples per stream and iteration, over all ranks."""
        return self.batch_size * self.world_size

    def epoch(self, iteration: int) -> int:
        """The epoch (from 0) of the first sample of the global batch of `iteration` (from 0)."""
        return iteration * self.global_batch // self.epoch_length

    def same_identity(self, index: int) -> list[int]:
        """All images of the identity of image `index`, itself first, then those after it, then those before."""
        members, place = self._members[index], self._place[index]
        return members[place:] + members[:place]

    def batch(self, iteration: int) -> tuple[list[Sample], list[Sample]]:
        """The samples of streams a and b that this rank trains on in `iteration` (from 0)."""
        return self.batch_at(iteration * self.global_batch)

    def batch_at(self, position: int) -> tuple[list[Sample], list[Sample]]:
        """This rank's samples of streams a and b in the global batch whose first sample is the stream's
        `position`th."""
        if position < 0:
            raise ValueError(f"position {position}: expected >= 0")
        first = position + self.rank * self.batch_size
        a, b = ([self._sample(stream, first + k) for k in range(self.batch_size)] for stream in (0, 1))
        return a, b

    def _sample(self, stream: int, position: int) -> Sample:
        epoch, offset = divmod(position, self.epoch_length)
        image = int(self._permutation(stream, epoch)[offset])
        # The key is unique to (seed, stream, epoch, image): the draws depend on no rank, worker or history.
        key = np.array([self.seed, (2 * epoch + stream) << 32 | image], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        positive = image
        members = self._members[image]
        if len(members) > 1:
            other = int(generator.integers(len(members) - 1))
            positive = members[other + (other >= self._place[image])]
        return Sample(image, positive, self._view(generator), self._view(generator))

    def _view(self, generator: np.random.Generator) -> View:
        mirror, erase, top, left = generator.random(4)
        offsets = 2 * self.pad + 1
        return View(
            mirror=bool(mirror < self.mirror_probability),
            top=int(top * offsets),
            left=int(left * offsets),
            erase=self._rectangle(generator) if erase < self.erase_probability else None,
        )

    def _rectangle(self, generator: np.random.Generator) -> tuple[int, int, int, int] | None:
        """A rectangle that lies within the image, or None when none was found in ERASE_TRIES."""
        image_height, image_width = self.image_size
        for _ in range(ERASE_TRIES):
            share, aspect, top, left = generator.random(4)
            area = (ERASE_AREA[0] + share * (ERASE_AREA[1] - ERASE_AREA[0])) * image_height * image_width
            aspect = ERASE_ASPECT[0] + aspect * (ERASE_ASPECT[1] - ERASE_ASPECT[0])
            height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if 0 < height <= image_height and 0 < width <= image_width:
                return int(top * (image_height - height + 1)), int(left * (image_width - width + 1)), height, width
        return None

    def _permutation(self, stream: int, epoch: int) -> np.ndarray:
        key = (stream, epoch)
        if key not in self._permutations:
            while len(self._permutations) >= _PERMUTATIONS_KEPT:
                del self._permutations[next(iter(self._permutations))]
            generator = np.random.default_rng((self.seed, stream, epoch))
            self._permutations[key] = generator.permutation(self.epoch_length)
        return self._permutations[key]
