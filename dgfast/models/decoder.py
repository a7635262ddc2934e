"""G, the decoder: a structure code and an appearance code to an image (CVPR 2019, section 3.1, equation 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgfast.kernels import adain, layer_norm, reflect

from .blank import blank, untaught
from .layers import SLOPE, inside, kaiming_fan_in, places, reflect_activated, through
from .palette import Palette, details, plane
from .upsampled_convolution import UpsampledConvolution

_PLACE_HIDDEN = 32  # width of the network that tells from a place alone whether clothes are there


class InjectedBlock(nn.Module):
    """[3x3 AdaIN LeakyReLU, 3x3 AdaIN] + x: the residual block into which the appearance is injected.

    One part of the appearance code feeds two small networks. One gives the scales, the other the biases, a value for a
    whole plane: of the first AdaIN in its first half, of the second AdaIN in its second half.

    Args:
        channels: C, of the structure code.
        part: values of the part of the appearance code.
        hidden: width of the two small networks.
    """

    def __init__(self, channels: int, part: int, hidden: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.conv2 = nn.Conv2d(channels, channels, 3)
        self.scale = _mlp(part, hidden, 2 * channels)
        self.bias = _mlp(part, hidden, 2 * channels)

    def modulation(self, part: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scale and bias of the first AdaIN, then of the second, [N, C] each.

        Args:
            part: [N, part].
        """
        (scale1, scale2), (bias1, bias2) = self.scale(part).chunk(2, 1), self.bias(part).chunk(2, 1)
        return scale1, bias1, scale2, bias2

    def forward(self, padded: Tensor, part: Tensor, out_pad: int) -> Tensor:
        """Inject part n of the appearance into input n mod M.

        So the first convolution is that of M inputs, however many appearances each of them is given.

        Args:
            padded: [M, C, H + 2, W + 2], with a reflected border of one pixel.
            part: [N, ...], as `modulation` takes it; N a multiple of M.
            out_pad: width of the output's reflected border, pixels.

        Returns:
            [N, C, H + 2 out_pad, W + 2 out_pad].
        """
        times = len(part) // len(padded)
        scale1, bias1, scale2, bias2 = self.modulation(part)
        y = adain(_repeat(self.conv1(padded), times), scale1, bias1, slope=SLOPE, pad=1)
        return adain(self.conv2(y), scale2, bias2, residual=inside(_repeat(padded, times)), pad=out_pad)


class StripedBlock(InjectedBlock):
    """The same block with scales and biases that follow the height: a pair for each stripe of the appearance code.

    One small network reads every stripe, so that a colour is painted alike wherever it is worn.

    Args:
        channels: C, of the structure code.
        depth: values of a stripe of the appearance code.
        hidden: width of the small network.
    """

    def __init__(self, channels: int, depth: int, hidden: int):
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.conv2 = nn.Conv2d(channels, channels, 3)
        self.paint = nn.Sequential(nn.Linear(depth, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, 4 * channels))

    def modulation(self, part: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scale and bias of the first AdaIN, then of the second, [N, S, C] each.

        Args:
            part: [N, S, depth], the stripes of the code from top to bottom.
        """
        scale1, bias1, scale2, bias2 = self.paint(part).chunk(4, 2)
        return 1 + scale1, bias1, 1 + scale2, bias2


class UpsampleBlock(nn.Module):
    """Nearest upsampling by 2, 5x5 convolution that halves the channels, layer norm, LeakyReLU.

    Args:
        channels: C, of the input.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = UpsampledConvolution(channels, channels // 2)
        # The public reference system draws the gain from U(0, 1); see docs/method.md, section 1.
        self.gamma = nn.Parameter(torch.rand(channels // 2))
        self.beta = nn.Parameter(torch.zeros(channels // 2))

    def forward(self, x: Tensor, out_pad: int) -> Tensor:
        """Return the enlarged activations.

        Args:
            x: [N, C, H, W].
            out_pad: width of the output's reflected border, pixels.

        Returns:
            [N, C/2, 2H + 2 out_pad, 2W + 2 out_pad].
        """
        return layer_norm(self.conv(x), self.gamma, self.beta, slope=SLOPE, pad=out_pad)


class ClothesMask(nn.Module):
    """Where a body wears clothes, whatever it is dressed in.

    The sum of two answers. One comes from the place in the picture alone, since boxes have people in their middle; the
    other from the structure. Without the first, the mask is much worse on scenes that it has not seen
    (docs/generation.md).

    Args:
        channels: C, of the structure code.
    """

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.place = nn.Sequential(
            nn.Conv2d(3, _PLACE_HIDDEN, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(_PLACE_HIDDEN, _PLACE_HIDDEN, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(_PLACE_HIDDEN, 1, 1),
        )
        self.upsample = UpsampleBlock(channels)
        self.refine = nn.Conv2d(half, half, 3)
        self.to_mask = nn.Conv2d(half, 4, 3)  # four values a place, which become its 2x2 pixels

    def start(self) -> None:
        """Begin with a mask of 0."""
        for layer in (self.place[-1], self.to_mask):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, structure: Tensor) -> Tensor:
        """Return the mask [M, 1, H, W], some -1 .. 1.

        Args:
            structure: [M, C, H/4, W/4].
        """
        height, width = structure.shape[2:]
        grid = places(height, width, self.to_mask.weight)
        by_place = self.place(torch.cat([grid, grid[1:].square()])[None])
        x = reflect_activated(self.refine(self.upsample(structure, 1)))
        by_structure = F.pixel_shuffle(self.to_mask(x), 2)
        return by_structure + F.interpolate(by_place, size=by_structure.shape[2:], mode="bilinear", align_corners=False)


class Decoder(nn.Module):
    """G(s, f): residual blocks with injected appearance, two upsampling blocks, three convolutions.

    Args:
        channels: of the structure code.
        code: length of the appearance code.
        blocks: residual blocks.
        hidden: width of the networks that turn a part of the code into scales and biases.
        stripes: 0: the code is cut into as many consecutive parts as there are blocks, and each block has its own part
            (the paper's). Otherwise the code's horizontal stripes: every block reads them all, each at its height.
        foretells: whether images have a fourth channel, which says how much other clothes would change each pixel; see
            background.py.
        sees: channels of E_a's feature map; G looks for the clothes in it, see palette.py. 0: it has the code alone.

    Attributes:
        recompute: keep no activations of the blocks, compute them again in the backward pass; see `layers.through`.

    Raises:
        ValueError: the code does not divide into the blocks or stripes.
    """

    recompute = False

    def __init__(
        self,
        channels: int = 128,
        code: int = 8192,
        blocks: int = 4,
        hidden: int = 512,
        stripes: int = 0,
        foretells: bool = False,
        sees: int = 0,
    ):
        super().__init__()
        if code % (stripes or blocks):
            what = f"{stripes} stripes" if stripes else f"{blocks} blocks"
            raise ValueError(f"an appearance code of {code} values does not divide into {what}")
        self.stripes = stripes
        if stripes:
            self.blocks = nn.ModuleList(StripedBlock(channels, code // stripes, hidden) for _ in range(blocks))
        else:
            self.blocks = nn.ModuleList(InjectedBlock(channels, code // blocks, hidden) for _ in range(blocks))
        self.upsample = nn.ModuleList([UpsampleBlock(channels), UpsampleBlock(channels // 2)])
        width = channels // 4
        self.refine = nn.ModuleList([nn.Conv2d(width + 3 * bool(sees), width, 3), nn.Conv2d(width, width, 3)])
        self.to_rgb = nn.Conv2d(width, 3 + (foretells and not sees), 1)
        self.mask = ClothesMask(channels) if foretells and sees else None
        self.palette = Palette(sees, stripes) if sees else None
        kaiming_fan_in(self)
        if self.mask:
            self.mask.start()
        if self.palette:
            self.palette.start()
            with torch.no_grad():
                self.to_rgb.weight.mul_(0.1)  # what G adds to the palette's colours begins small

    def forward(self, structure: Tensor, look: Tensor, light: Tensor | None = None) -> Tensor:
        """Paint image n: structure n mod M in appearance n.

        Args:
            structure: [M, channels, H/4, W/4]; pictures of blank ones give no gradients (blank.py).
            look: [N, code], the appearance code, channel-major, N a multiple of M; what `Palette` makes of a picture
                where G `sees`.
            light: [M, 36], `palette.light` of the bodies' pictures, where G `sees`.

        Returns:
            Images [N, 3, H, W], RGB, normalised; no activation bounds them. [N, 4, H, W] where G foretells changes.

        Raises:
            ValueError: G `sees`, and is not told the light.
        """
        code, colours = look, None
        if self.palette is not None:
            if light is None:
                raise ValueError("G looks for the clothes: it needs the light of the bodies' pictures, too")
            # The palette learns from what it foretells alone. Through G's picture it would also learn to make up for
            # the details that G still gets wrong (docs/generation.md).
            colours = self.palette.colours(look, light).detach()
            code = self.palette.split(look)[0]
        x = reflect(structure, 1)
        if self.stripes:
            parts = [code.view(len(code), -1, self.stripes).transpose(1, 2)] * len(self.blocks)
        else:
            parts = list(code.chunk(len(self.blocks), 1))
        for block, part in zip(self.blocks, parts, strict=True):
            x = through(block, x, part, int(block is not self.blocks[-1]), recompute=self.recompute)
        for upsample in self.upsample:
            x = through(upsample, x, int(upsample is self.upsample[-1]), recompute=self.recompute)
        rows = None
        if colours is None:
            x = self.refine[0](x)
        else:
            height, width = (size - 2 for size in x.shape[2:])
            rows = plane(colours, height, width).to(x.dtype)
            x = _beside(self.refine[0], x, rows[..., 0])  # type: ignore[arg-type]  # a convolution
        x = reflect_activated(x)
        painted = self.to_rgb(F.leaky_relu_(self.refine[1](x), SLOPE))
        if rows is not None:
            painted = rows + details(painted)
        if self.mask is not None:
            painted = torch.cat([painted, _repeat(self.mask(structure), len(painted) // len(structure))], 1)
        if not painted.requires_grad:
            return painted
        return untaught(painted, _repeat(blank(structure), len(code) // len(structure)))


def _beside(conv: nn.Conv2d, x: Tensor, rows: Tensor) -> Tensor:
    """What a 3x3 convolution makes of x and three further channels, which hold rows of colours.

    These channels do not change from left to right. So their part of the result is a convolution along the height, by
    the weights summed from left to right, which takes next to no time; and x need not be copied into a larger tensor.

    Args:
        conv: of C + 3 channels.
        x: [N, C, H + 2, W + 2], with a reflected border of one pixel.
        rows: [N, 3, H].

    Returns:
        [N, ..., H, W].
    """
    depth = x.shape[1]
    of_rows = F.conv1d(F.pad(rows, (1, 1), mode="reflect"), conv.weight[:, depth:].sum(3), conv.bias)
    return F.conv2d(x, conv.weight[:, :depth]) + of_rows[..., None]


def _repeat(x: Tensor, times: int) -> Tensor:
    """[M, ...] -> [times M, ...] in the memory format of x, which Tensor.repeat would not keep."""
    return torch.cat([x] * times) if times > 1 else x


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """[N, inputs] -> [N, outputs]: three linear layers, LeakyReLU between them."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Linear(hidden, outputs),
    )
