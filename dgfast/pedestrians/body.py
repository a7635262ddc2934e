"""The body: a skinned human mesh with many shapes, read from `body_pack.npz`, and the rest shape of one person.

Axes everywhere in this package: x to the person's left, y backwards (the face looks along -y), z up, in metres.

"Canonical" coordinates are those of the mean body, scaled to 1.75 m, in its rest pose. Textures and borders of garments
are given in them, so that they follow the body whatever its shape or pose.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

from .identity import Shape

_HEIGHT = 1.75  # of the canonical body, metres
BONES = (
    "root", "pelvis.L", "upperleg.L", "lowerleg.L", "foot.L", "pelvis.R", "upperleg.R", "lowerleg.R", "foot.R",
    "spine_lo", "spine_up", "clavicle.L", "upperarm.L", "lowerarm.L", "hand.L", "clavicle.R", "upperarm.R",
    "lowerarm.R", "hand.R", "neck", "head",
    # These two are not in the pack. They sit at the hands but turn with the pelvis, for what hangs from a hand.
    "hang.L", "hang.R",
)  # fmt: skip
BONE = {name: index for index, name in enumerate(BONES)}
_ARM = ("upperarm", "lowerarm", "hand")
_HEAD_HEIGHT = 0.225  # chin to crown of the canonical body


@dataclass(frozen=True)
class BodyPack:
    """What all people share: B sampled bodies on one mesh of V vertices, F faces and E directed edges."""

    shapes: np.ndarray
    """[B, V, 3] float32, metres: vertices at rest."""
    bones: np.ndarray
    """[B, 21, 3] float32, metres: positions of the joints at rest."""
    weights: np.ndarray
    """[V, 23] float32, 0 .. 1: how much each of `BONES` moves a vertex."""
    faces: np.ndarray
    """[F, 3] int64: corners, counter-clockwise as seen from outside."""
    edges: np.ndarray
    """[E, 2] int64: every edge in both directions."""
    canonical: np.ndarray
    """[V, 3] float32, metres: canonical coordinates."""
    canonical_normals: np.ndarray
    """[V, 3] float32: unit normals of the canonical body, outward."""
    arm: np.ndarray
    """[V] float32: position along the arm, 0 at the shoulder and 1 at the wrist."""
    arm_weight: np.ndarray
    """[V] float32, 0 .. 1: how far a vertex belongs to an arm."""
    head_weight: np.ndarray
    """[V] float32, 0 .. 1: how far a vertex belongs to the head."""
    head_base: float
    """Canonical height of the chin, metres."""
    head_y: float
    """Canonical y of the middle of the skull, metres."""
    head_radius: float
    """Half the canonical depth of the skull, metres."""

    def head_coordinates(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points lie on the head.

        Args:
            points: [N, 3], canonical metres.
        Returns:
            [N] height, 0 at the chin and 1 at the crown; [N] forwardness, -1 at the back of the skull and 1 at the
            forehead.
        """
        return (points[:, 2] - self.head_base) / _HEAD_HEIGHT, (self.head_y - points[:, 1]) / self.head_radius


@dataclass(frozen=True)
class RestBody:
    """One person's naked body at rest."""

    vertices: np.ndarray
    """[V, 3] float32, metres."""
    normals: np.ndarray
    """[V, 3] float32: unit normals, outward."""
    bones: np.ndarray
    """[21, 3] float32, metres: positions of the joints."""
    scale: float
    """Height of the body over that of the canonical one."""
    hollow: np.ndarray
    """[V] float32, metres, at least 0: how far a smooth cloth would stand off the skin."""


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The normals of a mesh: means of those of the faces around each vertex, weighted by area.

    Args:
        vertices: [V, 3].
        faces: [F, 3], corners of the triangles.
    Returns:
        [V, 3] float32, of unit length.
    """
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    normals = np.zeros(vertices.shape, np.float64)
    for corner in range(3):
        for axis in range(3):
            normals[:, axis] += np.bincount(faces[:, corner], cross[:, axis], len(vertices))
    return (normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12)).astype(np.float32)


def _positions_along_arm(canonical: np.ndarray, bones: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`BodyPack.arm` of canonical points [V, 3], given the canonical joints [21, 3] and skinning weights [V, 23]."""
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
    """The packaged bodies, whose origin the file NOTICE beside this one states; read once per process."""
    with resources.files(__package__).joinpath("body_pack.npz").open("rb") as file, np.load(file) as pack:
        shapes, bones = pack["v"].astype(np.float32), pack["b"].astype(np.float32)
        weights, faces = pack["w"].astype(np.float32), pack["f"].astype(np.int64)
    weights = np.pad(weights, ((0, 0), (0, len(BONES) - weights.shape[1])))
    mean = shapes.mean(0)
    scale = _HEIGHT / np.ptp(mean[:, 2])
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


def _smoothed(vertices: np.ndarray, edges: np.ndarray, rounds: int = 8) -> np.ndarray:
    """Vertices [V, 3], each moved half the way to the mean of its neighbours, `rounds` times."""
    degree = np.bincount(edges[:, 0], minlength=len(vertices))[:, None]
    for _ in range(rounds):
        around = [np.bincount(edges[:, 0], vertices[edges[:, 1], axis], len(vertices)) for axis in range(3)]
        vertices = 0.5 * vertices + 0.5 * np.stack(around, 1) / degree
    return vertices


def rest_body(pack: BodyPack, shape: Shape) -> RestBody:
    """One person's body: a mixture of two of the pack's people.

    Args:
        pack: the bodies.
        shape: which two are mixed, and how.
    Returns:
        the body at rest.
    """
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
        scale=float(np.ptp(vertices[:, 2]) / _HEIGHT),
        hollow=hollow.astype(np.float32),
    )
