"""How far would better masks and better light get? Swaps that are put right by what only the renderer knows.

    python -m tools.perfect_masks                              (of the model that comes with dgfast)
    python -m tools.perfect_masks --run runs/latest --seeds 77 90 91

Rows of colours are painted into the true mask of the clothes and compared with the truth there. They are rows of the
clothes' picture by hand, of the model's palette, or of the truth itself. Beside each error stands that of the same
picture once the mean colour of every swap is right, as if the light were known. docs/generation.md says what follows.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

import dgfast
from dgfast import launcher
from dgfast.commands.command_line import read
from dgfast.commands.quality import SEED, truth_parameters, unit
from dgfast.data.batches import IMAGENET_MEAN, IMAGENET_STD, normalise
from dgfast.errors import UserError
from dgfast.models import DGNet
from dgfast.models.palette import light, plane
from dgfast.pedestrians import Parameters, render_truths
from dgfast.pedestrians.picture import make_world
from dgfast.pedestrians.plan import swap_of
from dgfast.pedestrians.swap import render_swap
from dgfast.ranges import Between, Seed, Share
from dgfast.synthesis import dress

_MIDDLE = 0.375  # share of the width, in the middle of the picture, where a row's clothes are looked for by hand
_NEAR = 2.0  # deviation in pixels of the Gaussian over neighbouring rows, for a height of 128


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    run: Path | None = None
    """Run directory or model.safetensors, of --modulation attention. Default: the model that comes with dgfast."""
    seeds: tuple[Seed, ...] = (SEED,)
    """Seeds of the people; the table has the mean over them."""
    swaps: Annotated[int, Between(1, 100_000)] = 80
    """True swaps of each seed."""
    difficulty: Share = 0.25
    """0: all cameras alike; 1: they differ as much as they can."""


def main(argv: list[str] | None = None) -> None:
    """Measure as the command line says, and print the table.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: the model does not look for the clothes, or there is none.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="tools.perfect_masks", description=__doc__)
    networks = dgfast.load(command.run)
    if networks.decoder.palette is None:
        raise UserError(f"{command.run} has no palette; expected a model of --modulation attention")
    data = networks.settings.data
    size = data.image_height, data.image_width
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in command.seeds:
        parameters = truth_parameters(size, command.swaps, seed, difficulty=command.difficulty)
        for name, errors in errors_of(networks, parameters).items():
            found.setdefault(name, []).append(errors)
    print(f"{'L1 of the clothes':<56}{'as it is':>10}{'mean colour right':>20}")
    for name, errors in found.items():
        as_it_is, corrected = np.mean(errors, 0)
        print(f"{name:<56}{as_it_is:10.3f}{corrected:20.3f}")


def errors_of(networks: DGNet, parameters: Parameters) -> dict[str, tuple[float, float]]:
    """Errors within the clothes of one truth set.

    Args:
        networks: in eval mode, with a palette.
        parameters: of the data set whose swaps are rendered.
    Returns:
        what is painted -> L1 of the picture, and with the mean colour of each swap's clothes put right.
    """
    truths = render_truths(parameters)
    bodies, clothes, targets = unit(truths.bodies), unit(truths.clothes), unit(truths.truths)
    own = own_masks(parameters)
    middle = np.abs(np.linspace(-1, 1, bodies.shape[2])) <= _MIDDLE
    painted = {
        "rows of the clothes' picture, mean of its middle": _rows(clothes, np.broadcast_to(middle, own.shape)),
        "rows of the clothes' picture, mean of its clothes": _rows(clothes, own),
        "the model's palette": _palettes(networks, truths.bodies, truths.clothes, None),
        "the model's palette, from the clothes' true mask": _palettes(networks, truths.bodies, truths.clothes, own),
        "rows of the truth": _rows(targets, truths.masks),
        "the model's swaps, in its own masks": unit(dress(networks, truths.bodies, truths.clothes)),
    }
    return {name: _errors(pictures, targets, truths.masks) for name, pictures in painted.items()}


def own_masks(parameters: Parameters) -> np.ndarray:
    """Where the clothes are in the pictures that give them.

    Args:
        parameters: of the data set; `swap_truth` is the number of swaps, N.
    Returns:
        [N, H, W] bool.
    """
    world = make_world(parameters.seed, parameters.difficulty)
    masks = []
    for index in range(parameters.swap_truth):
        swap = swap_of(world, parameters, index)
        # Somebody in their own clothes is the picture itself, and its mask comes with it.
        same = render_swap(world, swap.appearance.shot, parameters.size, wearer=swap.owner, owner=swap.owner)
        masks.append(same.mask > 0)
    return np.stack(masks)


def _rows(pictures: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Mean colours of the rows of pictures within masks, evened over neighbouring rows and laid over the whole width.

    Args:
        pictures: [N, H, W, 3] float.
        masks: [N, H, W] bool.
    Returns:
        [N, H, W, 3].
    """
    height = pictures.shape[1]
    row = np.arange(height)
    near = np.exp(-(((row[:, None] - row) / (_NEAR * height / 128)) ** 2) / 2) + 1e-6  # some for rows without clothes
    sums = near @ np.where(masks[..., None], pictures, 0).sum(2)
    means = sums / np.maximum(near @ masks.sum(2)[..., None], 1e-9)
    return np.broadcast_to(means[:, :, None], pictures.shape)


@torch.inference_mode()
def _palettes(networks: DGNet, bodies: np.ndarray, clothes: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    """The model's palettes as pictures, in the light of the bodies'.

    Args:
        networks: with a palette.
        bodies: [N, H, W, 3] uint8.
        clothes: [N, H, W, 3] uint8.
        masks: [N, H, W] bool, where the clothes are in `clothes`; None: where the model sees them.
    Returns:
        [N, H, W, 3] float, 0 .. 1.
    """
    palette = networks.decoder.palette
    assert palette is not None
    body, other = (normalise(torch.from_numpy(images)) for images in (bodies, clothes))
    if masks is None:
        look = networks.look(other)
    else:
        features = networks.appearance(other).features
        look = palette(features, other, torch.from_numpy(masks)[:, None].to(other.dtype))
    rows: Tensor = plane(palette.colours(look, light(body)), *bodies.shape[1:3]).permute(0, 2, 3, 1)
    pixels = rows * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)
    return pixels.clamp(0, 1).numpy()


def _errors(pictures: np.ndarray, truths: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    """L1 within the masks: as the pictures are, and with each one's mean colour there made that of its truth."""
    difference = np.where(masks[..., None], pictures - truths, 0)
    means = difference.sum((1, 2)) / np.maximum(masks.sum((1, 2)), 1)[:, None]
    corrected = np.clip(pictures - means[:, None, None], 0, 1) - truths
    return float(np.abs(difference[masks]).mean()), float(np.abs(corrected[masks]).mean())


if __name__ == "__main__":
    launcher.run(main)
