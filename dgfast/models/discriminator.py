"""D, the discriminator: patch maps of an image at several scales (CVPR 2019, section 3.1, equation 7)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from dgfast.kernels import reflect

from .layers import SLOPE, gaussian, reflect_activated
from .penalised_convolution import penalised_convolution

Convolve = Callable[[nn.Conv2d, Tensor], Tensor]


class PatchBlock(nn.Module):
    """[3x3 LeakyReLU, 3x3] + x, without norm.

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.conv2 = nn.Conv2d(channels, channels, 3)

    def forward(self, x: Tensor, convolve: Convolve) -> Tensor:
        """Return the block's output.

        Args:
            x: [N, C, H, W].
            convolve: applies a convolution to a tensor.

        Returns:
            [N, C, H, W].
        """
        return x + convolve(self.conv2, reflect_activated(convolve(self.conv1, reflect(x, 1))))


class PatchCritic(nn.Module):
    """The discriminator of one scale: two halvings, residual blocks, a 1x1 convolution to one map.

    Args:
        width: channels of the first convolution.
        blocks: residual blocks.
    """

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

    def forward(self, x: Tensor, convolve: Convolve) -> Tensor:
        """Return the patch map.

        Args:
            x: images [N, 3, H, W], RGB, normalised.
            convolve: applies a convolution to a tensor.

        Returns:
            [N, 1, H/4, W/4], towards 1 for real patches and 0 for generated ones.
        """
        x = convolve(self.point, x)
        for conv in self.stem:
            x = convolve(conv, reflect_activated(x))  # type: ignore[arg-type]  # they are convolutions
        x = F.leaky_relu_(x, SLOPE)
        for block in self.blocks:
            x = block(x, convolve)
        return convolve(self.to_map, x)


class Discriminator(nn.Module):
    """D: one `PatchCritic` for each scale; each further scale sees the image average-pooled once more, 3x3, stride 2.

    Args:
        width: channels of the first convolution.
        blocks: residual blocks of each scale.
        scales: number of scales.
    """

    def __init__(self, width: int = 32, blocks: int = 4, scales: int = 3):
        super().__init__()
        self.scales = nn.ModuleList(PatchCritic(width, blocks) for _ in range(scales))
        gaussian(self)

    def forward(self, images: Tensor, penalised: bool = False) -> list[Tensor]:
        """Return the patch maps of all scales.

        Args:
            images: [N, 3, H, W], RGB, normalised.
            penalised: whether the maps' gradient at the images will be differentiated once more; the maps are the same.

        Returns:
            [N, 1, H/4, W/4], [N, 1, H/8, W/8], ..., the finest first.
        """
        convolve: Convolve = penalised_convolution if penalised else nn.Conv2d.__call__
        maps = []
        for index, critic in enumerate(self.scales):
            if index:
                images = F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)
            maps.append(critic(images, convolve))
        return maps
