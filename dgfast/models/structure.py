"""E_s, the structure encoder: a grey image to a structure code at a quarter of its size (CVPR 2019, section 3.1)."""

import torch
from torch import Tensor, nn

from dgfast.kernels import adain, reflect

from .blank import blank, untaught
from .layers import SLOPE, InstanceNormBlock, kaiming_fan_in, through


def grey(images: Tensor) -> Tensor:
    """Return what E_s sees of an image: the mean over RGB.

    Args:
        images: [N, 3, H, W].

    Returns:
        [N, 1, H, W].
    """
    return images.mean(1, keepdim=True)


class ContextBlock(nn.Module):
    """Atrous spatial pyramid pooling: one 1x1 branch and three dilated ones, fused by a 1x1 convolution.

    Instance norm follows every convolution; LeakyReLU stands only between the two convolutions of a dilated branch.

    Args:
        channels: C, of the input.
        branch: channels of each branch.

    Source: docs/method.md, section 1; the pooling itself: Chen et al., "DeepLab", TPAMI 2018.
    """

    DILATIONS = (3, 6, 9)

    def __init__(self, channels: int, branch: int):
        super().__init__()
        self.point = nn.Conv2d(channels, branch, 1)
        self.reduce = nn.ModuleList(nn.Conv2d(channels, branch, 1) for _ in self.DILATIONS)
        self.dilated = nn.ModuleList(nn.Conv2d(branch, branch, 3, dilation=d) for d in self.DILATIONS)
        self.fuse = nn.Conv2d(4 * branch, 4 * branch, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the fused branches.

        Args:
            x: [N, C, H, W].

        Returns:
            [N, 4 branch, H, W].
        """
        branches = [adain(self.point(x))]
        for reduce, dilated, dilation in zip(self.reduce, self.dilated, self.DILATIONS, strict=True):
            y = adain(reduce(x), slope=SLOPE, pad=dilation)
            branches.append(adain(dilated(y)))
        return adain(self.fuse(torch.cat(branches, 1)))


class StructureEncoder(nn.Module):
    """E_s: four convolutions (width, 2 width, 2 width, 4 width channels), residual blocks, `ContextBlock`.

    Args:
        width: channels of the first convolution.
        blocks: residual blocks at a quarter of the image's size.

    Attributes:
        channels: of the structure code, 8 width.
        recompute: keep no activations of the residual blocks and the context, compute them again in the backward pass;
            see `layers.through`.
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
        """Return the structure code.

        Args:
            x: grey images [N, 1, H, W], normalised, H and W divisible by 4; blank ones give no gradients (blank.py).

        Returns:
            [N, 8 width, H/4, W/4].
        """
        images, x = x, reflect(x, 1)
        for conv in self.stem:
            x = adain(conv(x), slope=SLOPE, pad=1)
        # A frozen network runs on detached weights, which stand in for its own during this call alone. Computed again
        # in the backward pass, the activations would come from its own weights, which take gradients.
        recompute = self.recompute and self.context.fuse.weight.requires_grad
        for block in self.blocks:
            x = through(block, x, int(block is not self.blocks[-1]), recompute=recompute)
        code = through(self.context, x, recompute=recompute)
        if not code.requires_grad:
            return code
        # What is in an image may get lost when a layer rounds to fewer bits; then the code tells.
        return untaught(code, blank(images) | blank(code))
