"""The palette: the colours of the clothes in a picture, row by row from head to foot, and the light they are seen in.

Stripes of E_a's feature map tell what is in them: clothes, but also skin, the street and passers-by. With `--modulation
attention` G looks for the clothes first. A small network on E_a's feature map says how much each place tells of the
clothes (attention with one question: what is worn here?). By these weights the stripes of the appearance code are
pooled, and the pixels of each row are averaged. No mask is given: what is worth looking at is what foretells the
colours of another picture of the same person (training/palettes.py).

Cameras see the same clothes in different light. The edges of a picture show its scene, so a second small network learns
from the edges of both pictures how the colours of one look in the other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import SLOPE, places, surroundings
from .weave import THREADS, taken_off

ROW = 4  # pixels, height of a row of the palette; as the structure code's places
LIGHT = 36  # values that tell of a picture's light: nine of each of its four edges
EDGE = 10  # a picture's width is so many times that of an edge
_MIDDLE = 2.0  # by how much less, as a logit, the sides of a picture tell at the start: people stand in the middle
_HIDDEN = 32
_CLEAR = 0.25  # a difference of normalised RGB that tells
UNKNOWN = 2e-3  # what a pixel counts in a palette where no clothes are foretold; where they are for certain, 1


def light(images: Tensor) -> Tensor:
    """What the edges of pictures show: the scene, hardly ever the person.

    Args:
        images: [N, 3, H, W], normalised.
    Returns:
        [N, 36]: mean RGB of the left, right, upper and lower edge; their deviations; and how far red, green and blue
        are from each other there, which is little where a camera shows pale colours.
    """
    edge = max(1, images.shape[3] // EDGE)
    edges = (images[..., :edge], images[..., -edge:], images[..., :edge, :], images[..., -edge:, :])
    # Of an edge of one colour, the derivative of a deviation is not finite.
    deviations = [(x.var((2, 3), correction=0) + 1e-5).sqrt() for x in edges]
    vividness = [(x - x.roll(1, 1)).abs().mean((2, 3)) for x in edges]
    return torch.cat([x.mean((2, 3)) for x in edges] + deviations + vividness, 1)


def plane(colours: Tensor, height: int, width: int) -> Tensor:
    """Rows of colours as a picture.

    Args:
        colours: [N, 3, rows].
        height: H, pixels.
        width: W, pixels.
    Returns:
        [N, 3, H, W], straight lines between the middles of the rows.
    """
    rows = F.interpolate(colours, size=height, mode="linear", align_corners=False)
    return rows[..., None].expand(-1, -1, -1, width)


@torch.no_grad()
def worn(own: Tensor, others: Tensor, images: Tensor) -> Tensor:
    """Which pixels are of the clothes: those that a person's own palette foretells better than strangers' do.

    Of the scene and of skin, no palette knows more than another, so that their mean is 0.

    Args:
        own: [N, 3, rows], of another picture of the person in `images`.
        others: [K N, 3, rows], of strangers; n is for image n mod N.
        images: [N, 3, H, W].
    Returns:
        [N, 1, H, W], -1 .. 1, mean over the K strangers.
    """
    height, width = images.shape[2:]
    near = (images - plane(own, height, width)).abs().mean(1, keepdim=True)
    strangers = plane(others, height, width).unflatten(0, (-1, len(images)))
    far = (images - strangers).abs().mean(2, keepdim=True)
    # A difference counts by its sign more than by its size, or few odd pixels would tell more than all others.
    return ((far - near) / _CLEAR).tanh().mean(0)


def details(painted: Tensor) -> Tensor:
    """What is left of pictures when each pixel's surroundings are taken away: folds, seams and edges, but no tone.

    G knows the tones of other bodies' clothes only from the palette. What the structure code tells of tones is a guess
    about the body's own.

    Args:
        painted: [N, 3, H, W].
    Returns:
        [N, 3, H, W].
    """
    return painted - surroundings(painted, painted.shape[2] // 40)


class Palette(nn.Module):
    """Where the clothes are in a picture, and what they look like there.

    Args:
        depth: channels of E_a's feature map.
        parts: stripes of the appearance code.

    Attributes:
        code_length: values of the pooled code, `depth * parts`.
    """

    def __init__(self, depth: int, parts: int):
        super().__init__()
        self.parts, self.code_length = parts, depth * parts
        self.worn = nn.Sequential(
            nn.Conv2d(depth + 2, _HIDDEN, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(_HIDDEN, 1, 1),
        )
        self.log_reach = nn.Parameter(torch.tensor(0.0))  # log of how many rows up and down a row of colours looks
        self.relight = nn.Sequential(nn.Linear(2 * LIGHT, _HIDDEN), nn.LeakyReLU(SLOPE), nn.Linear(_HIDDEN, 6))

    def start(self) -> None:
        """Begin with weights that hang on the place alone, and with colours as they are."""
        for network in (self.worn, self.relight):
            for parameter in network[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(
        self, features: Tensor, images: Tensor, foretold: Tensor | None = None, opacity: Tensor | None = None
    ) -> Tensor:
        """Look at pictures of clothes.

        Args:
            features: [N, depth, h, w], E_a's feature map of the images.
            images: [N, 3, H, W], normalised, H and W divisible by 4.
            foretold: [N, 1, H, W], where G sees clothes in the images' structure, which is finer than the feature map;
                None: it does not say.
            opacity: [N, 1, H, W], 0 .. 1, how far clothes cover the pictures; None: not known, and no weave.
        Returns:
            [N, code_length + 36 + 3 H / 4 + 24 H]: the code, channel-major; the light; the colours of the rows, red
            first; the weave (weave.py).
        """
        with torch.autocast(images.device.type, enabled=False):
            dtype = self.log_reach.dtype  # whatever the networks around it compute in: colours are worth their bits
            features, images = features.to(dtype), images.to(dtype)
            n, _, h, w = features.shape
            grid = places(h, w, features)
            told = self.worn(torch.cat([F.group_norm(features, 1), grid.expand(n, -1, -1, -1)], 1))
            told = told - _MIDDLE * grid[1].square()
            weights = _weights(told)
            pooled = F.adaptive_avg_pool2d(weights * features, (self.parts, 1))
            code = pooled / (F.adaptive_avg_pool2d(weights, (self.parts, 1)) + 1e-6)
            share = torch.ones_like(images[:, :1]) if foretold is None else worth(foretold).to(dtype)
            pixels = F.avg_pool2d(torch.cat([share * images, share], 1), ROW)
            fine = _weights(F.interpolate(told, size=pixels.shape[2:], mode="bilinear", align_corners=False))
            sums = (fine * pixels).sum(3)
            number = torch.arange(pixels.shape[2], device=images.device, dtype=images.dtype)
            near = torch.exp((number[:, None] - number).div(self.log_reach.exp()).square().div(-2))
            sums = sums @ near
            colours = sums[:, :3] / (sums[:, 3:] + 1e-6)
            weave = images.new_zeros(n, images.shape[2] * THREADS)
            if opacity is not None:
                weave = taken_off(images, plane(colours, *images.shape[2:]), opacity.to(dtype)).flatten(1)
            return torch.cat([code.flatten(1), light(images), colours.flatten(1), weave], 1)

    def split(self, look: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The parts of what `forward` gave.

        Args:
            look: [N, code_length + 36 + 3 H / 4 + 24 H].
        Returns:
            code [N, code_length], light [N, 36], colours [N, 3, H / 4], weave [N, H, 24].
        """
        rows = (look.shape[1] - self.code_length - LIGHT) // (3 + THREADS * ROW)
        code, seen, colours, weave = look.split([self.code_length, LIGHT, 3 * rows, THREADS * ROW * rows], 1)
        return code, seen, colours.reshape(len(look), 3, rows), weave.reshape(len(look), ROW * rows, THREADS)

    def colours(self, look: Tensor, of_bodies: Tensor) -> Tensor:
        """The colours of clothes in the light of the bodies' pictures.

        Args:
            look: [N, code_length + 36 + 3 H / 4 + 24 H], what `forward` gave of the clothes.
            of_bodies: [M, 36], `light` of the bodies' pictures; clothes n go to body n mod M.
        Returns:
            [N, 3, H / 4], normalised RGB.
        """
        _, seen, colours, _ = self.split(look)
        with torch.autocast(look.device.type, enabled=False):
            wanted = torch.cat([of_bodies] * (len(look) // len(of_bodies)))
            gain, offset = self.relight(torch.cat([wanted, seen], 1))[..., None].chunk(2, 1)
            return colours * (1 + gain) + offset


def worth(foretold: Tensor) -> Tensor:
    """What each pixel counts in a palette, 0 .. some 1, without a gradient.

    Args:
        foretold: [N, 1, H, W], how much other clothes would change each pixel, as G says.
    Returns:
        [N, 1, H, W].
    """
    return foretold.detach().clamp(0).square() + UNKNOWN


def _weights(logits: Tensor) -> Tensor:
    """[N, 1, h, w] -> the same, above 0, the largest of a picture 1."""
    return (logits - logits.amax((2, 3), keepdim=True)).exp()
