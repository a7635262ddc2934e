"""The mesh: triangles of one part of a person with what shading needs at each vertex, and a few round primitives."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike


class Part(IntEnum):
    """What a face belongs to. Cloth comes last: the parts from UPPER on have folds and a weave."""

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
    """One part of a person at rest: N vertices and F triangles."""

    part: Part
    """What it is."""
    vertices: np.ndarray
    """[N, 3], metres."""
    normals: np.ndarray
    """[N, 3], of unit length."""
    faces: np.ndarray
    """[F, 3]: corners of the triangles, counter-clockwise as seen from outside."""
    weights: np.ndarray
    """[N, 23], 0 .. 1: how much each of `body.BONES` moves a vertex."""
    canonical: np.ndarray
    """[N, 3], metres: canonical coordinates, in which textures are given."""
    arm: np.ndarray
    """[N]: position along the arm, 0 at the shoulder and 1 at the wrist."""
    arm_weight: np.ndarray
    """[N], 0 .. 1: how far a vertex belongs to an arm."""
    facing: np.ndarray
    """[N]: y of the canonical normal, negative in front."""
    clip: np.ndarray
    """[N], metres: distance to the border of the part; the surface is cut away where it is negative."""
    closed: bool
    """Whether the surface is closed, so that the back of a face is never seen."""


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """A smooth step from 0 to 1.

    Args:
        low: where it begins.
        high: where it ends; if `high` < `low` the step falls from 1 to 0.
        x: any shape.
    Returns:
        the same shape, 0 .. 1.
    """
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def loft(
    centres: ArrayLike,
    x_radii: np.ndarray,
    y_radii: np.ndarray,
    sides: int = 12,
    axis: ArrayLike | None = None,
    capped: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """A tube through K ellipses.

    Args:
        centres: [K, 3], of the ellipses.
        x_radii: [K], along the first direction of the ellipses.
        y_radii: [K], along the second.
        sides: vertices of each ellipse.
        axis: [3], normal of the ellipses; None: z.
        capped: whether both ends are closed.
    Returns:
        [N, 3] vertices; [F, 3] corners of the triangles.
    """
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
    """The triangles of a grid of vertices.

    Args:
        rows: of the grid.
        columns: of the grid; vertices are numbered row by row.
        wrap: join the last column to the first.
    Returns:
        [F, 3] corners.
    """
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns if wrap else columns - 1), indexing="ij")
    p = (row * columns + column).ravel()
    q = (row * columns + (column + 1) % columns).ravel()
    return np.concatenate([np.stack([p, q, q + columns], 1), np.stack([p, q + columns, p + columns], 1)])


def ellipsoid(
    centre: ArrayLike, radii: ArrayLike, sides: int = 12, rings: int = 8, squareness: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid, or a superellipsoid.

    Args:
        centre: [3].
        radii: [3], along the axes.
        sides: vertices of each ring.
        rings: from pole to pole.
        squareness: 1: an ellipsoid; less: closer to a box.
    Returns:
        [N, 3] vertices; [F, 3] corners of the triangles.
    """
    t = np.linspace(-np.pi / 2 * 0.98, np.pi / 2 * 0.98, rings)
    vertices, faces = loft(np.stack([0 * t, 0 * t, np.sin(t)], 1), np.cos(t), np.cos(t), sides)
    vertices = np.sign(vertices) * np.abs(vertices) ** squareness
    return vertices * np.asarray(radii) + np.asarray(centre), faces
