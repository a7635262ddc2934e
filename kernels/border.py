"""A reflected border, where no fused kernel writes it, that costs no memory besides itself and keeps the memory format.

torch's own padding keeps its input for the backward pass, which needs only the shape. On a GPU it answers in contiguous
format, whatever it is given, and adds gradients up in no fixed order. Here the output of a channels-last input is
channels-last, the border's gradients are added in a fixed order, and the function can be differentiated twice.

Tests: tests/test_memory_format.py, against torch's padding, exactly.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def reflect(x: Tensor, pad: int) -> Tensor:
    """Write a reflected border around x.

    Args:
        x: [N, C, H, W].
        pad: width of the border in pixels, 0 to min(H, W) - 1.

    Returns:
        [N, C, H + 2 pad, W + 2 pad]; on a GPU channels-last. Unless pad is 0 it shares no memory with x, so that what
        follows may work in place.
    """
    if pad == 0:
        return x
    if torch.compiler.is_compiling() and not x.is_cuda:  # the compiler itself decides what to keep
        return F.pad(x, (pad,) * 4, mode="reflect")
    return _Reflect.apply(x, pad)


class _Reflect(Function):
    """[N, C, H, W] -> [N, C, H + 2 pad, W + 2 pad]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pad: int) -> Tensor:
        ctx.pad = pad
        if not x.is_cuda:
            # Autocast on a CPU would pad in fp32, and the next convolution would convert every value back. Switched by
            # hand, since torch.autocast takes as long as a small image's border.
            enabled = torch.is_autocast_enabled("cpu")
            torch.set_autocast_enabled("cpu", False)
            try:
                return F.pad(x, (pad,) * 4, mode="reflect")
            finally:
                torch.set_autocast_enabled("cpu", enabled)
        n, c, h, w = x.shape
        out = torch.empty(
            (n, c, h + 2 * pad, w + 2 * pad), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )
        # torch pads three dimensions without regard to the format. As channels-last memory, [1, N, H, W, C], they are
        # rows, columns and channels, and the border of the last is 0.
        volume, into = (t.permute(0, 2, 3, 1).unsqueeze(0) for t in (x, out))
        torch.ops.aten.reflection_pad3d.out(volume, (0, 0, pad, pad, pad, pad), out=into)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # A backward pass that is not differentiated itself needs no node.
        return (_Fold.apply if torch.is_grad_enabled() else _fold)(grad, ctx.pad), None


class _Fold(Function):
    """`_fold`, which can be differentiated: it is linear, and `_Reflect` its transpose."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, pad: int) -> Tensor:
        ctx.pad = pad
        return _fold(grad, pad)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Reflect.apply(grad, ctx.pad), None


def _fold(grad: Tensor, pad: int) -> Tensor:
    """The transpose of `_Reflect`: each pixel of the border is added to the one that it shows."""
    if not grad.is_cuda:
        n, c, h, w = grad.shape
        last = grad.is_contiguous(memory_format=torch.channels_last)
        form = torch.channels_last if last else torch.contiguous_format
        size = (n, c, h - 2 * pad, w - 2 * pad)
        # Only shape and format of this one are read.
        shape = torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=form)
        return torch.ops.aten.reflection_pad2d_backward.default(grad, shape, [pad] * 4)
    return _folded(_folded(grad, 2, pad), 3, pad)


def _folded(grad: Tensor, dim: int, pad: int) -> Tensor:
    """The fold along one dimension."""
    size = grad.shape[dim] - 2 * pad
    out = grad.narrow(dim, pad, size).clone(memory_format=torch.channels_last)
    for i in range(1, pad + 1):
        out.select(dim, i).add_(grad.select(dim, pad - i))
        out.select(dim, size - 1 - i).add_(grad.select(dim, pad + size - 1 + i))
    return out
