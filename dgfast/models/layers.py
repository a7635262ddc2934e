"""The building blocks that several networks share: convolution with a reflected border, residual blocks,
initialisation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dgfast.kernels import adain, reflect

SLOPE = 0.2  # LeakyReLU of every generative network


def reflect_activated(x: Tensor) -> Tensor:
    """[N, C, H, W], a convolution's output -> LeakyReLU of it, [N, C, H + 2, W + 2] with a reflected border.

    Activated behind the border and in place, the same values: of both steps only what the next convolution keeps is
    kept.
    """
    return F.leaky_relu_(reflect(x, 1), SLOPE)


class _Inside(torch.autograd.Function):
    """A slice's own backward fills a contiguous tensor, whatever the format of what it gets; padding keeps the
    format."""

    @staticmethod
    def forward(ctx, padded: Tensor) -> Tensor:
        return padded[..., 1:-1, 1:-1]

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return F.pad(grad, (1,) * 4)


def inside(padded: Tensor) -> Tensor:
    """[N, C, H + 2, W + 2] -> its view [N, C, H, W] without the border; channels-last in both directions."""
    return _Inside.apply(padded)


class InstanceNormBlock(nn.Module):
    """[3x3 IN LeakyReLU, 3x3 IN] + x, the residual block of E_s (method, section 1).

    Reads and returns tensors that already carry a reflected border of one pixel, so that no pass pads in between.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.conv2 = nn.Conv2d(channels, channels, 3)

    def forward(self, padded: Tensor, out_pad: int) -> Tensor:
        """padded: [N, C, H + 2, W + 2] -> [N, C, H + 2 out_pad, W + 2 out_pad]."""
        y = adain(self.conv1(padded), slope=SLOPE, pad=1)
        return adain(self.conv2(y), residual=inside(padded), pad=out_pad)


def through(block: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """The block's output; with `recompute` its activations are not kept but computed again in the backward pass."""
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False) if recompute else block(*inputs)


def kaiming_fan_in(module: nn.Module) -> None:
    """E_s and G: kaiming normal, fan in, gain for the rectifier; bias 0 (method, section 1)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, a=0, mode="fan_in")
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def gaussian(module: nn.Module, std: float = 0.02) -> None:
    """D: normal with deviation 0.02, bias 0 (method, section 1)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.normal_(0, std)
            layer.bias.zero_()
