"""A soft mask that is drawn to the edges of a picture: the guided filter (He, Sun and Tang, ECCV 2010).

G foretells where clothes are from a structure code, which is four times coarser than the picture. The filter learns
nothing. In each window it takes the mask for a linear function of red, green and blue, so that its rim comes to lie
where the picture has one.
"""

import torch
from torch import Tensor

from .layers import surroundings

_SHARE = 16  # a window reaches this part of the height to each side: 8 pixels at a height of 128
_FLAT = 0.02  # a variance of normalised RGB up to which a window counts as one colour


@torch.no_grad()
def drawn_to_edges(mask: Tensor, pictures: Tensor) -> Tensor:
    """Return masks whose rims follow the pictures.

    Args:
        mask: [N, 1, H, W], 0 or more: where clothes change a picture.
        pictures: [N, 3, H, W], normalised RGB.
    Returns:
        [N, 1, H, W], without a gradient; a little below and above the mask's own range near strong edges.
    Source:
        He, Sun and Tang, Guided image filtering, ECCV 2010, for a picture of three colours.
    """
    around = pictures.shape[2] // _SHARE
    with torch.autocast(mask.device.type, enabled=False):
        dtype = torch.promote_types(pictures.dtype, torch.float32)
        mask, pictures = mask.to(dtype), pictures.to(dtype)
        red, green, blue = pictures.split(1, 1)
        squares = torch.cat([red * pictures, green * pictures[:, 1:], blue.square()], 1)
        means = surroundings(torch.cat([pictures, mask, mask * pictures, squares], 1), around)
        colour, mean, with_mask, squares = means.split([3, 1, 3, 6], 1)
        with_mask = with_mask - mean * colour  # covariances of the mask and each of the three
        r, g, b = colour.split(1, 1)
        rr, rg, rb, gg, gb, bb = (squares - torch.cat([r * colour, g * colour[:, 1:], b.square()], 1)).split(1, 1)
        rows = (
            torch.cat([rr + _FLAT, rg, rb], 1),
            torch.cat([rg, gg + _FLAT, gb], 1),
            torch.cat([rb, gb, bb + _FLAT], 1),
        )
        # The inverse of a symmetric matrix by the cross products of its rows: no solver for each pixel.
        crossed = [torch.linalg.cross(rows[(k + 1) % 3], rows[(k + 2) % 3], dim=1) for k in range(3)]
        determinant = (rows[0] * crossed[0]).sum(1, keepdim=True)
        slope = sum(row * with_mask[:, k : k + 1] for k, row in enumerate(crossed)) / determinant
        offset = mean - (slope * colour).sum(1, keepdim=True)
        slope, offset = surroundings(torch.cat([slope, offset], 1), around).split([3, 1], 1)
        return (slope * pictures).sum(1, keepdim=True) + offset
