"""G, the decoder: a structure code and an appearance code to an image (paper, section 3.1, equation 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgfast.kernels import adain, layer_norm, reflect

from .layers import SLOPE, inside, kaiming_fan_in, reflect_activated, through
from .upsampled_convolution import UpsampledConvolution


class InjectedBlock(nn.Module):
    """[3x3 AdaIN LeakyReLU, 3x3 AdaIN] + x: the residual block into which the appearance is injected.

    One part of the appearance code feeds two small networks: one gives the scales, one the biases; the first half of
    each belongs to the first AdaIN, the second half to the second. Reads a tensor that carries a reflected border of
    one pixel.
    """

    def __init__(self, channels: int, part: int, hidden: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.conv2 = nn.Conv2d(channels, channels, 3)
        self.scale = _mlp(part, hidden, 2 * channels)
        self.bias = _mlp(part, hidden, 2 * channels)

    def forward(self, padded: Tensor, part: Tensor, out_pad: int) -> Tensor:
        """padded: [M, C, H + 2, W + 2]; part: [N, part], N a multiple of M -> [N, C, H + 2 out_pad, W + 2 out_pad].

        Input n mod M takes part n: the first convolution is that of M inputs, however many appearances each is given.
        """
        times = len(part) // len(padded)
        scale1, scale2 = self.scale(part).chunk(2, 1)
        bias1, bias2 = self.bias(part).chunk(2, 1)
        y = adain(_repeat(self.conv1(padded), times), scale1, bias1, slope=SLOPE, pad=1)
        return adain(self.conv2(y), scale2, bias2, residual=inside(_repeat(padded, times)), pad=out_pad)


class UpsampleBlock(nn.Module):
    """Nearest upsampling by 2, 5x5 convolution that halves the channels, layer norm, LeakyReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = UpsampledConvolution(channels, channels // 2)
        # gamma is drawn from U(0, 1), as in the reference (method, section 1)
        self.gamma = nn.Parameter(torch.rand(channels // 2))
        self.beta = nn.Parameter(torch.zeros(channels // 2))

    def forward(self, x: Tensor, out_pad: int) -> Tensor:
        """[N, C, H, W] -> [N, C/2, 2H + 2 out_pad, 2W + 2 out_pad]."""
        return layer_norm(self.conv(x), self.gamma, self.beta, slope=SLOPE, pad=out_pad)


class Decoder(nn.Module):
    """G(s, f).

    Args:
        channels: of the structure code (128).
        code: length of the appearance code (8192); cut into as many consecutive parts as there are blocks.
        blocks: residual blocks, each with its own part of the code (4).
        hidden: width of the networks that turn a part into scales and biases (512).
    Attributes:
        recompute: keep no activations of the blocks; see `layers.through`.
    Raises:
        ValueError: the code does not divide into the blocks.
    """

    recompute = False

    def __init__(self, channels: int = 128, code: int = 8192, blocks: int = 4, hidden: int = 512):
        super().__init__()
        if code % blocks:
            raise ValueError(f"an appearance code of {code} values does not divide into {blocks} blocks")
        self.blocks = nn.ModuleList(InjectedBlock(channels, code // blocks, hidden) for _ in range(blocks))
        self.upsample = nn.ModuleList([UpsampleBlock(channels), UpsampleBlock(channels // 2)])
        width = channels // 4
        self.refine = nn.ModuleList([nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 3)])
        self.to_rgb = nn.Conv2d(width, 3, 1)
        kaiming_fan_in(self)

    def forward(self, structure: Tensor, code: Tensor) -> Tensor:
        """structure: [M, channels, H/4, W/4]; code: [N, code], N a multiple of M -> images [N, 3, H, W], normalised, no
        activation.

        Image n shows structure n mod M in appearance n.
        """
        x = reflect(structure, 1)
        parts = code.chunk(len(self.blocks), 1)
        for block, part in zip(self.blocks, parts, strict=True):
            x = through(block, x, part, int(block is not self.blocks[-1]), recompute=self.recompute)
        for upsample in self.upsample:
            x = through(upsample, x, int(upsample is self.upsample[-1]), recompute=self.recompute)
        x = reflect_activated(self.refine[0](x))
        return self.to_rgb(F.leaky_relu_(self.refine[1](x), SLOPE))


def _repeat(x: Tensor, times: int) -> Tensor:
    """[M, ...] -> [times M, ...]; unlike Tensor.repeat, in the memory format of x."""
    return torch.cat([x] * times) if times > 1 else x


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Linear(hidden, outputs),
    )
