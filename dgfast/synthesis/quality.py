"""How well people wear each other's clothes: distances of pictures from the truth, and what needs no learning.

Pictures are float arrays [N, H, W, 3], RGB in 0 .. 1. A region is a boolean array [N, H, W]: the pixels that count, of
all pictures together. docs/generation.md defines every measure in words.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .distances import Distances

TONE_CHANGE = 15.0  # L* by which clothes must become brighter or darker on average to count as such
TONES = ("dark to bright", "alike", "bright to dark")
STRIPES = 8  # of `stripes_by_hand`
_PAINTED, _MEASURED = (0.25, 0.75), (0.3125, 0.6875)  # by stripes: from where to where, as shares of the width

# Of CIE 1931 for sRGB and the white D65 (IEC 61966-2-1): RGB -> XYZ, each relative to white.
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.9505, 1.0, 1.089])


@dataclass(frozen=True)
class Scores:
    """Distances of pictures from the truth in one region; NaN where the region is empty."""

    l1: float
    """Mean absolute difference of RGB, 0 .. 1."""
    psnr: float
    """Peak signal-to-noise ratio of all pixels together, decibels; infinite for equal pictures."""
    ssim: float
    """Structural similarity, mean over the region of its map and the three channels, -1 .. 1."""
    colour: float
    """Mean CIE76 colour difference, 0 .. about 250."""
    chroma: float
    """The same without lightness: the distance in a* and b*."""
    mean_colour: float
    """CIE76 difference of the mean colours of a picture's region, mean over the pictures that have one."""
    perceptual_lite0: float
    """Mean of the map of `distances.compare`, 0 .. 4; NaN where the network is not installed."""

    def to_json(self) -> dict[str, float | None]:
        """The scores, rounded; None for what is infinite or has no value, which JSON has no form for."""
        return {name: round(value, 5) if math.isfinite(value) else None for name, value in vars(self).items()}


@dataclass(frozen=True)
class Differences:
    """What separates N pictures from their truths, pixel by pixel."""

    absolute: np.ndarray
    """[N, H, W]: mean absolute difference of RGB."""
    squared: np.ndarray
    """[N, H, W]: mean squared difference of RGB."""
    similarity: np.ndarray
    """[N, H, W]: SSIM."""
    lab: np.ndarray
    """[N, H, W, 3]: difference in CIELAB."""
    perceptual: np.ndarray
    """[N, H, W]: what a network sees of it; NaN where the network is not installed."""

    def within(self, region: np.ndarray) -> Scores:
        """The scores of a region.

        Args:
            region: [N, H, W] bool.
        """
        if not region.any():
            return Scores(*[math.nan] * 7)
        error = float(self.squared[region].mean())
        difference = self.lab[region]
        pixels = region.sum((1, 2))
        sums = np.where(region[..., None], self.lab, 0).sum((1, 2))
        means = sums[pixels > 0] / pixels[pixels > 0, None]
        return Scores(
            l1=float(self.absolute[region].mean()),
            psnr=-10 * math.log10(error) if error else math.inf,
            ssim=float(self.similarity[region].mean()),
            colour=float(np.linalg.norm(difference, axis=-1).mean()),
            chroma=float(np.linalg.norm(difference[:, 1:], axis=-1).mean()),
            mean_colour=float(np.linalg.norm(means, axis=-1).mean()),
            perceptual_lite0=float(self.perceptual[region].mean()),
        )


def differences(pictures: np.ndarray, truths: np.ndarray, perceptual: np.ndarray | None = None) -> Differences:
    """Compare pictures with their truths.

    Args:
        pictures: [N, H, W, 3] float, 0 .. 1.
        truths: [N, H, W, 3] float, 0 .. 1.
        perceptual: [N, H, W]: the map of `distances.compare`; None where its network is not installed.
    """
    difference = pictures - truths
    return Differences(
        absolute=np.abs(difference).mean(-1),
        squared=np.square(difference).mean(-1),
        similarity=structural_similarity(pictures, truths),
        lab=cielab(pictures) - cielab(truths),
        perceptual=np.full(pictures.shape[:3], np.nan) if perceptual is None else perceptual,
    )


def cielab(pictures: np.ndarray) -> np.ndarray:
    """L*, a* and b* of sRGB colours under D65.

    Args:
        pictures: [..., 3] float, 0 .. 1.
    Returns:
        [..., 3] float64.
    Source:
        CIE 15:2004, section 8.2.1; sRGB: IEC 61966-2-1.
    """
    rgb = np.clip(pictures.astype(np.float64), 0, 1)
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ _XYZ.T / _WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def structural_similarity(pictures: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """The map of SSIM with a Gaussian window of deviation 1.5 pixels; pictures are mirrored at their edges.

    Args:
        pictures: [N, H, W, 3] float, 0 .. 1.
        truths: [N, H, W, 3] float, 0 .. 1.
    Returns:
        [N, H, W], mean over the channels.
    Source:
        Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", TIP 2004.
    """
    # Imported here: it takes seconds, and other commands have no use for it.
    from torchmetrics.functional.image import structural_similarity_index_measure

    def planes(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2), np.float32))

    maps = [
        structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)[1]
        for a, b in zip(planes(pictures).split(16), planes(truths).split(16), strict=True)
    ]
    return torch.cat(maps).mean(1).numpy()


def floors(bodies: np.ndarray, clothes: np.ndarray, truths: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Pictures that need no learning; a model should be nearer to the truth than all of them.

    Args:
        bodies: [N, H, W, 3] float, 0 .. 1: the pictures that give the bodies.
        clothes: [N, H, W, 3] float, 0 .. 1: those that give the clothes.
        truths: [N, H, W, 3] float, 0 .. 1: the true results.
        masks: [N, H, W] bool: the clothes in `truths`.
    Returns:
        name -> [N, H, W, 3]: "body", as it is; "grey", the body without colour; "stripes", see `stripes_by_hand`; and
        "mean", the body with the mean of its true clothes where these are, which no model can know.
    """
    pixels = np.maximum(masks.sum((1, 2)), 1)
    means = np.where(masks[..., None], truths, 0).sum((1, 2)) / pixels[:, None]
    return {
        "body": bodies,
        "grey": np.repeat(bodies.mean(-1, keepdims=True), 3, -1),
        "stripes": stripes_by_hand(bodies, clothes),
        "mean": np.where(masks[..., None], means[:, None, None], bodies),
    }


def scale(truths: np.ndarray) -> dict[str, np.ndarray]:
    """Pictures that show what a figure means: right but blurred, and wrong in every respect.

    Args:
        truths: [N, H, W, 3] float, 0 .. 1: the true results.
    Returns:
        name -> [N, H, W, 3]: "blurred", the truths through a Gaussian of a deviation of 1/64 of their height; "noise",
        independent pixels, always the same.
    """
    from torchvision.transforms.functional import gaussian_blur  # not above: it loads torch's compiler

    deviation = truths.shape[1] / 64
    window = 2 * math.ceil(3 * deviation) + 1
    planes = torch.from_numpy(np.ascontiguousarray(truths.transpose(0, 3, 1, 2)))
    return {
        "blurred": gaussian_blur(planes, [window, window], [deviation, deviation]).permute(0, 2, 3, 1).numpy(),
        "noise": np.random.default_rng(0).random(truths.shape, np.float32),
    }


def stripes_by_hand(bodies: np.ndarray, clothes: np.ndarray) -> np.ndarray:
    """Dress people by a rule: the middle of each horizontal stripe takes the mean colour of the same stripe elsewhere.

    The body's own light and shade stay: the colour is multiplied by the grey value of the body over its mean in the
    stripe.

    Args:
        bodies: [N, H, W, 3] float, 0 .. 1.
        clothes: [N, H, W, 3] float, 0 .. 1.
    Returns:
        [N, H, W, 3].
    """
    dressed = bodies.copy()
    height, width = bodies.shape[1:3]
    painted = slice(*(round(share * width) for share in _PAINTED))
    middle = slice(*(round(share * width) for share in _MEASURED))
    edges = np.linspace(0, height, STRIPES + 1).astype(int)
    for top, bottom in zip(edges, edges[1:], strict=False):
        tone = bodies[:, top:bottom].mean(-1)
        tone /= np.maximum(tone[..., middle].mean((1, 2), keepdims=True), 0.05)
        colour = clothes[:, top:bottom, middle].mean((1, 2))[:, None, None]
        dressed[:, top:bottom, painted] = np.clip(colour * tone[..., painted, None], 0, 1)
    return dressed


def tone_changes(bodies: np.ndarray, truths: np.ndarray, masks: np.ndarray) -> list[str]:
    """Whether the body's own clothes are darker or brighter than those that it is given.

    Args:
        bodies: [N, H, W, 3] float, 0 .. 1.
        truths: [N, H, W, 3] float, 0 .. 1.
        masks: [N, H, W] bool: the clothes in `truths`.
    Returns:
        N of `TONES`: by the difference of the mean L* within the mask, which must exceed `TONE_CHANGE`.
    """
    lightness = cielab(truths)[..., 0] - cielab(bodies)[..., 0]
    change = np.where(masks, lightness, 0).sum((1, 2)) / np.maximum(masks.sum((1, 2)), 1)
    return [TONES[1 + (value < -TONE_CHANGE) - (value > TONE_CHANGE)] for value in change]


def diversity(pictures: np.ndarray) -> float:
    """How much the clothes change a picture: mean L1 between two pictures of one body in different clothes.

    Args:
        pictures: [B, C, H, W, 3] float, 0 .. 1: B bodies in C >= 2 clothes each.
    Returns:
        mean over bodies, pairs of clothes and pixels, 0 .. 1; 0: the clothes do not matter.
    """
    kinds = pictures.shape[1]
    # In ascending order the value of rank k stands above k others and below C - 1 - k, in as many differences.
    weights = 2 * np.arange(kinds) - (kinds - 1)
    means = np.sort(pictures, axis=1).mean((0, 2, 3, 4), dtype=np.float64)
    return float(weights @ means / (kinds * (kinds - 1) / 2))


@dataclass(frozen=True)
class Measured:
    """Scores of one kind of picture on a truth set."""

    regions: dict[str, Scores]
    """clothes, outside and whole."""
    patterns: dict[str, Scores]
    """Pattern of the upper garment -> scores of the clothes in those swaps."""
    tones: dict[str, Scores]
    """One of `TONES` -> scores of the clothes in those swaps."""

    def to_json(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Group -> kind -> name of the score -> its value, as JSON has a form for."""
        return {
            group: {kind: scores.to_json() for kind, scores in kinds.items()} for group, kinds in vars(self).items()
        }


def measure(
    pictures: np.ndarray,
    truths: np.ndarray,
    masks: np.ndarray,
    patterns: Sequence[str],
    tones: Sequence[str],
    perceptual: np.ndarray | None = None,
) -> Measured:
    """Score pictures against the truth, altogether and by kinds of swaps.

    Args:
        pictures: [N, H, W, 3] float, 0 .. 1.
        truths: [N, H, W, 3] float, 0 .. 1.
        masks: [N, H, W] bool: the clothes in `truths`.
        patterns: N names.
        tones: N names.
        perceptual: [N, H, W]: as in `differences`.
    """
    found = differences(pictures, truths, perceptual)

    def by(kinds: Sequence[str]) -> dict[str, Scores]:
        each = np.array(kinds)
        return {kind: found.within(masks & (each == kind)[:, None, None]) for kind in sorted(set(kinds))}

    regions = {"clothes": masks, "outside": ~masks, "whole": np.ones_like(masks)}
    return Measured({name: found.within(region) for name, region in regions.items()}, by(patterns), by(tones))


def chosen(patterns: Sequence[str], number: int) -> list[int]:
    """Some swaps to show, of as many patterns as there are.

    Args:
        patterns: of each swap.
        number: how many, at most.
    Returns:
        their indices, those of a pattern side by side.
    """
    turns = [patterns[:index].count(pattern) for index, pattern in enumerate(patterns)]
    first = sorted(range(len(patterns)), key=lambda index: (turns[index], index))[:number]
    return sorted(first, key=lambda index: (patterns[index], index))


def picture(columns: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Swaps side by side: from top to bottom body, clothes, ours, truth, and twice the error of ours in grey.

    Args:
        columns: for each swap its body, clothes, ours and truth, [H, W, 3] float, 0 .. 1, each.
    Returns:
        [5 (H + 2) + 2, columns (W + 2) + 2, 3] uint8.
    """
    cells = []
    for body, clothes, ours, truth in columns:
        error = np.abs(ours - truth).mean(-1, keepdims=True)
        column = np.stack([body, clothes, ours, truth, np.broadcast_to(2 * error, body.shape)])
        framed = np.pad(column, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=1)
        cells.append(framed.reshape(-1, *framed.shape[2:]))
    sheet = np.pad(np.concatenate(cells, 1), ((2, 0), (2, 0), (0, 0)), constant_values=1)
    return (np.clip(sheet, 0, 1) * 255 + 0.5).astype(np.uint8)


TITLES = {
    "ours": "DG-Net",
    "body": "copy the body",
    "grey": "grey body",
    "stripes": "stripe colours by hand",
    "mean": "mean of the true clothes",
    "blurred": "the truth, blurred",
    "noise": "noise",
    "truth": "the truth itself",
}


def table(
    measured: Mapping[str, Measured], owners: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]
) -> str:
    """The scores as text: all swaps; then the clothes by pattern and by change of tone.

    Args:
        measured: kind of picture, a key of `TITLES` -> its scores; "ours", "stripes" and "mean" are among them.
        owners: kind of picture -> "rank1" and "mAP" in percent.
        counts: pattern or tone -> number of swaps.
    """
    lines = [
        f"{'':<26}{'clothes':<45}{'outside':<20}{'whole':<14}{'owner found':>14}",
        f"{'':<24}{'L1':>6}{'PSNR':>7}{'SSIM':>7}{'colour':>8}{'chroma':>8}{'mean':>7}"
        f"{'L1':>8}{'PSNR':>6}{'SSIM':>6}{'L1':>8}{'PSNR':>6}{'SSIM':>6}{'Rank-1':>10}{'mAP':>6}",
    ]
    for name, title in TITLES.items():
        row = f"{title:<24}"
        if name in measured:
            c, o, w = (measured[name].regions[region] for region in ("clothes", "outside", "whole"))
            row += f"{c.l1:6.3f}{c.psnr:7.1f}{c.ssim:7.3f}{c.colour:8.1f}{c.chroma:8.1f}{c.mean_colour:7.1f}"
            row += "".join(f"{s.l1:8.3f}{s.psnr:6.1f}{s.ssim:6.2f}" for s in (o, w))
        if name in owners:
            row = f"{row:<107}{owners[name]['rank1']:10.1f}{owners[name]['mAP']:6.1f}"
        if name in measured or name in owners:
            lines.append(row.rstrip())
    compared = [measured[name] for name in ("ours", "stripes", "mean")]
    titles = "".join(f"{title:>8}" for title in ("L1", "SSIM", "colour", "chroma"))
    for heading, kinds in (("by pattern", sorted(compared[0].patterns)), ("by change of tone", TONES)):
        lines += ["", f"{'clothes, ' + heading:<32}{'DG-Net':<32}{'by hand':<32}mean of the true clothes"]
        lines.append(f"{'':<24}swaps{3 * titles}")
        for kind in kinds:
            if counts.get(kind):
                scores = ((m.patterns | m.tones)[kind] for m in compared)
                cells = "".join(f"{s.l1:8.3f}{s.ssim:8.3f}{s.colour:8.1f}{s.chroma:8.1f}" for s in scores)
                lines.append(f"{kind:<24}{counts[kind]:5d}{cells}")
    return "\n".join(lines)


def seen_table(titles: Mapping[str, str], measured: Mapping[str, Measured], distances: Distances | None) -> str:
    """What networks see, as text: how far each picture is from its truth, and all of them from real ones.

    Args:
        titles: kind of picture -> its name; "truth" stands for the real pictures.
        measured: kind -> its scores; empty where there is no truth.
        distances: of the distributions; None where there are none.
    Returns:
        "" where there is neither.
    """
    local = not all(math.isnan(each.regions["whole"].perceptual_lite0) for each in measured.values())
    if not local and distances is None:
        return ""
    lines = [f"{'':<26}perceptual-lite0"] if local else []
    heads = [f"{region:>8}" for region in ("clothes", "outside", "whole") if local]
    heads += [f"{name:>11}" for name in (distances.names if distances else ())]
    lines.append(f"{'':<24}{''.join(heads)}")
    for name, title in titles.items():
        row = f"{title:<24}"
        if local and (name in measured or name == "truth"):
            regions = measured[name].regions if name in measured else {}
            values = (regions[r].perceptual_lite0 if regions else 0.0 for r in ("clothes", "outside", "whole"))
            row += "".join(f"{value:8.3f}" for value in values)
        if distances and name in distances.frechet:
            row += f"{distances.frechet[name]:11.1f}{distances.kernel[name]:11.3f}"
        lines.append(row.rstrip())
    if distances:
        number = distances.pictures
        lines.append(f"{' and '.join(distances.names)}: {number} pictures against {number} real ones")
    return "\n".join(lines)


def short_table(measured: Mapping[str, Measured]) -> str:
    """The scores in three lines: our clothes beside those by hand.

    Args:
        measured: as in `table`.
    """
    lines = [f"{'':<24}{'clothes L1':>12}{'outside L1':>12}{'chroma':>8}"]
    for name in ("ours", "stripes"):
        clothes, outside = measured[name].regions["clothes"], measured[name].regions["outside"]
        lines.append(f"{TITLES[name]:<24}{clothes.l1:12.3f}{outside.l1:12.3f}{clothes.chroma:8.1f}")
    return "\n".join(lines)
