"""Distances that a network sees: of a picture from its truth, and of many pictures from real ones.

Pictures are float arrays [N, H, W, 3], RGB in 0 .. 1, as in quality.py.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .lite0 import Lite0

BATCH = 32  # pictures per forward pass
LITE0, INCEPTION = ("FD-lite0", "KD-lite0"), ("FID", "KID")  # names of the distances in their features
FEWEST = 4  # pictures that can be halved so that each half has a spread


@dataclass(frozen=True)
class Distances:
    """Of the distributions of generated and real pictures, in a network's features; see `between_halves`."""

    names: tuple[str, str]
    """Of the Frechet and the kernel distance. "FID" and "KID" are those of Inception's features alone."""
    pictures: int
    """In each of the two sets that are compared: half of what there is."""
    frechet: dict[str, float]
    """Kind of picture -> Frechet distance, at least 0; with few pictures far too high."""
    kernel: dict[str, float]
    """Kind of picture -> kernel distance, about 0 for real pictures, however few there are."""

    def to_json(self) -> dict[str, Any]:
        """Number of pictures in a half; name of the distance -> kind -> value."""
        values = (self.frechet, self.kernel)
        rounded = ({kind: round(value, 5) for kind, value in each.items()} for each in values)
        return {"pictures": self.pictures} | dict(zip(self.names, rounded, strict=True))


@dataclass(frozen=True)
class Eyes:
    """The networks that look at pictures."""

    lite0: Lite0 | None
    """From `lite0.installed`."""
    inception: nn.Module | None = None
    """From `inception.open_inception`; its features come before those of `lite0`."""

    def look(
        self, pictures: Mapping[str, np.ndarray], truths: np.ndarray, *, progress: bool = False
    ) -> tuple[dict[str, np.ndarray], Distances | None]:
        """All that the networks say.

        Args:
            pictures: kind -> [N, H, W, 3] float, 0 .. 1.
            truths: [N, H, W, 3] float, 0 .. 1: what each picture should be; the real pictures.
            progress: show a progress bar on stderr.
        Returns:
            what `compare` and `between_halves` give, the latter for "truth", too; nothing and None without networks.
        """
        maps: dict[str, np.ndarray] = {}
        distances = None
        if self.lite0:
            maps, features = compare(self.lite0, pictures, truths, progress=progress)
            distances = between_halves(LITE0, features, "truth")
        if self.inception:
            features = features_of(self.inception, {"truth": truths, **pictures}, progress=progress)
            distances = between_halves(INCEPTION, features, "truth")
        return maps, distances


def compare(
    network: Lite0, pictures: Mapping[str, np.ndarray], truths: np.ndarray, *, progress: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    """Look at pictures and at their truths, once each.

    In the output of every stage, the channels of a pixel are made a vector of length 1. The squared distance of two
    such vectors, 0 .. 4, is brought to the size of the picture; the map is the mean over the stages.

    Args:
        network: from `lite0.installed`.
        pictures: kind -> [N, H, W, 3] float, 0 .. 1.
        truths: [N, H, W, 3] float, 0 .. 1.
        progress: show a progress bar on stderr.
    Returns:
        kind -> perceptual distance of each pixel, [N, H, W]; and kind -> features [N, F], also of "truth".
    Source:
        after Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, without
        its learned weights of the channels.
    """
    maps: dict[str, list[np.ndarray]] = {kind: [] for kind in pictures}
    features: dict[str, list[Tensor]] = {kind: [] for kind in ("truth", *pictures)}
    with tqdm(total=len(truths) * len(features), unit="picture", disable=not progress, leave=False) as bar:
        for first in range(0, len(truths), BATCH):
            part = slice(first, first + BATCH)
            target, feature = network(_planes(truths[part], network))
            features["truth"].append(feature.cpu())
            for kind, images in pictures.items():
                seen, feature = network(_planes(images[part], network))
                features[kind].append(feature.cpu())
                maps[kind].append(_perceptual(seen, target, truths.shape[1:3]).cpu().numpy())
                bar.update(len(feature))
            bar.update(len(feature))
    return (
        {kind: np.concatenate(parts) for kind, parts in maps.items()},
        {kind: torch.cat(parts) for kind, parts in features.items()},
    )


@torch.inference_mode()
def features_of(network: nn.Module, pictures: Mapping[str, np.ndarray], *, progress: bool = False) -> dict[str, Tensor]:
    """Look at pictures with another network.

    Args:
        network: from [N, 3, H, W] uint8 to a tuple that ends with the features.
        pictures: kind -> [N, H, W, 3] float, 0 .. 1.
        progress: show a progress bar on stderr.
    Returns:
        kind -> features, [N, F].
    """
    features: dict[str, list[Tensor]] = {kind: [] for kind in pictures}
    number = sum(map(len, pictures.values()))
    with tqdm(total=number, unit="picture", disable=not progress, leave=False) as bar:
        for kind, images in pictures.items():
            for first in range(0, len(images), BATCH):
                features[kind].append(network(_planes(images[first : first + BATCH], network))[-1].cpu())
                bar.update(len(features[kind][-1]))
    return {kind: torch.cat(parts) for kind, parts in features.items()}


def between_halves(names: tuple[str, str], features: Mapping[str, Tensor], real: str) -> Distances | None:
    """How far kinds of pictures are from the real ones.

    A generated picture shares the scene with one real picture, its partner, and sets of partners would seem nearer than
    they are. So the generated pictures of every other pair are compared with the real ones of all other pairs, and
    the other way round; the mean of both counts. For the real pictures this is the distance of one half from the
    other.

    Args:
        names: of the Frechet and the kernel distance.
        features: kind -> [N, F]; the pictures of a row are partners.
        real: the kind of the real ones.
    Returns:
        the distances of all kinds; None of fewer than `FEWEST` pairs.
    """
    half = len(features[real]) // 2
    if 2 * half < FEWEST:
        return None
    frechet, kernel = {}, {}
    for kind, made in features.items():
        pairs = [(features[real][a : 2 * half : 2], made[1 - a : 2 * half : 2]) for a in (0, 1)]
        frechet[kind] = math.fsum(frechet_distance(*pair) for pair in pairs) / 2
        kernel[kind] = math.fsum(kernel_distance(*pair) for pair in pairs) / 2
    return Distances(names, half, frechet, kernel)


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """Squared Frechet distance of two normal distributions with the means and covariances of the features.

    Args:
        real: [N, F], N at least 2.
        made: [M, F], M at least 2.
    Source:
        Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017.
    """
    # Imported here, as in `kernel_distance`: it takes seconds, and other commands have no use for it.
    from torchmetrics.image.fid import FrechetInceptionDistance

    # Few pictures span few of the many dimensions. In coordinates of that span the distance is the same, and the
    # eigenvalues are found in milliseconds instead of seconds.
    both = torch.cat([real, made]).double()
    both -= both.mean(0)
    both = both @ torch.linalg.svd(both, full_matrices=False)[2].T
    metric = FrechetInceptionDistance(_Given(both.shape[1]))
    metric.update(both[: len(real)], real=True)
    metric.update(both[len(real) :], real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, made: Tensor) -> float:
    """Squared maximum mean discrepancy under the cubic kernel, without bias.

    Args:
        real: [N, F], N at least 2.
        made: [N, F].
    Source:
        Binkowski et al., "Demystifying MMD GANs", ICLR 2018.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        metric = KernelInceptionDistance(_Given(real.shape[1]), subsets=1, subset_size=len(real))
    metric.update(real.double(), real=True)
    metric.update(made.double(), real=False)
    return float(metric.compute()[0])


def strangers(people: Sequence[int]) -> list[int]:
    """Partners for swaps of clothes that keep the halves of `between_halves` apart.

    Args:
        people: numbers of the persons in N pictures.
    Returns:
        for each picture the next one of the same half, in a circle, that shows somebody else; the next one at all where
        there is nobody else.
    """
    partners = []
    for index, person in enumerate(people):
        half = range(index % 2, len(people), 2)
        turn = [half[(index // 2 + step) % len(half)] for step in range(1, len(half) + 1)]
        partners.append(next((other for other in turn if people[other] != person), turn[0]))
    return partners


def _planes(pictures: np.ndarray, network: nn.Module) -> Tensor:
    """[N, 3, H, W] uint8 on the network's device."""
    pixels = (np.clip(pictures, 0, 1) * 255 + 0.5).astype(np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(next(network.parameters()).device)


def _perceptual(seen: Sequence[Tensor], target: Sequence[Tensor], size: tuple[int, ...]) -> Tensor:
    """[N, H, W]: see `compare`."""
    stages = []
    for one, other in zip(seen, target, strict=True):
        distance = (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1, keepdim=True)
        stages.append(F.interpolate(distance, size, mode="bilinear"))
    return torch.cat(stages, 1).mean(1)


class _Given(nn.Identity):
    """Tells torchmetrics that the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
