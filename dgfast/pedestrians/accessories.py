"""The accessories: hair, hats and bags as meshes on one person's rest body."""

import numpy as np

from .body import BONE, BodyPack, RestBody, vertex_normals
from .garments import shell
from .identity import Bag, Clothes, Head
from .mesh import Mesh, Part, ellipsoid, grid_faces, loft, smoothstep

# Height of the hairline in the nape and above the ears: 0 chin, 1 crown.
_LINE = {
    "short": (0.18, 0.48), "crop": (0.26, 0.54), "fringe": (0.14, 0.40), "bob": (0.10, 0.16), "long": (0.10, 0.16),
    "tail": (0.20, 0.50), "bun": (0.20, 0.50),
}  # fmt: skip
_THICKNESS = {"short": 0.010, "crop": 0.003, "fringe": 0.013, "bob": 0.016, "long": 0.014, "tail": 0.005, "bun": 0.005}


def _loose(
    part: Part,
    vertices: np.ndarray,
    faces: np.ndarray,
    weights: np.ndarray,
    closed: bool = True,
    canonical: np.ndarray | None = None,
) -> Mesh:
    """A mesh that is no shell of the body; without `canonical`, its texture coordinates are relative to its centre."""
    vertices = np.asarray(vertices, np.float32)
    normals, zeros = vertex_normals(vertices, faces), np.zeros(len(vertices), np.float32)
    return Mesh(
        part=part,
        vertices=vertices,
        normals=normals,
        faces=faces,
        weights=weights,
        canonical=vertices - vertices.mean(0) if canonical is None else canonical,
        arm=zeros,
        arm_weight=zeros,
        facing=normals[:, 1],
        clip=zeros + 1,
        closed=closed,
    )


def _rigid(count: int, bone: str) -> np.ndarray:
    """Skinning weights [count, 23] of vertices that follow one bone alone."""
    weights = np.zeros((count, 23), np.float32)
    weights[:, BONE[bone]] = 1
    return weights


def _hair_clip(pack: BodyPack, head: Head) -> np.ndarray:
    """Metres inside the hairline [V], which is low in the nape, rises over the ears and ends at the forehead or at a
    fringe."""
    up, forward = pack.head_coordinates(pack.canonical)
    nape, ear = _LINE[head.style]
    forehead: float | np.ndarray = 0.66 if head.style == "fringe" else 0.80 + 0.03 * (head.parting > 0)
    if head.style in ("short", "crop"):  # temples
        forehead = forehead + 0.05 * smoothstep(0.02, 0.06, np.abs(pack.canonical[:, 0]))
    border = (
        nape + (ear - nape) * smoothstep(-0.55, -0.20, forward) + (forehead - ear) * smoothstep(0.10, 0.80, forward)
    )
    return np.where(pack.head_weight > 0.5, (up - border) * 0.225, -0.05).astype(np.float32)


def _hat_clip(pack: BodyPack, head: Head) -> np.ndarray:
    up, forward = pack.head_coordinates(pack.canonical)
    line = 0.62 + 0.06 * np.clip(forward, -1, 1) if head.hat == "cap" else 0.55 + 0.10 * np.clip(forward, -1, 1)
    return np.where(pack.head_weight > 0.5, (up - line) * 0.225, -0.05).astype(np.float32)


def _hood_clip(pack: BodyPack) -> np.ndarray:
    up, forward = pack.head_coordinates(pack.canonical)
    inside = np.minimum((0.05 - forward) * 0.1 + 0.045 * smoothstep(0.7, 1.0, up), (up + 0.2) * 0.225)
    return np.where(pack.head_weight > 0.3, inside, -0.05).astype(np.float32)


def _curtain(pack: BodyPack, body: RestBody, head: Head) -> Mesh:
    """Hair that falls from the crown to the chin (bob) or over the shoulders (long), open at the face."""
    rows, columns = 9, 19
    skull, scale = body.bones[BONE["head"]], body.scale
    length = 0.20 + 0.05 * head.volume if head.style == "bob" else 0.36 + 0.12 * head.volume
    opening = np.deg2rad(118 if head.style == "bob" else 112)
    t, angle = np.meshgrid(np.linspace(0, 1, rows), np.linspace(-opening, opening, columns), indexing="ij")
    fall = 0.185 - t * length  # metres above the chin
    bulge = np.sin(np.clip(t * 1.15, 0, 1) * np.pi) ** 0.8
    x_radius = 0.066 + 0.030 * smoothstep(0.0, 0.25, t) + 0.010 * bulge + 0.020 * head.volume * t
    y_radius = 0.080 + 0.020 * smoothstep(0.0, 0.25, t) - 0.030 * smoothstep(0.45, 1.0, t)
    random = np.random.default_rng(head.hair_seed)
    wave = 0.006 * t * np.sin(angle * random.integers(3, 8) + t * 7 * random.uniform(0.5, 1.5) + random.uniform(0, 6))
    drop = 0.02 * t * np.sin(angle * 5 + random.uniform(0, 6))
    head_vertices = body.vertices[pack.head_weight > 0.9]
    middle = head_vertices[:, 1].max() - pack.head_radius * scale
    y_centre = middle + (0.012 + 0.030 * smoothstep(0.4, 1.0, t)) * scale
    vertices = np.stack([
        skull[0] + (x_radius + wave) * np.sin(angle) * scale,
        y_centre + (y_radius + wave) * np.cos(angle) * scale,
        head_vertices[:, 2].max() + (fall + drop - 0.225) * scale,
    ], 2).reshape(-1, 3)  # fmt: skip
    low = smoothstep(0.02, -0.12, fall).ravel()
    weights = _rigid(rows * columns, "head") * (1 - 0.7 * low)[:, None]
    weights[:, BONE["spine_up"]] = 0.7 * low
    return _loose(Part.HAIR, vertices, grid_faces(rows, columns, wrap=False), weights, closed=False)


def _bundle(pack: BodyPack, body: RestBody, head: Head) -> Mesh:
    """A pony tail or a bun at the back of the head."""
    scale = body.scale
    skull = body.vertices[pack.head_weight > 0.9]
    back, top = skull[:, 1].max(), skull[:, 2].max()
    if head.style == "bun":
        height = top - (0.05 + 0.06 * head.volume) * scale
        vertices, faces = ellipsoid((0, back + 0.012 * scale, height), np.array([0.042, 0.036, 0.040]) * scale)
        return _loose(Part.HAIR, vertices, faces, _rigid(len(vertices), "head"))
    t = np.linspace(0, 1, 7)
    length = (0.16 + 0.16 * head.volume) * scale
    centres = np.stack([0 * t, back + (0.045 * np.sin(t * 2.6) - 0.006) * scale, top - 0.075 * scale - t * length], 1)
    radius = np.array([0.016, 0.030, 0.034, 0.033, 0.029, 0.021, 0.008]) * scale
    vertices, faces = loft(centres[::-1], radius[::-1], radius[::-1], 10)
    return _loose(Part.HAIR, vertices, faces, _rigid(len(vertices), "head"))


def hair(pack: BodyPack, body: RestBody, head: Head) -> list[Mesh]:
    """The hair: a shell on the skull and, for long styles, what falls from it.

    Args:
        pack: the bodies.
        body: the body that wears it.
        head: how the hair is worn.
    Returns:
        up to two meshes.
    """
    if head.style == "bald":
        return []
    clip = _hair_clip(pack, head)
    up, forward = pack.head_coordinates(pack.canonical)
    x = pack.canonical[:, 0]
    thickness = _THICKNESS[head.style] * (0.6 + 0.9 * head.volume)
    random = np.random.default_rng(head.hair_seed)
    lumps = sum(
        np.sin(pack.canonical @ random.normal(0, 45, 3) + random.uniform(0, 6)) for _ in range(4)
    )  # waves of about ten centimetres: tufts, not a helmet
    crown = 0.5 + 0.9 * smoothstep(0.55, 1.0, up)
    groove = 1 - 0.6 * np.exp(-(((x - head.parting) / 0.012) ** 2)) * smoothstep(0.7, 0.9, up) * (forward > -0.3)
    thickness = thickness * crown * (1 + 0.16 * lumps) * groove * (0.35 if head.hat != "none" else 1)
    offset = 0.003 + np.clip(thickness, 0, None) * smoothstep(-0.005, 0.045, clip)
    meshes = [shell(pack, body, Part.HAIR, offset.astype(np.float32), clip)]
    if head.style in ("bob", "long"):
        meshes.append(_curtain(pack, body, head))
    elif head.style in ("tail", "bun") and not (head.style == "bun" and head.hat != "none"):
        meshes.append(_bundle(pack, body, head))
    return meshes


def hat(pack: BodyPack, body: RestBody, head: Head) -> list[Mesh]:
    """A cap with its peak, or a beanie.

    Args:
        pack: the bodies.
        body: the body that wears it.
        head: which hat is worn.
    Returns:
        up to two meshes.
    """
    if head.hat == "none":
        return []
    clip = _hat_clip(pack, head)
    up, _ = pack.head_coordinates(pack.canonical)
    crown = 0.008 if head.hat == "cap" else 0.022
    offset = 0.016 + crown * smoothstep(0.6, 1.0, up)
    meshes = [shell(pack, body, Part.HAT, offset.astype(np.float32), clip)]
    if head.hat == "cap":
        skull = body.vertices[pack.head_weight > 0.9]
        front = skull[clip[pack.head_weight > 0.9] > 0, 1].min()
        centre = (0, front - 0.030 * body.scale, skull[:, 2].max() - 0.073 * body.scale)
        vertices, faces = ellipsoid(centre, np.array([0.075, 0.075, 0.007]) * body.scale, 14, 5, 0.75)
        vertices[:, 2] -= 1.6 * vertices[:, 0] ** 2 + 0.25 * (centre[1] - vertices[:, 1]).clip(0)
        meshes.append(_loose(Part.HAT, vertices, faces, _rigid(len(vertices), "head")))
    return meshes


def hood(pack: BodyPack, body: RestBody, clothes: Clothes) -> list[Mesh]:
    """The hood of the upper garment, up or down.

    Args:
        pack: the bodies.
        body: the body that wears it.
        clothes: what is worn.
    Returns:
        up to one mesh.
    """
    scale = body.scale
    if clothes.upper.hood == "up":
        clip = _hood_clip(pack)
        up, _ = pack.head_coordinates(pack.canonical)
        offset = 0.030 + 0.012 * smoothstep(0.6, 1.0, up)
        return [shell(pack, body, Part.UPPER, offset.astype(np.float32), clip)]
    if clothes.upper.hood == "down":
        neck = body.bones[BONE["neck"]]
        centre = neck + np.array([0, 0.075, -0.055]) * scale
        vertices, faces = ellipsoid(centre, np.array([0.115, 0.062, 0.055]) * scale, 14, 8)
        vertices[:, 2] -= 0.5 * np.abs(vertices[:, 0])
        return [_loose(Part.UPPER, vertices, faces, _rigid(len(vertices), "spine_up"), canonical=vertices / scale)]
    return []


def bag(pack: BodyPack, body: RestBody, bag: Bag) -> list[Mesh]:
    """The bag. Its straps are painted onto the upper garment (`cloth.strap_mask`).

    Args:
        pack: the bodies.
        body: the body that carries it.
        bag: which bag is carried.
    Returns:
        up to one mesh.
    """
    scale, size, side, z = body.scale, bag.size, bag.side, pack.canonical[:, 2]
    torso = pack.arm_weight < 0.2
    if bag.kind == "backpack":
        back = body.vertices[torso & (np.abs(z - 1.25) < 0.15), 1].max()
        chest = body.vertices[torso & (np.abs(z - 1.24) < 0.02), 2].mean()
        radii = np.array([0.145, 0.080, 0.210]) * size * scale
        centre = (0, back + 0.01 + 0.80 * radii[1], chest - 0.03 * (size - 1) * scale)
        vertices, faces = ellipsoid(centre, radii, 18, 11, 0.5)
        above = (vertices[:, 2] - centre[2]).clip(0) / radii[2]
        vertices[:, 1] -= 0.35 * radii[1] * above  # slimmer at the top
        bone = "spine_up"
    elif bag.kind in ("shoulder", "sling"):
        level = 0.93 if bag.kind == "shoulder" else 0.99
        hips = torso & (np.abs(z - level) < 0.06)
        radii = np.array([0.048, 0.135, 0.112]) * size * scale
        beside = np.abs(body.vertices[hips, 0]).max() + 0.02 + 0.8 * radii[0]
        vertices, faces = ellipsoid((side * beside, 0.03, body.vertices[hips, 2].mean()), radii, 14, 9, 0.45)
        bone = "root"
    elif bag.kind == "hand":
        name = "L" if side > 0 else "R"
        radii = np.array([0.042, 0.145, 0.130]) * size * scale
        centre = body.bones[BONE[f"hand.{name}"]] + np.array([0, 0, -0.17 * scale - radii[2]])
        vertices, faces = ellipsoid(centre, radii, 14, 9, 0.4)
        t = np.linspace(0, np.pi, 7)
        handle = centre + np.stack([0 * t, 0.5 * radii[1] * np.cos(t), radii[2] + 0.13 * scale * np.sin(t)], 1)
        handle, handle_faces = loft(handle, np.full(7, 0.007), np.full(7, 0.007), 5, axis=(1, 0, 0), capped=False)
        vertices, faces = np.concatenate([vertices, handle]), np.concatenate([faces, handle_faces + len(vertices)])
        bone = f"hang.{name}"
    else:
        return []
    return [_loose(Part.BAG, vertices, faces, _rigid(len(vertices), bone), closed=bag.kind != "hand")]
