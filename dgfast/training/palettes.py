"""What is learned from palettes, where G looks for the clothes (`--modulation attention`; models/palette.py).

Two things follow from one comparison. The palette of another picture of a person should have the colours of the
person's clothes: that teaches where to look, and how light changes colours. And where it foretells a pixel better than
strangers' palettes do, there are clothes: that teaches the mask by which a background is kept.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgfast.models import DGNet
from dgfast.models.appearance import AppearanceOutput
from dgfast.models.background import Change
from dgfast.models.palette import ROW, worn

# What a pixel of a palette's reconstruction counts: by its column, of half the width, and by its foretold change.
MIDDLE, UNKNOWN = 0.35, 2e-3


class Comparison(NamedTuple):
    """Palettes of other pictures of the same people, beside their images."""

    colours: Tensor
    """[N, 3, H/4], in the light of the images."""
    worn: Tensor
    """[N, 1, H, W], -1 .. 1: how much better they foretell each pixel than strangers' palettes."""


def compare(networks: DGNet, own: Tensor, strangers: Tensor, images: Tensor) -> Comparison | None:
    """Compare images with the palette of another picture of the same person, and with those of strangers.

    Args:
        networks: DG-Net.
        own: [N, L], what `DGNet.look` gave of the other pictures.
        strangers: [K, L], of pictures of other people; every image is compared with each.
        images: [N, 3, H, W], normalised.
    Returns:
        None where G does not look for the clothes.
    """
    palette, light = networks.decoder.palette, networks.light(images)
    if palette is None or light is None:
        return None
    colours = palette.colours(own, light)
    others = palette.colours(strangers.repeat_interleave(len(images), 0), light)
    return Comparison(colours, worn(colours, others, images))


def beside(colours: Tensor, images: Tensor, change: Change | None) -> tuple[Tensor, Tensor]:
    """Palettes and the pixels that they should foretell, each times what it counts.

    A pixel counts the more, the more other clothes would change it. While G cannot tell yet, the middle counts most,
    where people stand.

    Args:
        colours: [N, 3, H/4], in the light of the images.
        images: [N, 3, H, W], normalised.
        change: as G foretells it, with `--background kept`.
    Returns:
        found and wanted, [N, 3, H/4, W/4].
    """
    column = torch.linspace(-1, 1, images.shape[3] // ROW, device=images.device)
    counts = torch.exp(-(column / MIDDLE).square()).expand(len(images), 1, images.shape[2] // ROW, -1)
    if change is not None:
        counts = counts * (F.avg_pool2d(change.foretold.detach(), ROW).clamp(0).square() + UNKNOWN)
    counts = counts / counts.mean((2, 3), keepdim=True)
    return counts * colours[..., None], counts * F.avg_pool2d(images, ROW)


def look_again(networks: DGNet, images: Tensor, seen: AppearanceOutput, gradient: bool) -> Tensor:
    """What G gets of generated pictures of clothes.

    Args:
        networks: DG-Net.
        images: [N, 3, H, W], generated.
        seen: what E_a' makes of them; its code as it is to be used.
        gradient: whether the pictures learn from what G sees in them beside the code.
    Returns:
        [N, ...], as `DGNet.look` gives it.
    """
    if networks.decoder.palette and not gradient:
        images, seen = images.detach(), seen._replace(features=seen.features.detach())
    return networks.look(images, seen)
