"""Images that show nothing: E_s and G learn nothing from them, and pass no gradient through them.

Instance norm divides by the root of a plane's variance + 1e-5, so it magnifies the gradient of a plane that has no
variance 316 times. An image of one colour has such planes in every layer. Through E_s alone these factors multiply to
more than fp32 can hold, and G's follow; yet there is nothing to learn, since the code of such an image is 0 whatever
the weights are. Its gradient is therefore left out where it would enter E_s and G, behind their last layers. Samples do
not meet in either network, so all other gradients stay as they are, to the bit.
"""

from typing import Any

import torch
from torch import Tensor

# Largest deviation within a plane of a sample that counts as blank. In normalised images, it is a tenth of one of 255
# grey values, as `_FLAT` of data/datasets/check.py; the planes of a structure code have deviation 1. What deviates by s
# gives gradients of 1 / s to E_s's input, so this bounds them, too: to some 600 times those of an ordinary image.
BLANK = 1.7e-3


@torch.no_grad()
def blank(x: Tensor) -> Tensor:
    """Which samples show nothing.

    Args:
        x: [N, C, H, W].
    Returns:
        [N, 1, 1, 1] bool: whether no plane of the sample varies by more than `BLANK`.
    """
    return x.std((2, 3), correction=0, keepdim=True).amax(1, keepdim=True) <= BLANK


class _Untaught(torch.autograd.Function):
    """The tensor itself; for some of the samples its gradient is 0, even where it came as infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, samples: Tensor) -> Tensor:
        ctx.save_for_backward(samples)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (samples,) = ctx.saved_tensors
        # masked_fill would answer in contiguous format.
        return torch.where(samples, 0, grad), None


def untaught(x: Tensor, samples: Tensor) -> Tensor:
    """Let the gradient of some samples not pass.

    Args:
        x: [N, C, H, W], what a network returns.
        samples: [N, 1, 1, 1] bool, those from which the network must not learn.
    Returns:
        x.
    """
    return _Untaught.apply(x, samples)
