"""The noise: tileable random textures that cloth, hair and ground are drawn with. They are constants of the package."""

from functools import cache

import cv2
import numpy as np

SIDE = 256


def _field(seed: int, across: float, along: float) -> np.ndarray:
    """Tileable Gaussian noise [SIDE, SIDE] (rows: v, columns: u), unit deviation, blurred by so many texels."""
    white = np.random.default_rng([977, seed]).standard_normal((SIDE, SIDE)).astype(np.float32)
    tiled = cv2.GaussianBlur(np.tile(white, (3, 3)), (0, 0), sigmaX=across, sigmaY=along)
    tiled = tiled[SIDE : 2 * SIDE, SIDE : 2 * SIDE]
    tiled -= tiled.mean()
    return tiled / tiled.std()


@cache
def texture(kind: str) -> np.ndarray:
    """[SIDE, SIDE] float32 of mean 0 and deviation 1: cloud, weave, strand (fine across, long along v) or blotch."""
    if kind == "cloud":
        mixed = sum(_field(seed, size, size) * size**0.5 for seed, size in enumerate((3, 7, 16, 30)))
        return mixed / mixed.std()
    sizes = {"weave": (0.7, 0.7), "strand": (0.8, 14), "blotch": (13, 9)}
    return _field(len(kind), *sizes[kind])


@cache
def slope(kind: str) -> np.ndarray:
    """[SIDE, SIDE, 2] float32: slopes (du, dv) of a surface of folds, deviation 1: hang (folds that run down along v),
    crease (that run across, along u) or ripple (both)."""
    sizes = {"hang": (5, 26), "crease": (24, 5), "ripple": (12, 10)}
    height = np.tanh(1.3 * _field(40 + len(kind), *sizes[kind]))  # flat between the folds
    slopes = np.stack(
        [np.roll(height, -1, 1) - np.roll(height, 1, 1), np.roll(height, -1, 0) - np.roll(height, 1, 0)], 2
    )
    return (slopes / slopes.std()).astype(np.float32)


def lookup(image: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The texture's values at u, v, in tiles."""
    column = (u * SIDE).astype(np.int32) & (SIDE - 1)
    row = (v * SIDE).astype(np.int32) & (SIDE - 1)
    return image[row, column]
