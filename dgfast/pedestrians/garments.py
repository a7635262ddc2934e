"""The garments: where each lies on the body, how far it stands off, and skirts, which drape anew in every pose.

A garment that follows the body is a shell: the body's own surface, pushed out, and cut along borders that are smooth
functions of the canonical coordinates (`Mesh.clip`), so that hems are straight lines whatever the mesh.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from .body import BONE, BodyPack, RestBody, vertex_normals
from .identity import Clothes
from .mesh import Mesh, Part, grid_faces, smoothstep
from .pose import Joints

# Canonical metres.
_WAIST = 1.02  # upper border of lower garments
_TUBE_TOP = 1.01  # upper border of skirts
_CROTCH = 0.86  # an upper garment with a lower hem hangs as a tube from here on
_ARM_LENGTH = 0.55


def shell(pack: BodyPack, body: RestBody, part: Part, offset: np.ndarray, clip: np.ndarray) -> Mesh:
    """A layer on the body.

    Args:
        pack: the bodies.
        body: the body that wears it.
        part: what it is.
        offset: [V], canonical metres: how far it stands off the skin.
        clip: [V], metres: it covers the body where this is positive.
    Returns:
        the mesh, which follows the body.
    """
    faces = pack.faces[(clip[pack.faces] > 0).any(1)]
    used = np.unique(faces)
    index = np.zeros(len(clip), np.int64)
    index[used] = np.arange(len(used))
    return Mesh(
        part=part,
        vertices=(body.vertices + body.normals * (offset * body.scale)[:, None])[used],
        normals=body.normals[used],
        faces=index[faces],
        weights=pack.weights[used],
        canonical=pack.canonical[used],
        arm=pack.arm[used],
        arm_weight=pack.arm_weight[used],
        facing=pack.canonical_normals[used, 1],
        clip=clip[used],
        closed=True,
    )


def skin_clip(covers: list[np.ndarray]) -> np.ndarray:
    """Where skin may be seen: everywhere but deep under a garment, where drawing it would be a waste of time.

    Args:
        covers: [V] each: metres inside the borders of the garments.
    Returns:
        [V], metres: positive where skin may be seen.
    """
    return 0.06 - np.max(covers, axis=0)


def upper_clip(pack: BodyPack, clothes: Clothes) -> np.ndarray:
    """Where the upper garment covers the body.

    Args:
        pack: the bodies.
        clothes: what is worn.
    Returns:
        [V] float32, metres inside its hem, neckline and cuffs.
    """
    x, y, z = pack.canonical.T
    neckline = np.hypot(x, y - 0.01) - 0.062 + (1.472 - z)
    torso = np.minimum(z - max(clothes.upper.hem, _CROTCH), neckline)
    torso = np.where(pack.head_weight > 0.5, -0.05, torso)
    return np.where(pack.arm_weight > 0.5, (clothes.upper.sleeve - pack.arm) * _ARM_LENGTH, torso).astype(np.float32)


def lower_clip(pack: BodyPack, clothes: Clothes) -> np.ndarray:
    """Where trousers, or tights under a skirt, cover the body.

    Args:
        pack: the bodies.
        clothes: what is worn.
    Returns:
        [V] float32, metres inside their borders; negative everywhere if legs are bare under a skirt.
    """
    z, lower = pack.canonical[:, 2], clothes.lower
    top = min(_WAIST, clothes.upper.hem + 0.05)
    end = lower.end
    if lower.kind == "skirt":
        end = 0.06 if lower.tights else _WAIST
    inside = np.minimum(z - end, top - z)
    return np.where((pack.arm_weight > 0.3) | (pack.head_weight > 0.5), -0.05, inside).astype(np.float32)


def shoe_clip(pack: BodyPack, clothes: Clothes) -> np.ndarray:
    """Where shoes cover the body.

    Args:
        pack: the bodies.
        clothes: what is worn.
    Returns:
        [V] float32, metres below the top of the shoes.
    """
    z = pack.canonical[:, 2]
    return np.where(pack.arm_weight > 0.3, -0.05, clothes.shoes.top - z).astype(np.float32)


def scarf_clip(pack: BodyPack) -> np.ndarray:
    """Where a scarf covers the body.

    Args:
        pack: the bodies.
    Returns:
        [V] float32, metres inside its borders.
    """
    x, y, z = pack.canonical.T
    band = np.minimum(0.055 - np.abs(z - 1.475), 0.13 - np.hypot(x, y))
    return np.where(pack.arm_weight > 0.3, -0.05, band).astype(np.float32)


def _upper_offset(pack: BodyPack, body: RestBody, clothes: Clothes) -> np.ndarray:
    upper, z = clothes.upper, pack.canonical[:, 2]
    jacket = 0.010 if upper.pattern == "open" else 0.0
    hang = smoothstep(1.42, 1.12, z)  # tight on the shoulders, loose at the waist
    torso = 0.009 + jacket + upper.loose * (0.25 + 0.75 * hang)
    on_sleeve = upper.loose * (0.35 + 0.65 * smoothstep(0.0, 0.22, pack.arm))
    cuff = smoothstep(0.97, 0.80, pack.arm) if upper.sleeve > 0.9 else 1.0
    sleeve = 0.007 + 0.6 * jacket + 0.8 * on_sleeve * (0.3 + 0.7 * cuff)
    arm = smoothstep(0.2, 0.8, pack.arm_weight)
    return torso * (1 - arm) + sleeve * arm + np.minimum(body.hollow, 0.02) * (1 - arm)


def _lower_offset(pack: BodyPack, clothes: Clothes) -> np.ndarray:
    z, lower = pack.canonical[:, 2], clothes.lower
    if lower.kind == "skirt":
        return np.full(len(z), 0.002)
    top = smoothstep(_WAIST, _WAIST - 0.2, z)
    ankle = 0.006 if lower.kind == "trousers" else 0.0
    return 0.004 + lower.loose * (0.15 + 0.85 * top) + ankle * smoothstep(0.3, 0.1, z)


def worn(pack: BodyPack, body: RestBody, clothes: Clothes) -> list[Mesh]:
    """The clothes that follow the body: all but skirts and long hems.

    Args:
        pack: the bodies.
        body: the body that wears them.
        clothes: what is worn.
    Returns:
        two to four meshes.
    """
    upper, lower = upper_clip(pack, clothes), lower_clip(pack, clothes)
    boots = clothes.shoes.top > 0.12 and clothes.lower.kind != "trousers"
    meshes = [
        shell(pack, body, Part.UPPER, _upper_offset(pack, body, clothes), upper),
        shell(pack, body, Part.SHOE, np.full(len(upper), 0.026 if boots else 0.008), shoe_clip(pack, clothes)),
    ]
    if (lower > 0).any():
        meshes.append(shell(pack, body, Part.LOWER, _lower_offset(pack, clothes), lower))
    if clothes.scarf:
        bulge = 0.016 + 0.020 * smoothstep(0.0, 0.05, scarf_clip(pack))
        meshes.append(shell(pack, body, Part.SCARF, bulge, scarf_clip(pack)))
    return meshes


@dataclass(frozen=True)
class Tube:
    """A skirt, or what hangs of a coat or a long shirt."""

    part: Part
    """The garment that it belongs to."""
    top: float
    """Canonical height of its upper border, metres."""
    end: float
    """Canonical height of its lower border, metres."""
    ease: float
    """How far it stands off the body at the top, metres."""
    flare: float
    """How much wider its radius is at the end, metres."""
    pleats: float
    """Amplitude of the pleats at the end, metres."""
    waist: tuple[float, float]
    """Half width and half depth of the body at the waist, metres."""
    hips: tuple[float, float]
    """Half width and half depth of the body at the hips, metres."""
    scale: float
    """Height of the body over that of the canonical one."""


def tubes(pack: BodyPack, body: RestBody, clothes: Clothes) -> list[Tube]:
    """The parts of the clothes that hang.

    Args:
        pack: the bodies.
        body: the body that wears them.
        clothes: what is worn.
    Returns:
        up to two tubes.
    """

    def half_sizes(height: float) -> tuple[float, float]:
        ring = (np.abs(pack.canonical[:, 2] - height) < 0.05) & (pack.arm_weight < 0.1)
        return float(np.ptp(body.vertices[ring, 0])) / 2, float(np.ptp(body.vertices[ring, 1])) / 2

    tube = partial(Tube, waist=half_sizes(_TUBE_TOP), hips=half_sizes(0.91), scale=body.scale)
    upper, lower = clothes.upper, clothes.lower
    found: list[Tube] = []
    if lower.kind == "skirt":
        part = Part.UPPER if lower.dress else Part.LOWER
        flare = lower.flare * (1.0 - lower.end) / 0.5
        found.append(tube(part, _TUBE_TOP, lower.end, 0.011 + upper.loose, flare, lower.pleats))
    if upper.hem < _CROTCH:
        found.append(tube(Part.UPPER, 0.93, upper.hem, 0.020 + upper.loose, 0.012, 0.004))
    return found


_ROWS, _COLUMNS = 9, 32
_TUBE_FACES = grid_faces(_ROWS, _COLUMNS, wrap=True)


def tube_mesh(tube: Tube) -> Mesh:
    """The faces and texture coordinates of a tube, whose vertices come from `drape`.

    Args:
        tube: the tube.
    Returns:
        a mesh with all vertices at 0.
    """
    t, angle = np.meshgrid(np.linspace(0, 1, _ROWS), np.arange(_COLUMNS) * 2 * np.pi / _COLUMNS, indexing="ij")
    height = tube.top + (tube.end - tube.top) * t
    canonical = np.stack([0.17 * np.cos(angle), 0.12 * np.sin(angle), height], 2).reshape(-1, 3).astype(np.float32)
    count, zeros = len(canonical), np.zeros(len(canonical), np.float32)
    return Mesh(
        part=tube.part,
        vertices=np.zeros((count, 3), np.float32),
        normals=np.zeros((count, 3), np.float32),
        faces=_TUBE_FACES,
        weights=np.zeros((count, 23), np.float32),
        canonical=canonical,
        arm=zeros,
        arm_weight=zeros,
        facing=np.sin(angle).ravel().astype(np.float32),
        clip=zeros + 1,
        closed=False,
    )


def drape(tube: Tube, joints: Joints) -> tuple[np.ndarray, np.ndarray]:
    """A tube in a pose: every row of its vertices is the hull of two circles, one around each leg.

    Args:
        tube: the tube.
        joints: of the pose.
    Returns:
        [N, 3] float32 vertices, metres; [N, 3] float32 unit normals.
    """
    angle = np.arange(_COLUMNS) * 2 * np.pi / _COLUMNS
    root = joints.rotation[BONE["root"]]
    across, back = root[:, 0], root[:, 1]
    outward = np.outer(np.cos(angle), across) + np.outer(np.sin(angle), back)  # [C, 3]
    drop = (0.945 - (tube.top + (tube.end - tube.top) * np.linspace(0, 1, _ROWS))) * tube.scale  # below the hip joints
    to_waist = np.clip(-drop / ((_TUBE_TOP - 0.945) * tube.scale), 0, 1)
    half_width = tube.hips[0] + (tube.waist[0] - tube.hips[0]) * to_waist
    half_depth = tube.hips[1] + (tube.waist[1] - tube.hips[1]) * to_waist
    apart = np.maximum(half_width - half_depth, 0.02)[:, None]
    legs = []
    for side, sign in (("L", 1), ("R", -1)):
        hip, knee, ankle = (joints.position[BONE[f"{name}.{side}"]] for name in ("upperleg", "lowerleg", "foot"))
        middle = 0.5 * (joints.position[BONE["upperleg.L"]] + joints.position[BONE["upperleg.R"]])
        start = middle + sign * apart * across
        thigh, shank = knee - hip, ankle - knee
        length = np.linalg.norm(thigh)
        thigh = thigh / length
        shank = 0.5 * shank / np.linalg.norm(shank) + 0.5 * thigh  # cloth lags behind the shank
        along = np.clip(drop, 0, None)[:, None]
        # Down to the thigh's middle the circle moves from the hip's outline to the leg itself.
        to_leg = smoothstep(0.0, 0.25, along)
        centre = np.where(drop[:, None] < 0, start - drop[:, None] * root[:, 2], start + along * thigh)
        centre = centre * (1 - to_leg) + (hip + along * thigh) * to_leg
        below = np.clip(along - length, 0, None)
        legs.append(centre + below * (shank - thigh))
    t = np.linspace(0, 1, _ROWS)
    radius = half_depth * (1 - 0.30 * np.clip(drop / 0.6, 0, 1)) + tube.ease + tube.flare * t**1.3
    radius = radius[:, None] + (tube.pleats * t)[:, None] * np.sin(9 * angle)
    lead = (legs[0] - legs[1]) @ outward.T  # [R, C], > 0 where the left leg is the outer one
    share = (1 / (1 + np.exp(-lead / 0.025)))[..., None]
    vertices = share * legs[0][:, None] + (1 - share) * legs[1][:, None] + radius[..., None] * outward
    vertices = vertices.reshape(-1, 3).astype(np.float32)
    return vertices, vertex_normals(vertices, _TUBE_FACES[:, ::-1])
