"""A convolution whose gradient is differentiated once more, as the penalty on D's gradient does, without huge filters.

With y = conv(x, w), and dy the gradient that comes back, the gradient at the image is dx = T(dy, w), the transposed
convolution. The penalty is a function of dx, so in its backward pass a gradient ddx arrives there. As dx is linear in
dy and in w,

    gradient of dy   conv(ddx, w)
    gradient of w    the weight gradient of a plain convolution whose input is ddx and whose outputs' gradient is dy

torch writes the second as a convolution of two images, in which dy, as large as the feature map, takes the place of the
filter. No library is fast at that: it takes several times as long as the plain weight gradient on a CPU, and falls back
to slow algorithms on a GPU. Here it is the plain one.

Tests: tests/test_penalised_convolution.py.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function


def penalised_convolution(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute `conv(x)`, for an output whose gradient will itself be differentiated; under autocast in its format.

    Args:
        conv: a convolution with bias and without padding, dilation or groups.
        x: [N, C, H, W].

    Returns:
        [N, O, h, w].
    """
    if torch.compiler.is_compiling():  # what is compiled cannot be differentiated twice anyway
        return conv(x)
    weight, bias = conv.weight, conv.bias
    assert bias is not None and not any(conv.padding) and conv.groups == 1 and conv.dilation == (1, 1)
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    if weight.is_leaf:  # `_wanted` can ask about inner nodes of the graph alone
        weight, bias = weight.view_as(weight), bias.view_as(bias)
    return _Convolution.apply(x, weight, bias, list(conv.stride))


def _wanted(node: Any) -> bool:
    """Whether the backward pass that runs goes on to a node.

    The penalty asks for the gradient at the image alone. autograd tells its own operators so; a Function has to ask, or
    it would compute weight gradients in vain.
    """
    return node is not None and torch._C._will_engine_execute_node(node)


def _backward(dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], wanted: list[bool]) -> tuple[Tensor, ...]:
    """The gradients of image, weight and bias, where they are wanted; the bias has one value a row of the weight."""
    return torch.ops.aten.convolution_backward.default(
        dy, x, weight, [len(weight)], stride, [0, 0], [1, 1], False, [0, 0], 1, wanted
    )


class _Convolution(Function):
    """x [N, C, H, W], weight [O, C, K, K] and bias [O] to [N, O, h, w]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, bias, stride)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], *(_wanted(node) for node, _ in ctx.next_functions[1:3])]
        if not torch.is_grad_enabled():
            return *_backward(dy, x, weight, ctx.stride, wanted), None
        dx = _InputGradient.apply(dy, weight, (x,), ctx.stride) if wanted[0] else None
        _, dweight, dbias = (
            _backward(dy, x, weight, ctx.stride, [False, *wanted[1:]]) if any(wanted[1:]) else [None] * 3
        )
        return dx, dweight, dbias, None


class _InputGradient(Function):
    """dy [N, O, h, w] and weight to dx [N, C, H, W].

    Of x, in a tuple, where autograd does not look for it, only shape and format are read.
    """

    @staticmethod
    def forward(ctx: Any, dy: Tensor, weight: Tensor, x: tuple[Tensor], stride: list[int]) -> Tensor:
        ctx.save_for_backward(dy, weight)
        ctx.stride = stride
        return _backward(dy, *x, weight, stride, [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
        dy, weight = ctx.saved_tensors
        again = F.conv2d(ddx, weight, None, ctx.stride) if ctx.needs_input_grad[0] else None
        dweight = None
        if ctx.needs_input_grad[1]:
            _, dweight, _ = _backward(dy, ddx, weight, ctx.stride, [False, True, False])
        return again, dweight, None, None
