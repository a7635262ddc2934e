"""The shading: linear colour of every visible pixel of a person, and which of them show clothes."""

from dataclasses import dataclass

import numpy as np

from .body import BodyPack
from .cloth import Place, folds, lower_albedo, neck_opening, place, strap_mask, upper_albedo
from .identity import Identity
from .mesh import Part, smoothstep
from .noise import lookup, texture

_SUN = np.array([1.05, 1.0, 0.92], np.float32)  # tint of direct light
_SKY = np.array([0.94, 1.0, 1.07], np.float32)  # tint of ambient light


@dataclass(frozen=True)
class Light:
    """The light before a camera."""

    direction: np.ndarray
    """[3]: unit vector towards the sun in the camera's room, where the camera looks along +y."""
    ambient: float
    """Share of the sky, 0 .. 1."""
    sun: float = 1.0
    """Strength of the direct light: 1 in full sun, near 0 in the shade."""


def _face(albedo: np.ndarray, at: Place, identity: Identity, pack: BodyPack) -> None:
    """Eyes, brows, mouth, stubble of a shaved head and glasses, painted onto the skin."""
    up, forward = pack.head_coordinates(np.stack([at.x, at.y, at.z], 1))
    side, hair = np.abs(at.x), np.array(identity.head.hair, np.float32)
    front = (up > 0) & (forward > 0.45)
    if identity.head.style == "bald":
        scalp = (up > 0.5 + 0.35 * smoothstep(-0.15, 0.8, forward)) & (at.arm < 0.1)
        albedo[scalp] = 0.85 * albedo[scalp] + 0.10 * hair
    cheek = front & (np.abs(side - 0.045) < 0.018) & (np.abs(up - 0.36) < 0.09)
    albedo[cheek] *= np.array([1.04, 0.93, 0.90], np.float32)
    socket = front & (((side - 0.031) / 0.020) ** 2 + ((up - 0.56) / 0.055) ** 2 < 1)
    albedo[socket] *= 0.72
    white = front & (((side - 0.031) / 0.013) ** 2 + ((up - 0.555) / 0.028) ** 2 < 1)
    albedo[white] = 0.45
    albedo[white & (np.abs(side - 0.031) < 0.006)] = 0.02
    brow = (
        front
        & (np.abs(up - 0.645 - 0.8 * (side - 0.031) + 9 * (side - 0.031) ** 2) < 0.014)
        & (np.abs(side - 0.031) < 0.019)
    )
    albedo[brow] = 0.35 * albedo[brow] + 0.65 * hair
    mouth = front & (np.abs(up - 0.235) < 0.026) & (side < 0.024)
    albedo[mouth] *= np.array([0.80, 0.50, 0.50], np.float32)
    albedo[front & (np.abs(up - 0.237) < 0.006) & (side < 0.023)] *= 0.45
    nostril = front & (np.abs(up - 0.36) < 0.014) & (side < 0.013)
    albedo[nostril] *= 0.55
    if identity.head.glasses:
        rim = ((side - 0.032) / 0.027) ** 2 + ((up - 0.555) / 0.095) ** 2
        frame = (
            (up > 0.4) & (forward > 0.1) & (((rim > 0.72) & (rim < 1.15)) | ((np.abs(up - 0.58) < 0.014) & (rim > 1)))
        )
        albedo[frame] = 0.015


def _skin(at: Place, identity: Identity, pack: BodyPack) -> np.ndarray:
    clothes = identity.clothes
    albedo = np.empty((len(at.x), 3), np.float32)
    albedo[:] = identity.skin
    _face(albedo, at, identity, pack)
    shade = np.where((at.z > 1.40) & (at.z < 1.53) & (at.y < 0.03) & ~at.on_arm, 0.72, 1.0)  # under the chin
    below_cuff = np.where(at.on_arm, (at.arm - clothes.upper.sleeve) * 0.55, clothes.lower.end - at.z)
    below_cuff = np.where(at.on_arm | (at.z < 0.9), below_cuff, 1.0)
    shade *= 0.62 + 0.38 * smoothstep(-0.01, 0.05, below_cuff)
    return albedo * shade[:, None].astype(np.float32)


def _hair(at: Place, normal: np.ndarray, light: Light, identity: Identity, pack: BodyPack) -> np.ndarray:
    """Colours [M, 3] of hair: strands, a sheen where they run across the light, and the parting; `normal` is [3, M]."""
    head = identity.head
    on_skull = at.z > 1  # hair that falls from the skull has coordinates of its own, around 0
    up, forward = pack.head_coordinates(np.stack([at.x, at.y, at.z], 1))
    across, back = np.where(on_skull, at.x - head.parting, at.x), np.where(on_skull, at.y - pack.head_y, at.y)
    angle = (np.arctan2(across, back) / np.pi).astype(np.float32)
    strand = lookup(texture("strand"), angle * 0.75 + head.hair_seed % 97 / 97, at.z * 0.8)
    tint = 1 + 0.24 * strand + 0.12 * lookup(texture("cloud"), angle * 0.6, at.z * 1.5 + 0.3)
    hair = np.array(head.hair, np.float32)
    albedo = hair * np.clip(tint, 0.3, 2)[:, None]
    halfway = light.direction + np.array([0, -1, 0])
    halfway = (halfway / np.linalg.norm(halfway)).astype(np.float32)
    # Kajiya and Kay, "Rendering fur with three dimensional textures", 1989. Strands run down the scalp: their tangent
    # is T = up - N (N . up).
    lit = halfway @ normal
    along = (halfway[2] - normal[2] * lit) / np.sqrt(1 - normal[2] ** 2 + 1e-3)
    sheen = np.clip(1 - along**2, 0, 1) ** 12 * np.clip(1 + 0.6 * strand, 0, 2) * (lit > 0)
    albedo += (0.035 + 0.35 * hair) * sheen[:, None].astype(np.float32)
    if head.style in ("bob", "long", "tail"):
        root = on_skull & (np.abs(at.x - head.parting) < 0.0035) & (up > 0.80) & (forward > -0.2)
        albedo[root] = 0.5 * albedo[root] + 0.4 * np.array(identity.skin, np.float32)
    return albedo


def _upper(at: Place, identity: Identity) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour [M, 3], occlusion [M], and which pixels [M] are cloth instead of straps or a bare chest."""
    upper = identity.clothes.upper
    colour = upper_albedo(at, upper)
    strap, bare = strap_mask(at, identity.bag), neck_opening(at, upper)
    edge = np.where(at.on_arm, (upper.sleeve - at.arm) * 0.55, at.z - upper.hem)
    colour[(np.abs(edge - 0.016) < 0.003) & (at.z < 1.3)] *= 0.75  # the seam of hem and cuff
    colour[bare] = np.array(identity.skin, np.float32) * 0.85
    colour[strap] = np.array(identity.bag.colour, np.float32) * 0.75
    under_arm = ~at.on_arm & (np.abs(at.x) > 0.145) & (at.z < 1.36)
    return colour, np.where(under_arm, np.float32(0.82), np.float32(1)), ~(strap | bare)


def _lower(at: Place, identity: Identity) -> tuple[np.ndarray, np.ndarray]:
    """Colour [M, 3], and occlusion [M] between the legs and under the hem of the upper garment."""
    clothes = identity.clothes
    colour = lower_albedo(at, clothes)
    occlusion = 0.60 + 0.40 * smoothstep(-0.005, 0.055, clothes.upper.hem - at.z)
    if clothes.lower.kind == "skirt":
        if clothes.lower.tights:
            colour[at.z <= clothes.lower.end] = clothes.lower.tights
    else:
        between = 1 - smoothstep(0.03, 0.11, np.abs(at.x))
        occlusion *= 1 - 0.35 * smoothstep(0.90, 0.80, at.z) * between
    return colour, occlusion


def _shoe(at: Place, identity: Identity) -> np.ndarray:
    shoes = identity.clothes.shoes
    sole = np.array(shoes.sole, np.float32)
    colour = np.where((at.z < 0.024)[:, None], sole, np.array(shoes.colour, np.float32))
    lace = at.front & (np.abs(at.z - 0.07) < 0.012) & (shoes.top < 0.12)
    colour[lace] = 0.6 * colour[lace] + 0.2 * sole
    return colour


def _bag(at: Place, identity: Identity) -> np.ndarray:
    seam = np.abs(np.mod(at.z * 7 + 0.25, 1) - 0.5) < 0.05
    return np.array(identity.bag.colour, np.float32) * np.where(seam, np.float32(0.5), np.float32(1))[:, None]


def _scarf(at: Place, identity: Identity) -> np.ndarray:
    knit = np.mod(at.z * 60 + at.around * 9, 1) < 0.4
    return np.array(identity.clothes.scarf, np.float32) * np.where(knit, np.float32(0.75), np.float32(1))[:, None]


def _bend(normal: np.ndarray, slopes: np.ndarray) -> None:
    """Tilt normals [3, M] in place by the slopes [2, M] of the cloth, around and up the body."""
    x, y, z = normal.copy()
    normal[0] += y * slopes[0]
    normal[1] -= x * slopes[0]
    normal[2] -= (1 - z * z) * slopes[1]
    normal /= np.sqrt(np.square(normal).sum(0)) + np.float32(1e-6)


def shade(
    identity: Identity, pack: BodyPack, part: np.ndarray, traits: np.ndarray, normal: np.ndarray, light: Light
) -> tuple[np.ndarray, np.ndarray]:
    """The light that a person sends to the camera.

    Args:
        identity: the person.
        pack: the bodies.
        part: [M], ascending: the `mesh.Part` that a pixel shows.
        traits: [6, M], those of `figure.Figure` at the pixels.
        normal: [3, M], of unit length, in the camera's room.
        light: the light before the camera.
    Returns:
        [M, 3] linear RGB; [M] bool, true on garments, false on skin, hair, hats, bags and their straps.
    """
    clothes, count = identity.clothes, len(part)
    albedo = np.empty((count, 3), np.float32)
    occlusion = np.ones(count, np.float32)
    garment = np.zeros(count, bool)
    normal = normal.copy()
    everywhere = place(traits)
    ends = np.searchsorted(part, np.arange(len(Part) + 1))
    ranges = {kind: slice(ends[kind], ends[kind + 1]) for kind in Part}
    for kind, here in ranges.items():
        if here.start == here.stop:
            continue
        at = everywhere[here]
        if kind == Part.SKIN:
            albedo[here] = _skin(at, identity, pack)
        elif kind == Part.SHOE:
            albedo[here] = _shoe(at, identity)
        elif kind == Part.HAIR:
            albedo[here] = _hair(at, normal[:, here], light, identity, pack)
        elif kind == Part.HAT:
            albedo[here] = identity.head.hat_colour
        elif kind == Part.BAG:
            albedo[here] = _bag(at, identity)
        elif kind == Part.UPPER:
            albedo[here], occlusion[here], garment[here] = _upper(at, identity)
        elif kind == Part.LOWER:
            albedo[here], occlusion[here] = _lower(at, identity)
            garment[here] = True
        else:
            albedo[here] = _scarf(at, identity)
            garment[here] = True
        if kind >= Part.UPPER:
            _bend(normal[:, here], folds(at, clothes, kind == Part.LOWER))
            weave = lookup(texture("weave"), 1.5 * at.around, 2.5 * at.along)
            albedo[here] *= (1 + np.float32(0.018) * weave)[:, None]
    toward = light.direction.astype(np.float32)
    direct = np.clip((toward @ normal + np.float32(0.25)) * np.float32(0.8), 0, 1)
    sky, facing = 0.5 + 0.5 * normal[2], np.maximum(-normal[1], 0)
    glow = np.float32(light.ambient) * (0.45 + 0.55 * sky) * (0.75 + 0.25 * facing) * occlusion
    shine = np.float32(light.sun * (1.35 - light.ambient)) * direct**1.3 * (0.5 + 0.5 * occlusion)
    for kind in (Part.SKIN, Part.SHOE, Part.LOWER):  # near the ground there is less light
        here = ranges[kind]
        near = 0.80 + 0.20 * smoothstep(0.0, 0.30, everywhere.z[here])
        glow[here] *= near
        shine[here] *= near
    return albedo * (glow[:, None] * _SKY + shine[:, None] * _SUN), garment


def ground_tint(light: Light) -> np.ndarray:
    """How the light dims and colours level ground.

    Args:
        light: the light before the camera.
    Returns:
        [3] float32: factors of linear red, green and blue; 1 for white light in full sun.
    """
    share = 0.45 * light.ambient / 0.55
    return (share * _SKY + (1 - share) * light.sun * _SUN).astype(np.float32)
