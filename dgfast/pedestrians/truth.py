"""The truth set: swaps of clothes with their true results, in memory, to measure generated pictures against.

The same pictures as in the data set that `generate` writes with the same parameters; only those that the swaps need are
rendered.
"""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from .photographs import photograph
from .picture import make_world
from .plan import Parameters, check, identity_of, swap_of
from .swap import render_swap


@dataclass(frozen=True)
class SwapTruths:
    """N swaps: what goes in and what should come out."""

    bodies: np.ndarray
    """[N, H, W, 3] uint8 RGB: photographs of the wearers, which give the structure."""
    clothes: np.ndarray
    """[N, H, W, 3] uint8 RGB: photographs of the owners, which give the appearance."""
    truths: np.ndarray
    """[N, H, W, 3] uint8 RGB: the first, rendered again in the clothes of the second."""
    masks: np.ndarray
    """[N, H, W] bool: where the clothes are seen in `truths`."""
    wearers: np.ndarray
    """[N] int64: numbers of the people in `bodies`."""
    owners: np.ndarray
    """[N] int64: numbers of the people in `clothes`."""
    patterns: tuple[str, ...]
    """For each swap the pattern of the upper garment that changes hands; see `identity.Upper`."""


def render_truths(parameters: Parameters, *, progress: bool = False) -> SwapTruths:
    """Render the swaps of a data set, without the data set.

    Args:
        parameters: of the data set; `swap_truth` is the number of swaps, N, at least 1.
        progress: show a progress bar on stderr.
    Returns:
        the swaps that `generate` writes; photographs have been through JPEG, as they come from a file.
    Raises:
        UserError: a parameter is out of range.
    """
    check(parameters)
    world = make_world(parameters.seed, parameters.difficulty)
    swaps = [swap_of(world, parameters, index) for index in range(parameters.swap_truth)]
    bodies, clothes, truths, masks = [], [], [], []
    for swap in tqdm(swaps, unit="swap", desc="true swaps", disable=not progress, leave=False):
        bodies.append(photograph(world, parameters, swap.structure, swap.wearer))
        clothes.append(photograph(world, parameters, swap.appearance, swap.owner))
        truth = render_swap(world, swap.structure.shot, parameters.size, wearer=swap.wearer, owner=swap.owner)
        truths.append(truth.image)
        masks.append(truth.mask > 0)
    return SwapTruths(
        bodies=np.stack(bodies),
        clothes=np.stack(clothes),
        truths=np.stack(truths),
        masks=np.stack(masks),
        wearers=np.array([swap.wearer for swap in swaps]),
        owners=np.array([swap.owner for swap in swaps]),
        patterns=tuple(identity_of(parameters.seed, swap.owner).clothes.upper.pattern for swap in swaps),
    )
