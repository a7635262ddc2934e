"""Where in a picture clothes are likely, known without learning: in the middle, and not in the colours of its sides.

Boxes have people in their middle. Their left and right sides show the scene, and a wall behind somebody has the colour
that it has at the sides, at the same height. G's mask has learned the place, too, but only adds it to what it reads
from the structure code, which takes walls and pavements for clothes where they look like them (docs/generation.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import places
from .palette import EDGE

_ACROSS, _DOWN = 0.64, 0.89  # of half the width and half the height: where clothes are less likely by a factor e
_ROWS = 64  # rows of cells, whose mean colours are compared
_NEAR = 4  # rows of cells above and below whose sides are looked at
_ALIKE = 0.15  # a difference of normalised RGB by which a cell is not of the colour of a side
_LESS = 0.4  # by how much less likely clothes are in a cell that has exactly the colour of a side


@torch.no_grad()
def likely(pictures: Tensor) -> Tensor:
    """Return how likely clothes are in each pixel, as a factor for a mask.

    Args:
        pictures: [N, 3, H, W], normalised RGB.
    Returns:
        [N, 1, H, W], 0 .. 1: the product of exp(-(x / 0.64)^2 - (y / 0.89)^4), where x and y are the place, -1 .. 1,
        and of 1 - 0.4 exp(-d / 0.15), where d is the least mean absolute difference of the colour to those of the left
        and right sides, of the same height or up to a sixteenth of it above or below.
    """
    height, width = pictures.shape[2:]
    with torch.autocast(pictures.device.type, enabled=False):
        pictures = pictures.to(torch.promote_types(pictures.dtype, torch.float32))
        row, column = places(height, width, pictures)
        by_place = torch.exp(-(column / _ACROSS).square() - (row / _DOWN).square().square())
        cells = F.avg_pool2d(pictures, max(1, height // _ROWS))
        side = max(1, cells.shape[3] // EDGE)
        sides = torch.cat([cells[..., :side], cells[..., -side:]], 3)
        sides = F.pad(sides, (0, 0, _NEAR, _NEAR), mode="replicate").unfold(2, 2 * _NEAR + 1, 1).flatten(3)
        # Row by row, the sum over red, green and blue from every cell to every cell of the sides near it.
        apart = torch.cdist(cells.permute(0, 2, 3, 1), sides.permute(0, 2, 3, 1), p=1.0).amin(3)[:, None] / 3
        unlike = 1 - _LESS * torch.exp(-apart / _ALIKE)
        return by_place * F.interpolate(unlike, size=(height, width), mode="bilinear", align_corners=False)
