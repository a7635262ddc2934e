"""What is learned from palettes, where G looks for the clothes (`--modulation attention`; models/palette.py).

Two things follow from one comparison. The palette of another picture of a person should have the colours of the
person's clothes: that teaches where to look, and how light changes colours. And where it foretells a pixel better than
strangers' palettes do, there are clothes: that teaches the mask by which a background is kept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgfast.models import DGNet
from dgfast.models.appearance import AppearanceOutput
from dgfast.models.palette import ROW, worn, worth
from dgfast.models.structure import grey

MIDDLE = 0.35  # of half the width: where in a row the pixels count most that a palette should foretell


class Looks(NamedTuple):
    """What G gets of the pictures of an iteration: of the first and the second stream, then of their positives."""

    each: list[Tensor]
    """[N, ...] each, as `DGNet.look` gives it."""
    light: Tensor | None = None
    """[4N, 36], of all pictures, where G looks for the clothes."""
    foretold: Tensor | None = None
    """[4N, 1, H, W], how much other clothes would change each pixel, where G tells that from the structure."""
    pictures: Tensor | None = None
    """[4N, 3, H, W], the pictures themselves, where G looks for the clothes."""
    opacity: Tensor | None = None
    """[2N, 1, H, W], how far clothes cover both streams' images, where G tells that from the structure."""

    @property
    def of_bodies(self) -> Tensor | None:
        """[2N, 36], the light of both streams' images."""
        return None if self.light is None else self.light[: len(self.light) // 2]


def looks_at(networks: DGNet, pictures: Sequence[Tensor], seen: Sequence[AppearanceOutput], structure: Tensor) -> Looks:
    """Look at all pictures of an iteration.

    Args:
        networks: DG-Net.
        pictures: images [N, 3, H, W] of the first and the second stream and their positives, normalised.
        seen: what E_a makes of each.
        structure: [2N, ...], what E_s makes of both streams' images.
    """
    palette, mask = networks.decoder.palette, networks.decoder.mask
    if palette is None:
        return Looks([out.code for out in seen])
    foretold = opacity = covered = None
    images = torch.cat(list(pictures))
    if mask is not None:
        with torch.no_grad():
            of_positives = networks.structure(grey(torch.cat(list(pictures[2:]))))
            foretold = mask(torch.cat([structure.detach(), of_positives]))
            # The clothes of positives are never laid over another body, so nobody asks for their weave.
            opacity = networks.cover.covered(*(of.chunk(2)[0] for of in (foretold, images)))
            covered = torch.cat([opacity, torch.zeros_like(opacity)])
    looks = palette(torch.cat([out.features for out in seen]), images, foretold, covered)
    return Looks(list(looks.chunk(len(pictures))), palette.split(looks)[1], foretold, images, opacity)


class Comparison(NamedTuple):
    """What palettes foretell of pictures: that of a positive of its image, and that of an image of its positive."""

    colours: Tensor
    """[4N, 3, H/4], of the images of the first and the second stream, then of their positives; in their light."""
    worn: Tensor
    """[2N, 1, H, W], -1 .. 1, of the images: how much better their positives' palettes foretell each pixel than those
    of all pictures of the other stream."""
    pictures: Tensor
    """[4N, 3, H, W], the pictures, in this order."""
    foretold: Tensor | None
    """[4N, 1, H, W], how much other clothes would change each pixel; None: G does not tell it from the structure."""


def compare(networks: DGNet, looks: Looks) -> Comparison | None:
    """Compare pictures with the palettes of other pictures of the same people, and with those of strangers.

    Args:
        networks: DG-Net.
        looks: at the pictures.
    Returns:
        None where G does not look for the clothes.
    """
    palette = networks.decoder.palette
    if palette is None or looks.light is None or looks.pictures is None:
        return None
    images = looks.pictures[: len(looks.pictures) // 2]
    first, second, *positives = looks.each
    colours = palette.colours(torch.cat([*positives, first, second]), looks.light)
    with torch.no_grad():
        strangers = torch.cat([torch.stack([second, first], 1), torch.stack(positives[::-1], 1)])
        # In the order of `worn`: first a stranger for each image, then another one for each, and so on.
        strangers = strangers.repeat_interleave(len(first), 1).flatten(0, 1)
        others = palette.colours(strangers, looks.light[: len(images)])
    return Comparison(colours, worn(colours[: len(images)], others, images), looks.pictures, looks.foretold)


def beside(palettes: Comparison) -> tuple[Tensor, Tensor]:
    """Palettes and the pixels that they should foretell, each times what it counts.

    A pixel counts the more, the more other clothes would change it. While G cannot tell yet, the middle counts most,
    where people stand.

    Args:
        palettes: what `compare` gave.
    Returns:
        found and wanted, [4N, 3, H/4, W/4].
    """
    pixels = F.avg_pool2d(palettes.pictures, ROW)
    column = torch.linspace(-1, 1, pixels.shape[3], device=pixels.device)
    counts = torch.exp(-(column / MIDDLE).square()).expand(len(pixels), 1, *pixels.shape[2:])
    if palettes.foretold is not None:
        counts = counts * worth(F.avg_pool2d(palettes.foretold, ROW))
    counts = counts / counts.mean((2, 3), keepdim=True)
    return counts * palettes.colours[..., None], counts * pixels


def look_again(networks: DGNet, images: Tensor, seen: AppearanceOutput, structure: Tensor, gradient: bool) -> Tensor:
    """What G gets of generated pictures of clothes.

    Args:
        networks: DG-Net.
        images: [N, 3, H, W], generated.
        seen: what E_a' makes of them; its code as it is to be used.
        structure: what E_s makes of them.
        gradient: whether the pictures learn from what G sees in them beside the code.
    Returns:
        [N, ...], as `DGNet.look` gives it.
    """
    if networks.decoder.palette and not gradient:
        images, seen = images.detach(), seen._replace(features=seen.features.detach())
    return networks.look(images, seen, structure)
