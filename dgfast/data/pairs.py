"""Which images make up a batch and how each is augmented: pure arithmetic of seed, stream, epoch and image.

Each of the two streams, a and b, is an endless sequence of images: one permutation of the training set per epoch, one
after another. So every image occurs exactly once per epoch and stream, and a batch may begin in one epoch and end in
the next.

Every rank takes its consecutive share of each global batch. W processes with batches of N samples therefore see what
one process with batches of N * W samples sees.

No result depends on an earlier call: any iteration can be asked for in any order, which makes resuming exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Random erasing: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, algorithm 1.
ERASE_AREA = (0.02, 0.4)  # share of the image
ERASE_ASPECT = (0.3, 3.3)  # height / width, drawn uniformly as in the paper (not log-uniformly)
ERASE_TRIES = 100

_PERMUTATIONS_KEPT = 4  # two streams, each of which reads at most two epochs at a time

Rectangle = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


@dataclass(frozen=True, slots=True)
class View:
    """How an image is augmented: mirrored; resized to the output size; padded on every side by repeating its edge; cut
    to the output size again."""

    mirror: bool
    """Whether left and right change places."""
    top: int
    """First row of the padded image that is kept, 0 .. 2 * pad."""
    left: int
    """First column of the padded image that is kept, 0 .. 2 * pad."""
    erase: Rectangle | None
    """The part of the output that is erased in the erased copy; None: no part."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and another one of the same identity."""

    image: int
    """Index of the image in the training records."""
    positive: int
    """Index of the other image; of the image itself if its identity has no other."""
    image_view: View
    """How the image is augmented."""
    positive_view: View
    """How the other image is augmented."""


Streams = tuple[list[Sample], list[Sample]]
"""One iteration's samples of streams a and b, N each."""


def views_of(streams: Streams) -> list[tuple[int, View]]:
    """The pictures that make up a batch, in the order in which loaders make them.

    Args:
        streams: N samples each.
    Returns:
        (index of the image, its view) of 4 N pictures: stream a's images, their positives, stream b's images, their
        positives.
    """
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
        rank: number of this process, from 0.
        world_size: how many processes there are.
        image_size: (height, width) of the augmented image in pixels.
        pad: border in pixels before the random crop; 0: no crop.
        erase_probability: chance of erasing a rectangle, 0 .. 1.
        mirror_probability: chance of mirroring, 0 .. 1.
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
        if batch < 1 or not 0 <= pad < min(image_size):  # behind a wider border a crop may show nothing of the image
            raise ValueError(
                f"batch {batch}, pad {pad}, image_size {image_size}; expected batch >= 1, pad >= 0 and below both sizes"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of world_size {world_size}: expected 0 <= rank < world_size")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed {seed}: expected 0 <= seed < 2**63")
        self.seed = seed
        self.batch_size = batch
        self.rank = rank
        self.world_size = world_size
        self.image_size = image_size
        self.pad = pad
        self.erase_probability = erase_probability
        self.mirror_probability = mirror_probability

        members: dict[int, list[int]] = {}
        self._place: list[int] = []  # of each image within its identity
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

    def same_identity(self, index: int) -> list[int]:
        """All images of one image's identity.

        Args:
            index: of the image in the training records.
        Returns:
            indices: the image itself, then those after it, then those before it.
        """
        members, place = self._members[index], self._place[index]
        return members[place:] + members[:place]

    def batch(self, iteration: int) -> Streams:
        """The samples that this rank trains on in one iteration.

        Args:
            iteration: from 0.
        Returns:
            the samples of streams a and b, `batch_size` each.
        Raises:
            ValueError: the iteration is negative.
        """
        if iteration < 0:
            raise ValueError(f"iteration {iteration}: expected >= 0")
        first = iteration * self.global_batch + self.rank * self.batch_size
        a, b = ([self._sample(stream, first + k) for k in range(self.batch_size)] for stream in (0, 1))
        return a, b

    def _sample(self, stream: int, position: int) -> Sample:
        epoch, offset = divmod(position, self.epoch_length)
        image = int(self._permutation(stream, epoch)[offset])
        # The key is unique to seed, stream, epoch and image: the draws depend on no rank, worker or earlier draw.
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

    def _rectangle(self, generator: np.random.Generator) -> Rectangle | None:
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
        """The order of the images in one epoch of a stream: [epoch_length] indices."""
        key = (stream, epoch)
        if key not in self._permutations:
            while len(self._permutations) >= _PERMUTATIONS_KEPT:
                del self._permutations[next(iter(self._permutations))]
            generator = np.random.default_rng((self.seed, stream, epoch))
            self._permutations[key] = generator.permutation(self.epoch_length)
        return self._permutations[key]
