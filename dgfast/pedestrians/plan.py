"""The plan: which people a data set shows, before which cameras, in which files, and which swaps are drawn with it.

Everything here is arithmetic of the parameters: nothing is rendered or written. Each person, distractor, junk image and
swap is drawn from generators of its own, `[seed, purpose, index]`, so that any of them can be planned alone, in any
process.
"""

from dataclasses import dataclass

import numpy as np

from dgfast.errors import UserError

from .cameras import COUNT
from .identity import Identity, draw_identity
from .picture import Shot, World, draw_encounter, draw_shot

TRAIN, QUERY, GALLERY = SPLITS = ("bounding_box_train", "query", "bounding_box_test")
STATED = "synthetic.json"  # in the folder of a data set: what was drawn, by which parameters

# Purposes of the generators; picture.py uses 4 and 5.
_IDENTITY, _WALK, _STRAY, _SWAP = 1, 2, 3, 6
_STRAY_PEOPLE = 10**6  # the distractors' identities are numbered from here


@dataclass(frozen=True)
class Parameters:
    """What a data set is made from."""

    identities: int
    """People, those of the training and the test splits together."""
    test_identities: int
    """People of the query and gallery splits: those with the highest numbers."""
    seed: int = 0
    """Seed of everything random, at least 0."""
    difficulty: float = 0.25
    """0 .. 1: how much the cameras differ in colour, blur and noise."""
    images_per_camera: float = 3.0
    """Mean number of images of a person by one camera."""
    cameras_per_identity: tuple[int, int] = (3, 6)
    """Lowest and highest number of cameras that see a person."""
    distractors: int = 0
    """Gallery images of people who are in no other split."""
    size: tuple[int, int] = (256, 128)
    """(height, width) of the images in pixels."""
    masks: bool = True
    """Whether masks of the clothes are written, too."""
    swap_truth: int = 0
    """Number of swaps of clothes whose truth is rendered."""

    @property
    def train_identities(self) -> int:
        """People of the training split: those with the lowest numbers, from 1."""
        return self.identities - self.test_identities

    @property
    def junk(self) -> int:
        """Gallery images that show nobody, as false detections do; the protocol ignores them."""
        return (self.distractors + 9) // 10


def check(parameters: Parameters) -> None:
    """Refuse parameters from which no data set can be made.

    Args:
        parameters: of the data set.
    Raises:
        UserError: the first value that is out of range.
    """
    p, (low, high) = parameters, parameters.cameras_per_identity
    rules = (
        (p.identities >= 2, f"identities is {p.identities}, expected at least 2: one to train, one to test"),
        (
            0 <= p.test_identities <= p.identities,
            f"test_identities is {p.test_identities}, expected 0 to {p.identities}",
        ),
        (p.seed >= 0, f"seed is {p.seed}, expected 0 or more"),
        (0 <= p.difficulty <= 1, f"difficulty is {p.difficulty}, expected 0 (easy) to 1 (hard)"),
        (0 < p.images_per_camera <= 100, f"images_per_camera is {p.images_per_camera}, expected above 0, at most 100"),
        (2 <= low <= high <= COUNT, f"cameras_per_identity is {low, high}, expected 2 <= low <= high <= {COUNT}"),
        (0 <= p.distractors <= 500_000, f"distractors is {p.distractors}, expected 0 to 500000"),
        (
            all(32 <= side <= 2048 for side in p.size),
            f"size is {p.size}, expected (height, width) of 32 to 2048 pixels",
        ),
        (p.swap_truth >= 0, f"swap_truth is {p.swap_truth}, expected 0 or more"),
        (p.swap_truth == 0 or p.test_identities >= 2, f"swap_truth needs 2 test identities, found {p.test_identities}"),
    )
    for holds, complaint in rules:
        if not holds:
            raise UserError(f"synthetic pedestrians: {complaint}; change it and run again")


@dataclass(frozen=True)
class PlannedImage:
    """One image of the data set."""

    split: str
    """Its folder, one of `SPLITS`."""
    stem: str
    """Name of its file without the ending."""
    shot: Shot
    """How it is taken."""

    @property
    def path(self) -> str:
        """Its file, relative to the data set's folder."""
        return f"{self.split}/{self.stem}.jpg"


@dataclass(frozen=True)
class Swap:
    """An exchange of clothes between two images of different test people."""

    structure: PlannedImage
    """The image that is rendered again in other clothes."""
    wearer: int
    """The person whom it shows."""
    appearance: PlannedImage
    """The image that shows those clothes."""
    owner: int
    """The person whom they belong to."""


def identity_of(seed: int, person: int) -> Identity:
    """A person of the data set.

    Args:
        seed: the data set's.
        person: number of the person, from 1.
    Returns:
        body, head, bag and clothes.
    """
    return draw_identity(np.random.default_rng([seed, _IDENTITY, person]))


def count_images(parameters: Parameters, person: int) -> int:
    """How many images `images_of` plans, found without planning them.

    Args:
        parameters: of the data set.
        person: number of the person, from 1.
    Returns:
        the images of all splits.
    """
    rng = np.random.default_rng([parameters.seed, _WALK, person])
    return sum(_image_counts(rng, parameters, person > parameters.train_identities).values())


def images_of(world: World, parameters: Parameters, person: int) -> list[PlannedImage]:
    """All images of a person.

    Args:
        world: the data set's.
        parameters: of the data set.
        person: number of the person, from 1; the last `parameters.test_identities` are the test splits'.
    Returns:
        the images, camera by camera; of test people, the first image of each camera is a query.
    """
    rng = np.random.default_rng([parameters.seed, _WALK, person])
    is_test = person > parameters.train_identities
    found = []
    for index, count in _image_counts(rng, parameters, is_test).items():
        camera, sequence = world.cameras[index], int(rng.integers(1, 7))
        encounters = [draw_encounter(rng, camera)]
        if rng.random() < 0.3:  # the person comes back
            encounters.append(draw_encounter(rng, camera))
        frame = int(rng.integers(100, 90000))
        for number in range(count):
            shot = draw_shot(rng, encounters[number % len(encounters)], camera)
            frame += int(rng.integers(8, 40))
            box = int(rng.integers(1, 8))
            is_query = is_test and number == 0
            split = QUERY if is_query else GALLERY if is_test else TRAIN
            stem = f"{person:04d}_c{camera.number}s{sequence}_{frame:06d}_{0 if is_query else box:02d}"
            found.append(PlannedImage(split, stem, shot))
    return found


def stray_image(world: World, parameters: Parameters, index: int) -> tuple[PlannedImage, int | None]:
    """A gallery image of somebody who is no query (a distractor) or, after the last of these, of background (junk).

    Args:
        world: the data set's.
        parameters: of the data set.
        index: from 0; the first `parameters.distractors` are distractors, all others junk.
    Returns:
        the image, and the number of the person whom it shows; None: it shows background.
    """
    rng = np.random.default_rng([parameters.seed, _STRAY, index])
    camera = world.cameras[int(rng.integers(COUNT))]
    shot = draw_shot(rng, draw_encounter(rng, camera), camera)
    is_distractor = index < parameters.distractors
    label = "0000" if is_distractor else "-1"
    stem = f"{label}_c{camera.number}s{int(rng.integers(1, 7))}_{index:06d}_{int(rng.integers(1, 8)):02d}"
    return PlannedImage(GALLERY, stem, shot), _STRAY_PEOPLE + index // 3 if is_distractor else None


def swap_of(world: World, parameters: Parameters, index: int) -> Swap:
    """The images and people of one swap.

    Args:
        world: the data set's.
        parameters: of the data set, with at least two test identities.
        index: number of the swap, from 0.
    Returns:
        two images of two different test people.
    """
    rng = np.random.default_rng([parameters.seed, _SWAP, index])
    people = parameters.train_identities + 1 + rng.choice(parameters.test_identities, 2, replace=False)
    wearer, owner = (int(person) for person in people)
    chosen = []
    for person in (wearer, owner):
        images = images_of(world, parameters, person)
        chosen.append(images[int(rng.integers(len(images)))])
    return Swap(structure=chosen[0], wearer=wearer, appearance=chosen[1], owner=owner)


def _image_counts(rng: np.random.Generator, parameters: Parameters, is_test: bool) -> dict[int, int]:
    """Camera (from 0) -> images that it takes of a person, one more of a test person: the query."""
    low, high = parameters.cameras_per_identity
    cameras = sorted(int(camera) for camera in rng.choice(COUNT, int(rng.integers(low, high + 1)), replace=False))
    images = {camera: max(1, int(rng.poisson(parameters.images_per_camera))) for camera in cameras}
    return {camera: count + is_test for camera, count in images.items()}
