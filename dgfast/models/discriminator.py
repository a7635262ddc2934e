"""D, the discriminator: patch maps of an image at several scales (paper, section 3.1, equation 5)."""

import torch.nn.functional as F
from torch import Tensor, nn

from dgfast.kernels import reflect

from .layers import SLOPE, gaussian, reflect_activated


class PatchBlock(nn.Module):
    """[3x3 LeakyReLU, 3x3] + x, without norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.conv2 = nn.Conv2d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return x + self.conv2(reflect_activated(self.conv1(reflect(x, 1))))


class PatchCritic(nn.Module):
    """The discriminator of one scale: two halvings, `blocks` residual blocks, a 1x1 convolution to one map."""

    def __init__(self, width: int, blocks: int):
        super().__init__()
        self.point = nn.Conv2d(3, width, 1)
        self.stem = nn.ModuleList(
            [
                nn.Conv2d(width, width, 3),
                nn.Conv2d(width, width, 3, stride=2),
                nn.Conv2d(width, width, 3),
                nn.Conv2d(width, 2 * width, 3, stride=2),
            ]
        )
        self.blocks = nn.ModuleList(PatchBlock(2 * width) for _ in range(blocks))
        self.to_map = nn.Conv2d(2 * width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 1, H/4, W/4]."""
        x = self.point(x)
        for conv in self.stem:
            x = conv(reflect_activated(x))
        x = F.leaky_relu_(x, SLOPE)
        for block in self.blocks:
            x = block(x)
        return self.to_map(x)


class Discriminator(nn.Module):
    """D. Each further scale sees the image average-pooled 3x3 with stride 2 once more.

    Args:
        width: channels of the first convolution (32).
        blocks: residual blocks a scale (4).
        scales: number of scales (3).
    """

    def __init__(self, width: int = 32, blocks: int = 4, scales: int = 3):
        super().__init__()
        self.scales = nn.ModuleList(PatchCritic(width, blocks) for _ in range(scales))
        gaussian(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> patch maps [N, 1, H/4, W/4], [N, 1, H/8, W/8], ..., finest first."""
        maps = []
        for index, critic in enumerate(self.scales):
            if index:
                images = F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)
            maps.append(critic(images))
        return maps
