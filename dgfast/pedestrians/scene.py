"""The scene: the view of each camera without people - paving, grass, buildings, trees, street furniture."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from .identity import linear
from .noise import lookup, texture

HEIGHT, WIDTH = 700, 900  # of a camera's view, pixels


@dataclass(frozen=True)
class _Site:
    """What a camera sees. Colours are sRGB, 0 .. 255."""

    horizon: float
    """Its height from the top, as a share of the picture."""
    near: tuple[int, int, int]
    """Colour of the ground in front."""
    far: tuple[int, int, int]
    """Colour of the ground at the horizon."""
    wall: tuple[int, int, int]
    """Colour of the buildings."""
    grass: tuple[float, float] | None
    """Left and right border of a lawn on the ground; None: no lawn."""
    tile: float
    """Paving stones per unit of the ground; 0: tarmac."""
    line: float | None
    """Place of a painted line on the ground; None: no line."""
    windows: bool
    """Whether the buildings have windows."""
    trees: int
    """How many."""
    clutter: int
    """How many cars, bicycles, signs and bins."""


_SITES = (
    _Site(0.42, (150, 148, 142), (120, 120, 118), (150, 120, 96), None, 6, None, True, 2, 7),
    _Site(0.30, (168, 158, 142), (140, 134, 124), (186, 184, 176), (1.2, 6), 0, -0.6, True, 5, 10),
    _Site(0.16, (122, 124, 130), (100, 102, 108), (110, 116, 126), (-6, -1.0), 3, 0.4, False, 1, 5),
    _Site(0.34, (176, 164, 150), (150, 140, 128), (170, 150, 120), None, 8, None, True, 3, 9),
    _Site(0.0, (140, 140, 136), (126, 126, 124), (140, 140, 140), (1.6, 9), 5, None, False, 0, 6),
    _Site(0.22, (158, 150, 150), (128, 122, 124), (196, 176, 150), (-5, -2), 4, 1.0, True, 4, 8),
)


def _floats(colour: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in colour)


def _ground(site: _Site, horizon: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[horizon:HEIGHT, 0:WIDTH].astype(np.float32)
    depth = 1 / (y - horizon + 18)
    u, v = (x - WIDTH / 2) * depth, depth * 60
    nearness = ((y - horizon) / (HEIGHT - horizon))[..., None]
    ground = (np.array(site.far, np.float32) * (1 - nearness) + np.array(site.near, np.float32) * nearness) / 255
    if site.tile:
        column, row = u * site.tile, v * site.tile * 3
        ground *= (1 + 0.05 * lookup(texture("blotch"), np.floor(column) * 0.137, np.floor(row) * 0.211))[..., None]
        fine = _joint_fade(y - horizon)
        joint = (np.mod(column, 1) < 0.035) | (np.mod(row, 1) < 0.05)
        ground *= (1 - 0.16 * joint * fine)[..., None]
    ground *= (1 + 0.05 * lookup(texture("cloud"), u * 0.35, v * 0.5))[..., None]
    ground *= 1 + 0.025 * rng.standard_normal(ground.shape[:2] + (1,)).astype(np.float32)
    if site.grass:
        low, high = site.grass
        border = 0.05 * lookup(texture("cloud"), v * 0.2, v * 0 + 0.4)
        lawn = (u + border > low) & (u + border < high)
        blades = 1 + 0.20 * rng.standard_normal(lawn.shape).astype(np.float32) + 0.12 * lookup(texture("cloud"), u, v)
        ground = np.where(lawn[..., None], np.array([0.30, 0.41, 0.19], np.float32) * blades[..., None], ground)
    if site.line is not None:
        ground[np.abs(u - site.line) < 0.045] = (0.80, 0.77, 0.58)
    return ground


def _joint_fade(rows: np.ndarray) -> np.ndarray:
    """Joints fade out towards the horizon, where they would flicker."""
    return np.clip(rows / 150, 0.15, 1)


def _buildings(site: _Site, horizon: int, rng: np.random.Generator) -> np.ndarray:
    picture = np.zeros((horizon, WIDTH, 3), np.float32)
    wall = np.array(site.wall, np.float32) / 255
    left = 0
    while left < WIDTH:
        right = left + int(rng.integers(60, 190))
        picture[:, left:right] = wall * rng.uniform(0.80, 1.12)
        if site.windows:
            for top in range(horizon - 330, horizon - 60, 62):
                glass = np.array([0.20, 0.25, 0.30]) * rng.uniform(0.6, 1.6)
                for start in range(left + 9, right - 30, 44):
                    cv2.rectangle(picture, (start, top), (start + 28, top + 40), _floats(glass * 0.6 + 0.15), 2)
                    cv2.rectangle(picture, (start, top), (start + 28, top + 40), _floats(glass), -1)
                    cv2.line(picture, (start, top + 20), (start + 28, top + 20), _floats(glass * 0.7), 1)
        cv2.line(picture, (right, 0), (right, horizon), _floats(wall * 0.6), 2)
        left = right
    cv2.rectangle(picture, (0, horizon - 14), (WIDTH, horizon), _floats(wall * 0.55), -1)
    grain = lookup(texture("cloud"), *np.meshgrid(np.arange(WIDTH) / 500, np.arange(horizon) / 180))
    return picture * (1 + 0.03 * grain)[..., None]


def _tree(picture: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    x, crown = int(rng.integers(0, WIDTH)), horizon - int(rng.integers(120, 190))
    cv2.rectangle(picture, (x - 6, crown), (x + 6, horizon + 8), (0.24, 0.19, 0.14), -1)
    for shade in np.sort(rng.uniform(0.45, 1.45, 160)):  # dark leaves lie behind lit ones
        leaf = (int(x + rng.normal(0, 40)), int(crown + rng.normal(0, 38) - 16 * shade))
        axes = (int(rng.integers(4, 12)), int(rng.integers(3, 8)))
        cv2.ellipse(
            picture, leaf, axes, int(rng.integers(180)), 0, 360, _floats(np.array([0.20, 0.31, 0.14]) * shade), -1
        )


def _clutter(picture: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    x, y = int(rng.integers(0, WIDTH)), int(rng.integers(horizon + 5, HEIGHT - 60))
    size = (y - horizon) / (HEIGHT - horizon) * 1.2 + 0.25
    colour = np.clip(rng.uniform(0.08, 0.7) + rng.normal(0, 0.11, 3), 0.03, 0.9)
    kind = rng.integers(4)

    def at(dx: float, dy: float) -> tuple[int, int]:
        return x + int(dx * size), y + int(dy * size)

    shadow = picture.copy()
    cv2.ellipse(shadow, at(60, 0), (max(int(95 * size), 1), max(int(9 * size), 1)), 0, 0, 360, (0.12, 0.12, 0.13), -1)
    picture += 0.5 * (shadow - picture)
    if kind == 0:  # a parked car, seen from the side
        body = np.array(
            [at(0, -16), at(4, -62), at(40, -66), at(66, -104), at(150, -104), at(182, -66), at(226, -58), at(230, -16)]
        )
        cv2.fillPoly(picture, [body], _floats(colour), cv2.LINE_AA)
        cabin = np.array([at(48, -66), at(72, -98), at(146, -98), at(172, -66)])
        cv2.fillPoly(picture, [cabin], (0.16, 0.19, 0.23), cv2.LINE_AA)
        for wheel in (50, 182):
            cv2.circle(picture, at(wheel, -18), max(int(20 * size), 1), (0.07, 0.07, 0.07), -1, cv2.LINE_AA)
            cv2.circle(picture, at(wheel, -18), max(int(9 * size), 1), (0.45, 0.45, 0.45), -1, cv2.LINE_AA)
    elif kind == 1:  # a bicycle
        for wheel in (0, 74):
            cv2.circle(picture, at(wheel, -26), max(int(26 * size), 2), (0.08, 0.08, 0.08), 2, cv2.LINE_AA)
        frame = (
            ((0, -26), (24, -64)),
            ((24, -64), (62, -68)),
            ((62, -68), (74, -26)),
            ((24, -64), (36, -26)),
            ((36, -26), (62, -68)),
        )
        for start, end in frame + (((62, -68), (58, -80)), ((18, -70), (32, -70))):
            cv2.line(picture, at(*start), at(*end), _floats(colour), 2, cv2.LINE_AA)
    elif kind == 2:  # a sign on its post
        cv2.rectangle(picture, at(0, -230), at(7, 0), (0.38, 0.38, 0.38), -1)
        cv2.rectangle(picture, at(-22, -240), at(30, -190), _floats(colour), -1)
        cv2.rectangle(picture, at(-18, -236), at(26, -194), _floats(0.5 * colour + 0.4), 1)
    else:  # a bin
        cv2.rectangle(picture, at(0, -58), at(40, 0), _floats(colour), -1)
        cv2.rectangle(picture, at(-2, -62), at(42, -54), _floats(0.6 * colour), -1)


def background(rng: np.random.Generator, index: int) -> np.ndarray:
    """The view of a camera, without people.

    Args:
        rng: what buildings, trees and the rest are drawn from.
        index: of the camera, 0 .. 5.
    Returns:
        [HEIGHT, WIDTH, 3] float32, linear RGB, 0 .. 1.
    """
    site = _SITES[index]
    horizon = int(HEIGHT * site.horizon)
    picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    picture[horizon:] = _ground(site, horizon, rng)
    if horizon:
        picture[:horizon] = _buildings(site, horizon, rng)
        for _ in range(site.trees):
            _tree(picture, horizon, rng)
    for _ in range(site.clutter):
        _clutter(picture, horizon, rng)
    return linear(255 * cv2.GaussianBlur(picture, (0, 0), 0.9)).astype(np.float32)


def furniture(canvas: np.ndarray, seed: int) -> np.ndarray:
    """Draw a post, a low wall or a railing in front of the person.

    Args:
        canvas: [H, W, 3], linear RGB; it is drawn on.
        seed: which, and where.
    Returns:
        [H, W] bool: the pixels that it hides.
    """
    rng = np.random.default_rng(seed)
    height, width = canvas.shape[:2]
    unit = height / 256
    colour = _floats(np.clip(rng.uniform(0.03, 0.4) + rng.normal(0, 0.05, 3), 0.01, 0.6))
    hidden = np.zeros((height, width), np.uint8)
    kind = rng.integers(3)
    if kind == 0:
        left = int(rng.uniform(0, width))
        cv2.rectangle(hidden, (left, 0), (left + int(rng.uniform(5, 13) * unit), height), 255, -1)
    elif kind == 1:
        cv2.rectangle(hidden, (0, int(rng.uniform(0.74, 0.9) * height)), (width, height), 255, -1)
    else:
        top = int(rng.uniform(0.55, 0.8) * height)
        for rail in range(3):
            left, right = top + int(rail * 14 * unit), top + int((rail * 14 + rng.normal(0, 2)) * unit)
            cv2.line(hidden, (0, left), (width, right), 255, max(int(2 * unit), 1))
    canvas[hidden > 0] = colour
    return hidden > 0
