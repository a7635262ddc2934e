"""The swap: what a perfect exchange of clothes between two test images would look like.

The structure image is rendered once more - same person, pose, camera, light, passers-by, noise - in the clothes of
the appearance image's person. `swap_truth/pairs.csv` lists structure, appearance, truth and the mask of the truth's
clothes.
"""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from .dataset import Parameters, Record, encode_png, identity_of, records_of, world_of
from .figure import build_figure
from .picture import Picture, World, take_picture

_STREAM = 6


def draw_pair(world: World, parameters: Parameters, index: int) -> tuple[Record, int, Record, int]:
    """Swap `index`: structure image and its person, appearance image and its person; two different test people."""
    rng = np.random.default_rng([parameters.seed, _STREAM, index])
    people = parameters.train_identities + 1 + rng.choice(parameters.test_identities, 2, replace=False)
    chosen = []
    for person in people:
        records = records_of(world, parameters, int(person))
        chosen += [records[int(rng.integers(len(records)))], int(person)]
    return tuple(chosen)


def render_swap(world: World, parameters: Parameters, structure: Record, wearer: int, owner: int) -> Picture:
    """The image `structure` of person `wearer` in the clothes of person `owner`."""
    clothes = identity_of(parameters.seed, owner).clothes
    dressed = replace(identity_of(parameters.seed, wearer), clothes=clothes)
    return take_picture(world, build_figure(dressed, world.pack), structure.shot, parameters.size)


def _names(index: int) -> tuple[str, str]:
    return f"swap_truth/{index:05d}.png", f"swap_truth/{index:05d}_mask.png"


def render_truth(folder: Path, parameters: Parameters, index: int) -> int:
    """Writes the truth of swap `index` and its mask; returns 1, the number of images."""
    world = world_of(parameters.seed, parameters.difficulty)
    structure, wearer, _, owner = draw_pair(world, parameters, index)
    picture = render_swap(world, parameters, structure, wearer, owner)
    for name, image in zip(_names(index), (picture.image, picture.mask), strict=True):
        encode_png(folder / name, image)
    return 1


def write_pairs(folder: Path, parameters: Parameters) -> None:
    """Writes `swap_truth/pairs.csv`; paths are relative to the data set's folder."""
    world = world_of(parameters.seed, parameters.difficulty)
    with (folder / "swap_truth" / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("structure", "appearance", "truth", "mask"))
        for index in range(parameters.swap_truth):
            structure, _, appearance, _ = draw_pair(world, parameters, index)
            writer.writerow((structure.path, appearance.path, *_names(index)))
