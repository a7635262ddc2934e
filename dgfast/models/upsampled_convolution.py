"""Nearest upsampling by 2, a reflected border and a 5x5 convolution, computed on the small image: exactly, with 9 taps
for 25.

Output pixel (2i + p, 2j + q), of phase (p, q), sees 5x5 pixels of the enlarged image, which show at most 3x3 pixels of
the small one. Taps that fall on the same small pixel are added up once. Four small kernels, one for each phase, then do
the work of the large one. Along one axis, with taps w0..w4 and small pixels x:

    inside      p = 0:  (w0+w1) x[i-1] + (w2+w3) x[i] + w4 x[i+1]
                p = 1:  w0 x[i-1] + (w1+w2) x[i] + (w3+w4) x[i+1]
    i = 0       p = 0:  (w1+w2+w3) x[0] + (w0+w4) x[1]
                p = 1:  (w0+w1+w2) x[0] + (w3+w4) x[1]
    i = last    the mirror image of i = 0

The ends differ because the reflected border of the enlarged image shows x[0] in its first row and x[1] in its second.
So the kernels are 3x3 inside, 2x3 and 3x2 on the edges, 2x2 in the corners: (3H - 2)(3W - 2) taps a phase, not 25 HW.
Each small pixel is worked on once, by its own kernel, and nothing is padded.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

# The four pieces of the small image as (rows, columns), 1: inside, 2: both ends. The ends of an axis lie side by side
# as groups of channels, so that one grouped convolution serves both.
_PIECES = ((1, 1), (2, 1), (1, 2), (2, 2))

# Where N, O, rows, p, columns and q stand in a piece that is seen as [N, (column end), (row end), p, q, O, (h), (w)].
# Of the dimensions in brackets those that have one value are left away.
_ORDER = {
    (1, 1): (0, 3, 4, 1, 5, 2),
    (2, 1): (0, 4, 1, 2, 5, 3),
    (1, 2): (0, 4, 5, 2, 1, 3),
    (2, 2): (0, 5, 2, 3, 1, 4),
}


class UpsampledConvolution(nn.Conv2d):
    """A 5x5 convolution behind nearest upsampling by 2 and a reflected border of 2 pixels.

    Weight [outputs, inputs, 5, 5] and bias [outputs] are those of the plain convolution.

    Args:
        inputs: channels of x.
        outputs: channels of the result.
    """

    fold: Tensor
    bias: nn.Parameter

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 5)
        # A constant: it moves to the module's device, but is no part of its state.
        self.register_buffer("fold", fold_matrix(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge and convolve.

        Args:
            x: [N, inputs, H, W].

        Returns:
            [N, outputs, 2H, 2W].
        """
        return upsampled_convolution(x, self.weight, self.bias, self.fold)


def fold_matrix() -> Tensor:
    """Return which taps of the 5x5 kernel each tap of the small kernels adds up.

    Returns:
        [196, 25], fp32, each 0 or 1. Rows: the pieces of `_PIECES` one after another, in each of them the taps in the
        order (row tap, column tap, column end, row end, p, q).
    """
    inside, ends = torch.zeros(1, 3, 2, 5), torch.zeros(2, 2, 2, 5)  # [end, small tap, phase, tap]
    for phase in range(2):
        for tap in range(5):
            inside[0, (phase + tap) // 2, phase, tap] = 1
            shown = abs(phase + tap - 2) // 2  # the first pixel's output sees the enlarged image reflected at 0
            ends[0, shown, phase, tap] = 1
            ends[1, 1 - shown, 1 - phase, 4 - tap] = 1
    axis = {1: inside, 2: ends}
    return torch.cat([torch.einsum("aypi,bxqj->yxbapqij", axis[a], axis[b]).reshape(-1, 25) for a, b in _PIECES])


def upsampled_convolution(x: Tensor, weight: Tensor, bias: Tensor, fold: Tensor) -> Tensor:
    """Compute `F.conv2d(F.pad(F.interpolate(x, scale_factor=2), (2,) * 4, "reflect"), weight, bias)`, up to rounding.

    Differentiable twice in x, weight and bias.

    Args:
        x: [N, C, H, W], H and W at least 2.
        weight: [O, C, 5, 5].
        bias: [O].
        fold: of `fold_matrix`, on the device of the others.

    Returns:
        [N, O, 2H, 2W], channels-last where x is.

    Raises:
        ValueError: an image of less than 2 pixels a side, where a border of 2 cannot be reflected.
    """
    n, channels, height, width = x.shape
    if min(height, width) < 2:
        raise ValueError(f"upsampled_convolution: image of {height} x {width} pixels, expected at least 2 x 2")
    pieces: list[Tensor | None] = []
    kernels = _kernels(weight, fold)
    # The compiler itself avoids what `_Cut` is for.
    cut = _cut(x) if torch.compiler.is_compiling() else _Cut.apply(x)
    for piece, kernel, (a, b) in zip(cut, kernels, _PIECES, strict=True):
        if min(piece.shape[2] - kernel.shape[2], piece.shape[3] - kernel.shape[3]) < 0:
            pieces.append(None)  # of two pixels both are ends: nothing lies inside
        else:
            pieces.append(F.conv2d(piece, kernel, bias.repeat(4 * a * b), groups=a * b))
    return _Interleave.apply(height, width, x.stride(1) == 1, *pieces)


def _kernels(weight: Tensor, fold: Tensor) -> list[Tensor]:
    """The pieces' kernels, each [(column end, row end, p, q, O), C, row taps, column taps].

    Taps are added up in the weight's own precision, so that under autocast the sum is rounded and not the taps.
    """
    outputs, channels = weight.shape[:2]
    device = weight.device.type
    with torch.autocast(device, enabled=False) if device != "meta" else nullcontext():
        taps = fold.to(weight.dtype) @ weight.permute(2, 3, 0, 1).reshape(25, outputs * channels)
    sizes = [(4 - a, 4 - b, a * b) for a, b in _PIECES]
    blocks = taps.split([4 * y * x * groups for y, x, groups in sizes])
    return [
        block.view(y, x, 4 * groups * outputs, channels).permute(2, 3, 0, 1)
        for block, (y, x, groups) in zip(blocks, sizes, strict=True)
    ]


def _cut(x: Tensor) -> tuple[Tensor, ...]:
    """The pieces of x that the kernels read, in the order of `_PIECES`: x; its first and last two rows, side by side as
    channels; its columns likewise; the columns of those rows."""
    rows = _ends(x, 2)
    return x, rows, _ends(x, 3), _ends(rows, 3)


def _ends(x: Tensor, dim: int) -> Tensor:
    """The first and the last two slices of x along `dim`, side by side as channels."""
    return torch.cat([x.narrow(dim, 0, 2), x.narrow(dim, x.shape[dim] - 2, 2)], 1)


class _Cut(Function):
    """`_cut` with a backward pass of its own: the ends' gradients are added to that of the whole in place.

    Autograd would fill and add one tensor of x's size for each slice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        return _cut(x.view_as(x))

    @staticmethod
    def backward(ctx: Any, whole: Tensor, rows: Tensor, columns: Tensor, corners: Tensor) -> Tensor:
        # In place, because nobody else reads these: each comes from the only reader of a piece, a convolution, which
        # made it for this call.
        for into, ends, dim in ((rows, corners, 3), (whole, columns, 3), (whole, rows, 2)):
            first, last = ends.chunk(2, 1)
            into.narrow(dim, 0, 2).add_(first)
            into.narrow(dim, into.shape[dim] - 2, 2).add_(last)
        return whole


class _Interleave(Function):
    """From the pieces, each [N, (column end, row end, p, q, O), h, w], to the image [N, O, 2H, 2W] in one pass."""

    @staticmethod
    def forward(ctx: Any, height: int, width: int, channels_last: bool, *pieces: Tensor | None) -> Tensor:
        ctx.format = torch.channels_last if channels_last else torch.contiguous_format
        ctx.shapes = [None if piece is None else piece.shape for piece in pieces]
        corners = pieces[-1]
        assert corners is not None  # every image has corners
        n, outputs = len(corners), corners.shape[1] // 16
        image = torch.empty(
            (n, outputs, 2 * height, 2 * width), dtype=corners.dtype, device=corners.device, memory_format=ctx.format
        )
        for piece, place, ends in zip(pieces, _places(image), _PIECES, strict=True):
            if piece is not None:
                place.copy_(_phases(piece, ends))
        return image

    @staticmethod
    def backward(ctx: Any, image: Tensor) -> tuple[Tensor | None, ...]:
        pieces: list[Tensor | None] = []
        for shape, place, ends in zip(ctx.shapes, _places(image), _PIECES, strict=True):
            if shape is None:
                pieces.append(None)
                continue
            piece = torch.empty(shape, dtype=image.dtype, device=image.device, memory_format=ctx.format)
            _phases(piece, ends).copy_(place)
            pieces.append(piece)
        return None, None, None, *pieces


def _places(image: Tensor) -> list[Tensor]:
    """Views of the image [N, O, 2H, 2W], one for each piece: [N, O, rows, p, columns, q]."""
    n, outputs, height, width = image.shape
    grid = image.view(n, outputs, height // 2, 2, width // 2, 2)
    axis = {1: lambda size: slice(1, size - 1), 2: lambda size: slice(0, size, size - 1)}
    rows = {a: grid[:, :, axis[a](height // 2)] for a in axis}
    return [rows[a][..., axis[b](width // 2), :] for a, b in _PIECES]


def _phases(piece: Tensor, ends: tuple[int, int]) -> Tensor:
    """View of a piece as [N, O, rows, p, columns, q].

    Along each axis its pixels are either ends or inside, so that of ends and pixels one has the size 1.
    """
    n, channels, height, width = piece.shape
    a, b = ends
    sizes = [size for size, there in ((b, b == 2), (a, a == 2)) if there]
    pixels = [size for size, there in ((height, a == 1), (width, b == 1)) if there]
    parts = piece.view(n, *sizes, 2, 2, channels // (4 * a * b), *pixels)
    return parts.permute(_ORDER[ends])
