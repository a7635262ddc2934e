"""The building blocks that several networks share: convolution with a reflected border, residual blocks, initialisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgfast.kernels import adain

SLOPE = 0.2  # LeakyReLU of every generative network


def reflect(x: Tensor, pad: int) -> Tensor:
    """[N, C, H, W] -> [N, C, H + 2 pad, W + 2 pad] with a reflected border; on a GPU the result is channels-last.

    There the padding of two dimensions answers in contiguous format whatever it is given. Rows and columns of the channels-last
    memory are the first two of three dimensions: padded as such, the format stays.
    """
    if not x.is_cuda:
        return F.pad(x, (pad,) * 4, mode="reflect")
    volume = x.permute(0, 2, 3, 1).unsqueeze(0)  # [1, N, H, W, C]
    return F.pad(volume, (0, 0, pad, pad, pad, pad), mode="reflect").squeeze(0).permute(0, 3, 1, 2)


class _Inside(torch.autograd.Function):
    """A slice's own backward fills a contiguous tensor, whatever the format of what it gets; padding keeps the format."""

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
