"""The noise: tileable random textures that cloth, hair and ground are drawn with; the same ones in every data set."""

from functools import cache

import cv2
import numpy as np

SIDE = 256  # texels of a tile


def _field(seed: int, across: float, along: float) -> np.ndarray:
    """Tileable Gaussian noise [SIDE, SIDE] (rows: v, columns: u) of deviation 1, blurred by so many texels."""
    white = np.random.default_rng([977, seed]).standard_normal((SIDE, SIDE)).astype(np.float32)
    tiled = cv2.GaussianBlur(np.tile(white, (3, 3)), (0, 0), sigmaX=across, sigmaY=along)
    tiled = tiled[SIDE : 2 * SIDE, SIDE : 2 * SIDE]
    tiled = tiled - tiled.mean()
    return tiled / tiled.std()


@cache
def texture(kind: str) -> np.ndarray:
    """A texture of mean 0 and deviation 1.

    Args:
        kind: cloud, weave, strand (fine across, long along v) or blotch.
    Returns:
        [SIDE, SIDE] float32; rows: v, columns: u.
    """
    if kind == "cloud":
        mixed = sum(_field(seed, size, size) * size**0.5 for seed, size in enumerate((3, 7, 16, 30)))
        return mixed / mixed.std()
    sizes = {"weave": (0.7, 0.7), "strand": (0.8, 14), "blotch": (13, 9)}
    return _field(len(kind), *sizes[kind])


@cache
def slope(kind: str) -> np.ndarray:
    """The slopes of a folded surface, of deviation 1.

    Args:
        kind: hang (folds run down, along v), crease (they run across, along u) or ripple (both).
    Returns:
        [SIDE, SIDE, 2] float32: slopes along u and along v.
    """
    sizes = {"hang": (5, 26), "crease": (24, 5), "ripple": (12, 10)}
    height = np.tanh(1.3 * _field(40 + len(kind), *sizes[kind]))  # flat between the folds
    slopes = np.stack(
        [np.roll(height, -1, 1) - np.roll(height, 1, 1), np.roll(height, -1, 0) - np.roll(height, 1, 0)], 2
    )
    return (slopes / slopes.std()).astype(np.float32)


def lookup(image: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The values of a texture.

    Args:
        image: [SIDE, SIDE] or [SIDE, SIDE, K].
        u: any shape, in tiles.
        v: the same shape, in tiles.
    Returns:
        the same shape, with [K] behind it.
    """
    column = (u * SIDE).astype(np.int32) & (SIDE - 1)
    row = (v * SIDE).astype(np.int32) & (SIDE - 1)
    return image[row, column]
