"""`dgfast synth`: write the built-in synthetic pedestrians as a Market-1501 folder."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dgfast.commands.command_line import read
from dgfast.errors import UserError, out_of_memory, within_memory
from dgfast.pedestrians import generate
from dgfast.ranges import Between, Seed, Share, expect

HELP = """Synthetic pedestrians in the layout of Market-1501, with masks of the clothes.

The same flags give the same bytes, for any number of workers.

dgfast synth --out pedestrians --identities 40 --seed 1

dgfast synth --out pedestrians --identities 40 --seed 1 --swap-truth 200      (also the true result of 200 swaps)
"""

MOST = 100_000  # people; identities of distractors are numbered from far behind
People = Annotated[int, Between(2, MOST)]
PictureSide = Annotated[int, Between(32, 2048)]


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    out: Path
    """Folder to write; must not exist yet, or be empty."""
    identities: People
    """People altogether; half of them are the training split."""
    seed: Seed = 0
    """Another seed, other people, cameras and scenes."""
    difficulty: Share = 0.25
    """0: all cameras alike; 1: they differ as much as they can."""
    test_identities: Annotated[int, Between(0, MOST)] | None = None
    """People of the query and gallery splits; default: half of all."""
    images_per_camera: Annotated[float, Between(0, 100, without=0)] = 3.0
    """Mean number of images of a person in one camera."""
    distractors: Annotated[int, Between(0, 500_000)] = 0
    """Gallery images of nobody in the query split; some junk boxes come with them."""
    height: PictureSide = 256
    """Pixels."""
    width: PictureSide = 128
    """Pixels."""
    workers: Annotated[int, Between(1, 1024)] | None = None
    """Processes; default: all cores."""
    swap_truth: Annotated[int, Between(0, 100_000)] = 0
    """Swaps to render as the method should generate them: the list is swap_truth/pairs.csv."""


@within_memory("lower --workers, --height or --width")
def main(argv: list[str] | None = None) -> None:
    """Generate as the command line says, and print what was made.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: the folder is not empty, a value is out of range.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast synth", description=HELP)
    people, testing = command.identities, command.test_identities
    expect(testing is None or testing <= people, "test_identities", testing, f"at most --identities, which is {people}")
    testing = people // 2 if testing is None else testing
    expect(command.swap_truth == 0 or testing >= 2, "swap_truth", command.swap_truth, f"0 with {testing} test people")
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
        if out_of_memory(error):
            raise
        raise UserError(f"--out {command.out} cannot be written ({error.strerror}); pass another folder") from error
    print(
        f"{command.out}: {summary.images} images of {summary.identities} people: {summary.train_images} train,"
        f" {summary.query_images} query, {summary.gallery_images} gallery"
        f" (of them {summary.distractor_images} distractors, {summary.junk_images} junk);"
        f" {summary.swap_truths} true swaps"
    )
