"""`dgfast quality`: how well a trained DG-Net dresses people in each other's clothes, beside the rendered truth."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import dgfast
from dgfast import run_directory
from dgfast.config import Config
from dgfast.errors import UserError
from dgfast.files import write_json, write_png, write_text
from dgfast.models import DGNet
from dgfast.pedestrians import Parameters, SwapTruths, render_truths
from dgfast.retrieval.owners import owner_scores
from dgfast.synthesis import dress
from dgfast.synthesis.quality import Measured, chosen, floors, measure, picture, table, to_json, tone_changes

HELP = """Compare generated people in other people's clothes with the rendered truth.

The synthetic pedestrians can be drawn in anybody's clothes, so that the true result of a swap is known. This draws
swaps of people whom the run has never seen, lets the run dress them, and measures how far the pictures are from the
truth: in the clothes, outside, and whole; beside four pictures that need no learning. It also looks whether the run's
own E_a finds the owner of the clothes. docs/generation.md explains every figure.

dgfast quality --run runs/latest

dgfast quality --run runs/latest --swaps 200 --difficulty 0.5        (more swaps, harder cameras)

dgfast quality --run released-weights/ --seed 5        (what `dgfast import-reference` wrote; other people)
"""
SEED = 77  # of the people; no preset trains on them
SHOWN = 10  # swaps in the picture


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    run: Path
    """Run directory, model.safetensors, or a folder that `dgfast import-reference` wrote."""
    swaps: int = 80
    """True swaps to draw; 80 take some five seconds at 128x64."""
    seed: int = SEED
    """Another seed, other people, cameras and scenes."""
    identities: int = 80
    """People to draw the swaps from: the second half of them."""
    difficulty: float = 0.25
    """0: all cameras alike; 1: they differ as much as they can."""
    out: Path | None = None
    """File for all figures, as JSON; table and picture stand beside it, as .txt and .png. Default: quality.json in the
    run directory."""


@dataclass(frozen=True)
class Quality:
    """What was measured on a truth set."""

    truths: SwapTruths
    """The truth set."""
    ours: np.ndarray
    """[N, H, W, 3] uint8 RGB: the bodies as the networks dress them."""
    measured: dict[str, Measured]
    """Kind of picture, a key of `synthesis.quality.TITLES` -> distances from the truth."""
    owners: dict[str, dict[str, float]]
    """Kind of picture -> how often the owner of the clothes is found, percent."""
    counts: dict[str, int]
    """Pattern or change of tone -> number of swaps."""

    def to_json(self) -> dict[str, Any]:
        """All figures, as JSON has a form for."""
        return {
            "swaps": len(self.ours),
            "scores": {name: to_json(measured) for name, measured in self.measured.items()},
            "owner": self.owners,
            "counts": self.counts,
        }

    def table(self) -> str:
        """All figures as text."""
        return table(self.measured, self.owners, self.counts)

    def picture(self) -> np.ndarray:
        """[H, W, 3] uint8: some swaps of all patterns; see `synthesis.quality.picture`."""
        kinds = [unit(kind) for kind in (self.truths.bodies, self.truths.clothes, self.ours, self.truths.truths)]
        return picture([[kind[index] for kind in kinds] for index in chosen(self.truths.patterns, SHOWN)])


def main(argv: list[str] | None = None) -> None:
    """Measure as the command line says: print the table; write it, all figures and a picture.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: no such run, or a value is out of range.
    """
    command = tyro.cli(Command, args=sys.argv[1:] if argv is None else argv, prog="dgfast quality", description=HELP)
    networks, config, folder = _open(command.run)
    if config.data.data_root is None and config.synthetic.synthetic_seed == command.seed:
        raise UserError(
            f"--seed {command.seed} is that of the people whom {command.run} was trained on; expected people whom it"
            f" has not seen: pass another --seed"
        )
    size = config.data.image_height, config.data.image_width
    quality = assess(
        networks.to(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        truth_parameters(size, command.swaps, command.seed, command.identities, command.difficulty),
        config.evaluation.alpha,
        progress=True,
    )
    settings = {"seed": command.seed, "identities": command.identities, "difficulty": command.difficulty, "size": size}
    text = f"{command.swaps} true swaps, {size[0]}x{size[1]}, seed {command.seed}\n\n{quality.table()}\n"
    report = command.out or folder / "quality.json"
    try:
        write_json(settings | quality.to_json(), report)
        write_text(text, report.with_suffix(".txt"))
        write_png(quality.picture(), report.with_suffix(".png"))
    except OSError as error:
        raise UserError(f"--out {report} cannot be written ({error.strerror}); pass another file") from error
    print(f"{text}\npicture  {report.with_suffix('.png')}\nreport   {report}")


def truth_parameters(
    size: tuple[int, int], swaps: int, seed: int = SEED, identities: int = 80, difficulty: float = 0.25
) -> Parameters:
    """The data set that `dgfast synth` makes of these flags.

    Args:
        size: (height, width) in pixels.
        swaps: number of swaps, at least 1.
        seed: of everything random, at least 0.
        identities: people, of whom the second half swaps clothes.
        difficulty: 0 .. 1.
    Raises:
        UserError: `swaps` is too low.
    """
    if swaps < 1:
        raise UserError(f"--swaps is {swaps}; expected at least 1")
    return Parameters(
        identities=identities,
        test_identities=identities // 2,
        seed=seed,
        difficulty=difficulty,
        size=size,
        swap_truth=swaps,
    )


def assess(networks: DGNet, parameters: Parameters, alpha: float, *, progress: bool = False) -> Quality:
    """Measure networks on a truth set.

    Args:
        networks: in eval mode.
        parameters: of the data set whose swaps are rendered.
        alpha: weight of the fine-grained cosine in the test feature, >= 0.
        progress: show a progress bar on stderr.
    Raises:
        UserError: a parameter is out of range.
    """
    truths = render_truths(parameters, progress=progress)
    ours = dress(networks, truths.bodies, truths.clothes)
    bodies, clothes, targets = unit(truths.bodies), unit(truths.clothes), unit(truths.truths)
    tones = tone_changes(bodies, targets, truths.masks)
    pictures = {"ours": unit(ours)} | floors(bodies, clothes, targets, truths.masks)
    measured = {
        name: measure(images, targets, truths.masks, truths.patterns, tones) for name, images in pictures.items()
    }
    asked = {"ours": ours, "body": truths.bodies, "truth": truths.truths}
    owners = owner_scores(networks, asked, truths.clothes, truths.owners, alpha)
    return Quality(truths, ours, measured, owners, dict(Counter(truths.patterns)) | dict(Counter(tones)))


def unit(pixels: np.ndarray) -> np.ndarray:
    """Pixels as float32 in 0 .. 1.

    Args:
        pixels: uint8, of any shape.
    """
    return pixels.astype(np.float32) / 255


def _open(run: Path) -> tuple[DGNet, Config, Path]:
    """The networks, the settings that they were trained with, and the folder that they lie in."""
    folder = run if run.is_dir() else run.parent
    if run.is_dir() and not (run / run_directory.MODEL).is_file() and (run / run_directory.TEACHER).is_file():
        raise UserError(
            f"{run} holds a teacher alone, which makes no pictures; expected {run_directory.MODEL} of a trained DG-Net:"
            f" finish the run with `dgfast train --resume {run}`"
        )
    networks = dgfast.load(run)
    config = run_directory.read_config(folder) if (folder / run_directory.CONFIG).is_file() else Config()
    return networks, config, folder
