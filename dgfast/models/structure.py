"""E_s, the structure encoder: a grey image to a structure code at a quarter of its size (paper, section 3.1)."""

import torch
from torch import Tensor, nn

from dgfast.kernels import adain, reflect

from .layers import SLOPE, InstanceNormBlock, kaiming_fan_in, through


def grey(images: Tensor) -> Tensor:
    """[N, 3, H, W] -> [N, 1, H, W], the mean over RGB: what E_s sees of an image."""
    return images.mean(1, keepdim=True)


class ContextBlock(nn.Module):
    """ASPP: one 1x1 branch and three dilated ones, fused by a 1x1 convolution (method, section 1).

    Instance norm everywhere; LeakyReLU between the two convolutions of a dilated branch alone.
    """

    DILATIONS = (3, 6, 9)

    def __init__(self, channels: int, branch: int):
        super().__init__()
        self.point = nn.Conv2d(channels, branch, 1)
        self.reduce = nn.ModuleList(nn.Conv2d(channels, branch, 1) for _ in self.DILATIONS)
        self.dilated = nn.ModuleList(nn.Conv2d(branch, branch, 3, dilation=d) for d in self.DILATIONS)
        self.fuse = nn.Conv2d(4 * branch, 4 * branch, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 4 branch, H, W]."""
        branches = [adain(self.point(x))]
        for reduce, dilated in zip(self.reduce, self.dilated, strict=True):
            y = adain(reduce(x), slope=SLOPE, pad=dilated.dilation[0])
            branches.append(adain(dilated(y)))
        return adain(self.fuse(torch.cat(branches, 1)))


class StructureEncoder(nn.Module):
    """E_s. Widths grow from `width`: width, 2 width, 2 width, 4 width; the code has 8 width channels.

    Args:
        width: channels of the first convolution (16 in the paper's model).
        blocks: residual blocks at a quarter of the image's size (4).
    Attributes:
        recompute: keep no activations of the residual blocks and the context; see `layers.through`.
    """

    recompute = False

    def __init__(self, width: int = 16, blocks: int = 4):
        super().__init__()
        self.stem = nn.ModuleList(
            [
                nn.Conv2d(1, width, 3, stride=2),
                nn.Conv2d(width, 2 * width, 3),
                nn.Conv2d(2 * width, 2 * width, 3),
                nn.Conv2d(2 * width, 4 * width, 3, stride=2),
            ]
        )
        self.blocks = nn.ModuleList(InstanceNormBlock(4 * width) for _ in range(blocks))
        self.context = ContextBlock(4 * width, 2 * width)
        self.channels = 8 * width
        kaiming_fan_in(self)

    def forward(self, x: Tensor) -> Tensor:
        """Grey images [N, 1, H, W], normalised, H and W divisible by 4 -> structure code [N, 8 width, H/4, W/4]."""
        x = reflect(x, 1)
        for conv in self.stem:
            x = adain(conv(x), slope=SLOPE, pad=1)
        # A frozen view's weights are gone by the time of its backward pass.
        recompute = self.recompute and self.context.fuse.weight.requires_grad
        for block in self.blocks:
            x = through(block, x, int(block is not self.blocks[-1]), recompute=recompute)
        return through(self.context, x, recompute=recompute)
