"""The building blocks that several networks share: convolution with a reflected border, residual blocks, initialisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgfast.kernels import adain

SLOPE = 0.2  # LeakyReLU of every generative network


def reflect(x: Tensor, pad: int) -> Tensor:
    """[N, C, H, W] -> [N, C, H + 2 pad, W + 2 pad] with a reflected border."""
    return F.pad(x, (pad,) * 4, mode="reflect") if pad else x


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
        return adain(self.conv2(y), residual=padded[..., 1:-1, 1:-1], pad=out_pad)


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
