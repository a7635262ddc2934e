"""The cloth: albedo of every garment from canonical coordinates (procedural textures), and its folds."""

from dataclasses import dataclass, fields

import numpy as np

from .identity import Bag, Clothes, Upper
from .mesh import smoothstep
from .noise import lookup, slope, texture


@dataclass(frozen=True)
class Place:
    """Where M pixels lie on the canonical body."""

    x: np.ndarray
    """[M], metres."""
    y: np.ndarray
    """[M], metres."""
    z: np.ndarray
    """[M], metres."""
    arm: np.ndarray
    """[M]: position along the arm, 0 at the shoulder and 1 at the wrist."""
    on_arm: np.ndarray
    """[M] bool."""
    front: np.ndarray
    """[M] bool: on the front of the body."""
    facing: np.ndarray
    """[M]: y of the normal, negative in front."""
    around: np.ndarray
    """[M], -1 .. 1: angle about the vertical axis over pi, 0 in front; on the arms a measure of their own."""
    along: np.ndarray
    """[M], metres: height, continued down the sleeves."""

    def __getitem__(self, part: slice) -> "Place":
        """Some of the pixels."""
        return Place(*(getattr(self, field.name)[part] for field in fields(self)))


def place(traits: np.ndarray) -> Place:
    """Where pixels lie on the canonical body.

    Args:
        traits: [6, M], those of `figure.Figure` at the pixels.
    """
    x, y, z, arm, arm_weight, facing = traits
    on_arm = arm_weight > 0.5
    around = np.where(on_arm, 5 * y, np.arctan2(x, -(y + np.float32(0.01))) * np.float32(1 / np.pi))
    along = np.where(on_arm, np.float32(1.41) - arm * np.float32(0.55), z)
    return Place(x, y, z, arm, on_arm, facing < 0, facing, around, along)


def _print_mask(at: Place, upper: Upper) -> np.ndarray:
    dx, dz, size = at.x - upper.print.x, at.z - upper.print.z, upper.print.size
    motif = upper.print.motif
    if motif == 0:
        inside = dx**2 + dz**2 < size**2
    elif motif == 1:
        inside = (np.abs(dx) < 1.3 * size) & (np.abs(dz) < 0.6 * size)
    elif motif == 2:
        inside = np.abs(dx) + np.abs(dz) < 1.2 * size
    else:
        lines = np.mod(dz / size * 1.5, 1) < 0.6
        letters = np.mod(dx / size * 3 + np.floor(dz / size * 1.5) * 0.37, 1) < 0.7
        inside = (np.abs(dz) < 0.7 * size) & (np.abs(dx) < 1.2 * size) & lines & letters
    return inside & ~at.on_arm & (at.front | upper.print.back)


def upper_albedo(at: Place, upper: Upper) -> np.ndarray:
    """The colours of the upper garment and of a dress.

    Args:
        at: M pixels.
        upper: the garment.
    Returns:
        [M, 3] float32, linear RGB, 0 .. 1.
    """
    albedo = np.empty((len(at.x), 3), np.float32)
    albedo[:] = upper.colour
    rate, pattern = upper.frequency, upper.pattern
    if pattern == "bands":
        second = np.mod(at.along * 9 * rate, 1) < 0.45
    elif pattern == "pinstripes":
        second = np.mod(at.around * 14 * rate, 1) < 0.35
    elif pattern == "check":
        crossing = (np.mod(at.along * 10 * rate, 1) < 0.4).astype(np.float32) + (np.mod(at.around * 8 * rate, 1) < 0.4)
        return albedo * (1 - crossing[:, None] / 2) + np.array(upper.second, np.float32) * crossing[:, None] / 2
    elif pattern == "print":
        second = _print_mask(at, upper)
    elif pattern == "yoke":
        second = np.where(at.on_arm, at.arm < 0.16, at.z > 1.30)
    elif pattern == "sleeves":
        second = at.on_arm
    elif pattern == "half":
        second = ~at.on_arm & (at.z < 1.13)
    elif pattern == "camouflage":
        second = lookup(texture("blotch"), at.around * 1.3, at.along * 1.5) > 0.3
    elif pattern == "open":
        opening = 0.030 + 0.055 * np.clip((1.45 - at.z) / 0.5, 0, 1.2)
        second = ~at.on_arm & at.front & (np.abs(at.x) < opening)
        albedo[second] = upper.inner
        lapel = ~at.on_arm & at.front & (np.abs(np.abs(at.x) - opening) < 0.006)
        albedo[lapel] *= 0.5
        return albedo
    else:
        second = np.zeros(len(at.x), bool)
    albedo[second] = upper.second
    return albedo


def neck_opening(at: Place, upper: Upper) -> np.ndarray:
    """Where a V-neck leaves the chest bare.

    Args:
        at: M pixels.
        upper: the garment.
    Returns:
        [M] bool.
    """
    if not upper.v_neck or upper.pattern == "open" or upper.hood == "up":
        return np.zeros(len(at.x), bool)
    return at.front & ~at.on_arm & (np.abs(at.x) < 0.7 * (at.z - 1.375)) & (np.abs(at.x) < 0.08)


def lower_albedo(at: Place, clothes: Clothes) -> np.ndarray:
    """The colours of trousers or a skirt.

    Args:
        at: M pixels.
        clothes: what is worn.
    Returns:
        [M, 3] float32, linear RGB, 0 .. 1.
    """
    lower = clothes.lower
    albedo = np.empty((len(at.x), 3), np.float32)
    albedo[:] = lower.colour
    if lower.kind == "trousers" and lower.faded:
        albedo *= (1 + 0.45 * np.exp(-(((at.z - 0.66) / 0.14) ** 2)) * at.front)[:, None]
    if lower.stripe and lower.kind != "skirt":
        outer = np.abs(at.x) > 0.11 + 0.08 * (0.94 - at.z)
        albedo[outer & (np.abs(at.facing) < 0.32) & (at.z < 0.95)] = 0.7
    if clothes.upper.hem > 0.95 and lower.kind != "skirt":  # a tucked shirt shows the belt
        albedo[np.abs(at.z - clothes.upper.hem + 0.012) < 0.014] = np.array(clothes.shoes.colour, np.float32) * 0.7
    return albedo


def strap_mask(at: Place, bag: Bag) -> np.ndarray:
    """Where a strap of the bag crosses the upper garment.

    Args:
        at: M pixels.
        bag: the bag.
    Returns:
        [M] bool.
    """
    torso = ~at.on_arm & (at.z > 0.95)
    if bag.kind == "backpack":
        strap = 0.100 + 1.5 * np.square(np.maximum(1.28 - at.z, 0))  # from the shoulder, then back under the arm
        return torso & at.front & (np.abs(np.abs(at.x) - strap) < 0.020)
    if bag.kind == "sling":
        return torso & (np.abs(at.z - 1.21 + bag.side * at.x * 1.35) < 0.026)
    if bag.kind == "shoulder":
        return torso & (np.abs(at.x - bag.side * 0.125) < 0.016)
    return np.zeros(len(at.x), bool)


def _bump(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-np.square((x - np.float32(centre)) * np.float32(1 / width)))


def folds(at: Place, clothes: Clothes, is_lower: bool) -> np.ndarray:
    """The slopes of the cloth's surface: creases at the joints, hanging folds elsewhere.

    Args:
        at: M pixels.
        clothes: what is worn.
        is_lower: of the lower garment instead of the upper.
    Returns:
        [2, M]: slopes around and up the body.
    """
    shift = np.float32(clothes.seed % 251 / 251)
    if is_lower:
        on_leg = 1.6 * at.x + 1.1 * at.y + np.where(at.x > 0, np.float32(0.4), np.float32(-0.4))
        u = np.where(at.z < 0.84, on_leg, 0.5 * at.around + np.float32(0.31)) + shift
        joints = _bump(at.z, 0.50, 0.10) + 0.8 * _bump(at.z, 0.86, 0.07) + smoothstep(0.22, 0.10, at.z)
        creased, hanging = 0.15 + joints, clothes.lower.loose / 0.03
    else:
        u = (0.5 * at.around + shift + np.float32(0.34) * (at.on_arm & (at.x > 0))).astype(np.float32)
        torso = 0.12 + 0.5 * smoothstep(1.12, 0.98, at.z)
        creased = np.where(at.on_arm, 0.12 + 0.9 * _bump(at.arm, 0.5, 0.17), torso)
        hanging = clothes.upper.loose / 0.03
    v = 0.9 * at.along + 3 * shift
    crease = lookup(slope("crease"), u, v)
    hang = lookup(slope("hang"), 0.8 * u + np.float32(0.3), 0.6 * v)
    ripple = lookup(slope("ripple"), 0.9 * u + 0.15 * v, v)
    # The textures' values are [M, 2].
    mixed = crease.T * creased + hang.T * np.float32(0.25 + 0.5 * hanging) + ripple.T * np.float32(0.30)
    return mixed * np.float32(0.13 + 0.22 * clothes.wrinkle)
