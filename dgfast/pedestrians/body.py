"""The body: a skinned human mesh with many shapes, read from `body_pack.npz`, and the rest shape of one person.

Axes everywhere in this package: x to the person's left, y backwards (the face looks along -y), z up, metres.
"Canonical" coordinates are those of the mean body scaled to 1.75 m in its rest pose; textures and garment borders
live there, so that they follow the body whatever its shape or pose.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

from .identity import Shape

HEIGHT = 1.75
BONES = (
    "root", "pelvis.L", "upperleg.L", "lowerleg.L", "foot.L", "pelvis.R", "upperleg.R", "lowerleg.R", "foot.R",
    "spine_lo", "spine_up", "clavicle.L", "upperarm.L", "lowerarm.L", "hand.L", "clavicle.R", "upperarm.R",
    "lowerarm.R", "hand.R", "neck", "head",
    # Not in the pack: they sit at the hands but keep the pelvis' orientation, for what hangs from a hand.
    "hang.L", "hang.R",
)  # fmt: skip
BONE = {name: index for index, name in enumerate(BONES)}
_ARM = ("upperarm", "lowerarm", "hand")
_HEAD_HEIGHT = 0.225  # chin to crown of the canonical body


@dataclass(frozen=True)
class BodyPack:
    """Everything that all people share.

    shapes [B, V, 3] and bones [B, 21, 3]: rest meshes and joint positions of B sampled people; weights [V, 23]:
    skinning; faces [F, 3], outward; canonical [V, 3] and canonical_normals [V, 3]; edges [E, 2]: both directions of
    every edge. arm [V]: position along the arm, 0 at the shoulder and 1 at the wrist; arm_weight, head_weight [V] in
    0..1. head_base, head_y, head_radius: height of the chin, centre and half depth of the skull (canonical).
    """

    shapes: np.ndarray
    bones: np.ndarray
    weights: np.ndarray
    faces: np.ndarray
    edges: np.ndarray
    canonical: np.ndarray
    canonical_normals: np.ndarray
    arm: np.ndarray
    arm_weight: np.ndarray
    head_weight: np.ndarray
    head_base: float
    head_y: float
    head_radius: float

    def head_coordinates(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Height (0 chin, 1 crown) and forwardness (-1 back of the skull, 1 forehead) of canonical points [N, 3]."""
        return (points[:, 2] - self.head_base) / _HEAD_HEIGHT, (self.head_y - points[:, 1]) / self.head_radius


@dataclass(frozen=True)
class RestBody:
    """One person's naked body at rest: vertices, normals [V, 3]; bones [21, 3]; scale: height over the canonical
    height; hollow [V]: how far a smooth cloth would stand off from the skin there (metres, >= 0)."""

    vertices: np.ndarray
    normals: np.ndarray
    bones: np.ndarray
    scale: float
    hollow: np.ndarray


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals [V, 3], weighted by the area of the faces around each vertex."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    normals = np.zeros(vertices.shape, np.float64)
    for corner in range(3):
        for axis in range(3):
            normals[:, axis] += np.bincount(faces[:, corner], cross[:, axis], len(vertices))
    return (normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12)).astype(np.float32)


def _positions_along_arm(canonical, bones, weights):
    position = np.zeros(len(canonical), np.float32)
    for side, sign in (("L", 1), ("R", -1)):
        shoulder, elbow, wrist = (bones[BONE[f"{name}.{side}"]] for name in _ARM)
        upper, lower = np.linalg.norm(elbow - shoulder), np.linalg.norm(wrist - elbow)
        on_upper = (canonical - shoulder) @ ((elbow - shoulder) / upper)
        on_lower = upper + (canonical - elbow) @ ((wrist - elbow) / lower)
        beyond_elbow = weights[:, BONE[f"lowerarm.{side}"]] + weights[:, BONE[f"hand.{side}"]]
        mixed = (on_upper * (1 - beyond_elbow) + on_lower * beyond_elbow) / (upper + lower)
        position = np.where(canonical[:, 0] * sign > 0, mixed, position)
    return position.astype(np.float32)


@lru_cache(maxsize=1)
def load_body_pack() -> BodyPack:
    """The packaged bodies (see NOTICE beside this file for their origin)."""
    with resources.files(__package__).joinpath("body_pack.npz").open("rb") as file, np.load(file) as pack:
        shapes, bones = pack["v"].astype(np.float32), pack["b"].astype(np.float32)
        weights, faces = pack["w"].astype(np.float32), pack["f"].astype(np.int64)
    weights = np.pad(weights, ((0, 0), (0, len(BONES) - weights.shape[1])))
    mean = shapes.mean(0)
    scale = HEIGHT / np.ptp(mean[:, 2])
    canonical = mean * scale
    canonical[:, 2] -= canonical[:, 2].min()
    canonical_bones = bones.mean(0) * scale
    normals = vertex_normals(canonical, faces)
    if (normals * (canonical - canonical.mean(0))).sum() < 0:
        faces, normals = faces[:, ::-1].copy(), -normals
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    head_weight = weights[:, BONE["head"]]
    head_base = float(canonical[:, 2].max()) - _HEAD_HEIGHT
    skull = canonical[(head_weight > 0.5) & (canonical[:, 2] > head_base + 0.08), 1]
    return BodyPack(
        shapes=shapes,
        bones=bones,
        weights=weights,
        faces=faces,
        edges=edges,
        canonical=canonical,
        canonical_normals=normals,
        arm=_positions_along_arm(canonical, canonical_bones, weights),
        arm_weight=weights[:, [BONE[f"{part}.{side}"] for part in _ARM for side in "LR"]].sum(1),
        head_weight=head_weight,
        head_base=head_base,
        head_y=float(skull.min() + skull.max()) / 2,
        head_radius=float(np.ptp(skull)) / 2,
    )


def _smoothed(vertices, edges, rounds=8):
    degree = np.bincount(edges[:, 0], minlength=len(vertices))[:, None]
    for _ in range(rounds):
        around = [np.bincount(edges[:, 0], vertices[edges[:, 1], axis], len(vertices)) for axis in range(3)]
        vertices = 0.5 * vertices + 0.5 * np.stack(around, 1) / degree
    return vertices


def rest_body(pack: BodyPack, shape: Shape) -> RestBody:
    """The body `shape`: two of the pack's people, mixed."""
    first, second = shape.first % len(pack.shapes), shape.second % len(pack.shapes)
    vertices = pack.shapes[first] * shape.mix + pack.shapes[second] * (1 - shape.mix)
    bones = pack.bones[first] * shape.mix + pack.bones[second] * (1 - shape.mix)
    normals = vertex_normals(vertices, pack.faces)
    # Cloth bridges hollows but does not sink into bulges: only the outward part of the smoothing counts.
    hollow = np.clip(((_smoothed(vertices, pack.edges) - vertices) * normals).sum(1), 0, 0.03)
    return RestBody(
        vertices=vertices,
        normals=normals,
        bones=bones,
        scale=float(np.ptp(vertices[:, 2]) / HEIGHT),
        hollow=hollow.astype(np.float32),
    )
