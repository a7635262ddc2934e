"""`dgfast swap`: people in each other's clothes, as a table of pictures."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from dgfast.commands.command_line import read
from dgfast.commands.demo import BODIES, CLOTHES, demo_people
from dgfast.commands.trained import open_model
from dgfast.config import DatasetName, Variant
from dgfast.data import load_reid
from dgfast.data.image_files import find_images
from dgfast.errors import UserError
from dgfast.files import PICTURES, require_ending, require_writable, write_picture
from dgfast.inference import Model
from dgfast.ranges import Between
from dgfast.synthesis import matrix_picture, swap_all

HELP = """People in each other's clothes: the bodies of some, the clothes of others, every pair of them.

dgfast swap --demo                            (built-in pedestrians, the small model that comes with dgfast)

dgfast swap --bodies anna.jpg --clothes wardrobe/ --out anna.png        (folders, .txt lists, patterns, files)

dgfast swap --bodies "crops/*.jpg" --out swaps.webp --separate swaps/        (everybody in everybody's clothes)

dgfast swap --model runs/latest --data-root /data/Market-1501 --identities 2 7 10 --out swaps.jpg

dgfast swap --demo --bodies anna.jpg          (your picture in the clothes of built-in pedestrians)

The table shows the bodies' photographs above and the clothes' at the left. Pictures should be crops of one person each,
as a detector gives them; they are resized to the size of the model. docs/swapping.md shows what to expect.
"""
MOST = 2_500  # pictures of a table
_SIDES = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500}  # the formats' longest sides, pixels


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    bodies: tuple[str, ...] = ()
    """Who is dressed: image files, folders, .txt lists or patterns in quotes. Default: the --identities, the people of
    --demo, or those of --clothes."""
    clothes: tuple[str, ...] = ()
    """Whose clothes are put on, likewise. Default: the --identities, the people of --demo, or those of --bodies."""
    out: Path = Path("swaps.png")
    """Picture to write: .png, .jpg or .webp."""
    separate: Path | None = None
    """Folder for each swap as a picture of its own, BODY-in-CLOTHES, of the same format."""
    model: Path | None = None
    """Run directory, folder of `dgfast import-reference`, saved folder or .safetensors file. Default: the small model
    that comes with dgfast."""
    data_root: Path | None = None
    """Folder of a data set, to take people from by --identities."""
    identities: tuple[Annotated[int, Between(1, 10_000_000)], ...] = ()
    """Numbers of people of that data set: the first image of each."""
    dataset: DatasetName = "auto"
    """Layout of that folder; auto looks at what is there."""
    variant: Variant = "labeled"
    """Boxes of CUHK03-NP."""
    demo: bool = False
    """Take built-in pedestrians, who are drawn in some seconds."""


@dataclass(frozen=True)
class _People:
    """Photographs, and what to call them in names of files."""

    names: list[str]
    pixels: np.ndarray


def main(argv: list[str] | None = None) -> None:
    """Dress people as the command line says, and write the table.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: nobody to dress, no such model or file, too many pictures, an ending that names no format.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast swap", description=HELP)
    _check(command)
    model = open_model(command.model)
    bodies, clothes = _people(command, model)
    _check_size(command.out, len(bodies.names), len(clothes.names), model.image_size)
    swaps = swap_all(model, model.images(list(bodies.pixels)), model.images(list(clothes.pixels)))
    above, left = (torch.from_numpy(people.pixels).permute(0, 3, 1, 2) for people in (bodies, clothes))
    write_picture(matrix_picture(above, left, swaps).numpy(), command.out)
    print(f"{len(bodies.names)} bodies in {len(clothes.names)} sets of clothes: {command.out}")
    if command.separate is not None:
        pairs = [f"{body}-in-{own}" for own in clothes.names for body in bodies.names]
        for name, pixels in zip(_distinct(pairs), swaps.flatten(0, 1).permute(0, 2, 3, 1).numpy(), strict=True):
            write_picture(pixels, command.separate / f"{name}{command.out.suffix.lower()}")
        print(f"each by itself: {command.separate}")


def _check(command: Command) -> None:
    """What can be refused before anything is read."""
    require_ending(command.out, "--out", PICTURES)
    for folder in {command.out.parent, command.separate or command.out.parent}:
        require_writable(folder, "choose another place")
    if bool(command.identities) != (command.data_root is not None):
        given, missing = ("--identities", "--data-root") if command.identities else ("--data-root", "--identities")
        raise UserError(f"{given} is given without {missing}; expected both: the folder, and numbers of people in it")
    if command.demo and command.identities:
        raise UserError("--demo and --identities are both given; expected one of them")
    if not (command.bodies or command.clothes or command.identities or command.demo):
        raise UserError("nobody to dress; expected --bodies, --data-root with --identities, or --demo")


def _people(command: Command, model: Model) -> tuple[_People, _People]:
    """Bodies and clothes. Who is not named is one of `--identities` or `--demo`, or else the other."""
    bodies, clothes = (
        _of_files([(path.stem, path) for path in find_images(sources, most=MOST, progress=sys.stderr.isatty())], model)
        if sources
        else None
        for sources in (command.bodies, command.clothes)
    )
    if command.identities:
        people = _of_files(_first_images(command), model)
        return bodies or people, clothes or people
    if command.demo:
        return bodies or _of_demo(BODIES, model), clothes or _of_demo(CLOTHES, model)
    found = bodies or clothes
    assert found is not None  # `_check` has seen to it
    return bodies or found, clothes or found


def _of_demo(numbers: tuple[int, ...], model: Model) -> _People:
    return _People([f"demo{number}" for number in numbers], demo_people(numbers, model.image_size))


def _of_files(files: Sequence[tuple[str, Path]], model: Model) -> _People:
    return _People([name for name, _ in files], model.pixels([path for _, path in files]))


def _first_images(command: Command) -> list[tuple[str, Path]]:
    """The number of each person, and the first image: of the training split, or else of query or gallery."""
    root, wanted = command.data_root, command.identities
    assert root is not None
    of_person: dict[int, Path] = {}
    for splits in (("train",), ("query", "gallery")):
        if of_person.keys() >= set(wanted):
            break
        try:
            data = load_reid(
                root, command.dataset, splits=splits, variant=command.variant, progress=sys.stderr.isatty()
            )
        except UserError:
            if splits == ("train",):
                raise
            break  # a folder of training images alone
        for record in (*data.train, *data.query, *data.gallery):
            of_person.setdefault(record.person, record.path)
    if missing := sorted(set(wanted) - of_person.keys()):
        there = sorted(person for person in of_person if person > 0)
        raise UserError(
            f"--identities {missing[0]}: {root} has no image of that person; expected numbers such as"
            f" {', '.join(map(str, there[:5]))}"
        )
    return [(f"{person:04d}", of_person[person]) for person in wanted]


def _check_size(out: Path, bodies: int, clothes: int, size: tuple[int, int]) -> None:
    """Refuse a table that nobody could look at, or that its format has no room for."""
    table = f"{bodies} bodies in {clothes} sets of clothes"
    if bodies * clothes > MOST:
        raise UserError(f"{table} are {bodies * clothes} pictures; expected at most {MOST}: name fewer")
    side = max((clothes + 1) * (size[0] + 2), (bodies + 1) * (size[1] + 2)) + 2
    if side > _SIDES.get(out.suffix.lower(), side):
        most = _SIDES[out.suffix.lower()]
        raise UserError(f"{table} take {side} pixels; {out.suffix} has room for {most}: pass --out with .png")


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of files that are not too long, each of which comes once."""
    found: dict[str, None] = {}
    for name in names:
        short, number = name.encode()[:180].decode(errors="ignore"), 1
        candidate = short
        while candidate in found:
            number += 1
            candidate = f"{short}-{number}"
        found[candidate] = None
    return list(found)
