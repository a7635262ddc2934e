"""The mesh: triangles of one part of a person with what shading needs at each vertex, and a few round primitives."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Part(IntEnum):
    """What a face belongs to; cloth comes last, from UPPER on."""

    SKIN = 0
    SHOE = 1
    HAIR = 2
    HAT = 3
    BAG = 4
    UPPER = 5
    LOWER = 6
    SCARF = 7


@dataclass(frozen=True)
class Mesh:
    """One part at rest.

    vertices, normals, canonical [N, 3]; faces [F, 3]; weights [N, 23] (skinning); part: what it is.
    arm [N]: position along the arm; arm_weight [N]: 1 on the arms; facing [N]: y of the canonical normal (< 0: front).
    clip [N]: metres to the part's border, the surface is cut where it is negative. closed: its back faces are never
    seen.
    """

    part: Part
    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    weights: np.ndarray
    canonical: np.ndarray
    arm: np.ndarray
    arm_weight: np.ndarray
    facing: np.ndarray
    clip: np.ndarray
    closed: bool


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between; `low` > `high` falls instead."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def loft(centres, x_radii, y_radii, sides: int = 12, axis=None, capped: bool = True):
    """A tube through ellipses around `centres` [K, 3], normal to `axis` (default z): vertices [N, 3], faces [F, 3]."""
    centres = np.asarray(centres, np.float64)
    rings, angle = len(centres), np.arange(sides) * 2 * np.pi / sides
    if axis is None:
        u, v = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    else:
        axis = np.asarray(axis, np.float64) / np.linalg.norm(axis)
        u = np.cross([0, 1.0, 0] if abs(axis[1]) < 0.9 else [1.0, 0, 0], axis)
        u /= np.linalg.norm(u)
        v = np.cross(axis, u)
    vertices = np.concatenate([
        centre + np.outer(np.cos(angle), u) * rx + np.outer(np.sin(angle), v) * ry
        for centre, rx, ry in zip(centres, x_radii, y_radii, strict=True)
    ])  # fmt: skip
    faces = grid_faces(rings, sides, wrap=True)
    if capped:
        vertices = np.concatenate([vertices, centres[:1], centres[-1:]])
        around, last = np.arange(sides), (rings - 1) * sides
        following = (around + 1) % sides
        bottom = np.stack([np.full(sides, rings * sides), following, around], 1)
        top = np.stack([np.full(sides, rings * sides + 1), last + around, last + following], 1)
        faces = np.concatenate([faces, bottom, top])
    return vertices, faces


def grid_faces(rows: int, columns: int, wrap: bool) -> np.ndarray:
    """Triangles of a grid of vertices in row order; `wrap` joins the last column to the first."""
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns if wrap else columns - 1), indexing="ij")
    p = (row * columns + column).ravel()
    q = (row * columns + (column + 1) % columns).ravel()
    return np.concatenate([np.stack([p, q, q + columns], 1), np.stack([p, q + columns, p + columns], 1)])


def ellipsoid(centre, radii, sides: int = 12, rings: int = 8, squareness: float = 1.0):
    """An ellipsoid; `squareness` below 1 pushes it towards a box (a superellipsoid)."""
    t = np.linspace(-np.pi / 2 * 0.98, np.pi / 2 * 0.98, rings)
    vertices, faces = loft(np.stack([0 * t, 0 * t, np.sin(t)], 1), np.cos(t), np.cos(t), sides)
    vertices = np.sign(vertices) * np.abs(vertices) ** squareness
    return vertices * np.asarray(radii) + np.asarray(centre), faces
