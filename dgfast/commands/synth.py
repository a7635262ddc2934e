"""`dgfast synth`: write the built-in synthetic pedestrians as a Market-1501 folder."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from dgfast.errors import UserError
from dgfast.pedestrians import generate

HELP = """Synthetic pedestrians in the layout of Market-1501, with masks of the clothes.

The same flags give the same bytes, for any number of workers.

dgfast synth --out pedestrians --identities 40 --seed 1

dgfast synth --out pedestrians --identities 40 --seed 1 --swap-truth 200      (also the true result of 200 swaps)
"""


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    out: Path
    """Folder to write; must not exist yet, or be empty."""
    identities: int
    """People altogether; half of them are the training split."""
    seed: int = 0
    """Another seed, other people, cameras and scenes."""
    difficulty: float = 0.25
    """0: all cameras alike; 1: they differ as much as they can."""
    test_identities: int | None = None
    """People of the query and gallery splits; default: half of all."""
    images_per_camera: float = 3.0
    """Mean number of images of a person in one camera."""
    distractors: int = 0
    """Gallery images of nobody in the query split; some junk boxes come with them."""
    height: int = 256
    """Pixels."""
    width: int = 128
    """Pixels."""
    workers: int | None = None
    """Processes; default: all cores."""
    swap_truth: int = 0
    """Swaps to render as the method should generate them: the list is swap_truth/pairs.csv."""


def main(argv: list[str] | None = None) -> None:
    """Generate as the command line says, and print what was made.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: the folder is not empty, a value is out of range.
    """
    command = tyro.cli(Command, args=sys.argv[1:] if argv is None else argv, prog="dgfast synth", description=HELP)
    try:
        summary = generate(
            command.out,
            identities=command.identities,
            seed=command.seed,
            difficulty=command.difficulty,
            test_identities=command.test_identities,
            images_per_camera=command.images_per_camera,
            distractors=command.distractors,
            size=(command.height, command.width),
            workers=command.workers or os.cpu_count(),
            swap_truth=command.swap_truth,
        )
    except OSError as error:
        raise UserError(f"--out {command.out} cannot be written ({error.strerror}); pass another folder") from error
    print(
        f"{command.out}: {summary.images} images of {summary.identities} people: {summary.train_images} train,"
        f" {summary.query_images} query, {summary.gallery_images} gallery"
        f" (of them {summary.distractor_images} distractors, {summary.junk_images} junk);"
        f" {summary.swap_truths} true swaps"
    )
