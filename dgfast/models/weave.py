"""The weave: the pattern of clothes, laid round another body.

A palette holds rows of colours, so that checks, bands and prints become their mean. The weave keeps what the rows leave
out. Clothes are taken off row by row: however wide a row of them is in the picture, its pixels become a fixed number of
threads, from the left edge of the clothes to the right one. Put on, the threads of a row spread over the clothes of the
other body in that row. A thread says how many times as bright the cloth is as the row's colour, which hangs neither on
the colour nor on the light.

Nothing is learned. Where clothes begin and end in a row is told by opacities (background.py), evened over the rows
around it, or the rims of a pattern would be ragged: a pixel counts as much as it is covered. Left goes to left, since
that is all that is known of another pose.
"""

import torch
from torch import Tensor

from dgfast.data.batches import IMAGENET_MEAN, IMAGENET_STD

THREADS = 24  # in a row; people are 15 to 30 pixels wide at a height of 128
_NOISE = 0.06  # of RGB in 0 .. 1, added before brightnesses are compared: noise in the dark is no pattern
_BLACK = tuple((mean + _NOISE) / deviation for mean, deviation in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
_MOST = 1.2  # log of how many times as bright or dark a thread may be
_UNCOVERED = 1e-4  # what a pixel without clothes counts, so that rows without any have a middle, too
_EVENED = 32  # a row is evened over this part of the height up and down: 4 pixels at a height of 128


@torch.no_grad()
def taken_off(images: Tensor, rows: Tensor, opacity: Tensor) -> Tensor:
    """The weave of the clothes in pictures.

    Args:
        images: [N, 3, H, W], normalised.
        rows: [N, 3, H, W], the colours of their clothes' palettes, in the pictures' own light.
        opacity: [N, 1, H, W], 0 .. 1, where clothes are.
    Returns:
        [N, H, 24]: log of how many times as bright as the rows' colours; 0 where there are no clothes.
    """
    brighter = (_brightness(images) / _brightness(rows)).log().clamp(-_MOST, _MOST) * opacity
    covered = _worth(opacity).cumsum(2)
    thread = (torch.arange(THREADS, device=images.device) + 0.5) / THREADS
    pixel = torch.searchsorted(covered, thread * covered[..., -1:]).clamp(max=images.shape[3] - 1)
    return brighter[:, 0].gather(2, pixel)


@torch.no_grad()
def put_on(weave: Tensor, opacity: Tensor) -> Tensor:
    """The pattern of clothes on bodies.

    Args:
        weave: [N, H, 24], as `taken_off` gives it.
        opacity: [N, 1, H, W], 0 .. 1, where the bodies' clothes are.
    Returns:
        [N, 1, H, W]: log of how many times as bright as the rows' colours the clothes are.
    """
    with torch.autocast(weave.device.type, enabled=False):
        covers = _worth(opacity.to(weave.dtype))
        before = covers.cumsum(2)
        middle = (before - covers / 2) / before[..., -1:]
        place = (middle * THREADS - 0.5).clamp(0, THREADS - 1)  # straight lines between the middles of threads
        thread = place.long().clamp(max=THREADS - 2)
        return torch.lerp(weave.gather(2, thread), weave.gather(2, thread + 1), place - thread)[:, None]


def patterned(clothes: Tensor, pattern: Tensor) -> Tensor:
    """Clothes, as many times as bright as a pattern says.

    Args:
        clothes: [N, 3, H, W], normalised.
        pattern: [N, 1, H, W], as `put_on` gives it, or a part of it.
    Returns:
        [N, 3, H, W].
    """
    black = _black(clothes)
    return (clothes + black) * pattern.exp().to(clothes.dtype) - black


def _worth(opacity: Tensor) -> Tensor:
    """[N, 1, H, W] -> [N, H, W], above 0: what each pixel counts in its row."""
    row = torch.arange(opacity.shape[2], device=opacity.device)
    near = ((row[:, None] - row).abs() <= len(row) // _EVENED).to(opacity.dtype)
    return (near / near.sum(1, keepdim=True)) @ opacity[:, 0] + _UNCOVERED


def _brightness(images: Tensor) -> Tensor:
    """[N, 3, H, W], normalised -> [N, 1, H, W], above 0."""
    return (images + _black(images)).mean(1, keepdim=True).clamp(min=0.1)


def _black(images: Tensor) -> Tensor:
    """[1, 3, 1, 1]: how far normalised red, green and blue are above black, if they are 0. Filled on the device, since
    a CUDA graph cannot record a copy from the host."""
    return torch.cat([images.new_full((1, 1, 1, 1), value) for value in _BLACK], 1)
