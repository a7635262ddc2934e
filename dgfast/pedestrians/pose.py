"""The pose: one moment of a walk, its joint rotations, and skinning."""

from dataclasses import dataclass

import numpy as np

from .body import BONE, BONES

_PARENT = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 12, 13, 10, 15, 16, 17, 10, 19)
_SIDES = (("L", 1), ("R", -1))


@dataclass(frozen=True)
class Pose:
    """One moment of a walk."""

    phase: float
    """Of the gait, radians."""
    stride: float
    """0: standing, 1: a normal walk."""
    gesture: str
    """What the arms do: walk, phone, pocket or strap."""
    side: int
    """The arm that makes the gesture; 1: left, -1: right."""
    lean: float
    """Of the chest, forwards, radians."""
    head_turn: float
    """To the left, radians."""
    head_nod: float
    """Downwards, radians."""


@dataclass(frozen=True)
class Joints:
    """Every bone, in the order of `body.BONES`, in a pose."""

    rotation: np.ndarray
    """[23, 3, 3]: against its rest orientation, in the frame of the room."""
    position: np.ndarray
    """[23, 3], metres."""


def draw_gait(rng: np.random.Generator) -> Pose:
    """The manner in which somebody walks past one camera; `draw_step` varies it from image to image.

    Args:
        rng: what it is drawn from.
    """
    return Pose(
        phase=float(rng.uniform(0, 2 * np.pi)),
        stride=0.1 if rng.random() < 0.12 else float(rng.uniform(0.65, 1.1)),
        gesture=str(rng.choice(["walk", "phone", "pocket", "strap"], p=[0.70, 0.12, 0.09, 0.09])),
        side=1 if rng.random() < 0.5 else -1,
        lean=float(rng.normal(0.03, 0.03)),
        head_turn=0.0,
        head_nod=0.0,
    )


def draw_step(rng: np.random.Generator, gait: Pose) -> Pose:
    """Another moment of the same walk.

    Args:
        rng: what it is drawn from.
        gait: the walk.
    """
    return Pose(
        phase=gait.phase + float(rng.uniform(0, 2 * np.pi)),
        stride=gait.stride,
        gesture=gait.gesture,
        side=gait.side,
        lean=gait.lean,
        head_turn=float(rng.normal(0, 0.22)),
        head_nod=float(rng.normal(0.02, 0.08)),
    )


def turn(axis: str, angle: float) -> np.ndarray:
    """A rotation about a coordinate axis, right-handed.

    Args:
        axis: "x", "y" or "z".
        angle: radians.
    Returns:
        [3, 3].
    """
    c, s = np.cos(angle), np.sin(angle)
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(rows[axis])


def _aligning(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The smallest rotation that takes the direction `start` to the direction `end`."""
    start, end = start / np.linalg.norm(start), end / np.linalg.norm(end)
    axis, cosine = np.cross(start, end), float(start @ end)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def _down(angle: float, outwards: float) -> np.ndarray:
    """The direction that hangs down, swung forward by `angle` and leaning along x by `outwards` (radians)."""
    return np.array([np.sin(outwards), -np.sin(angle) * np.cos(outwards), -np.cos(angle) * np.cos(outwards)])


def _arm_directions(pose: Pose, swing: float, sign: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Directions of upper arm and forearm in the frame of the chest; `spread` is the least angle off the body."""
    mine = pose.side == sign
    if pose.gesture == "phone" and mine:
        return _down(0.35, sign * 0.22), np.array([-sign * 0.30, -0.72, 0.62])
    if pose.gesture == "strap" and mine:
        return _down(0.10, sign * 0.30), np.array([-sign * 0.42, -0.50, 0.76])
    if pose.gesture == "pocket":
        return _down(-0.22, sign * (spread + 0.16)), _down(0.32, -sign * 0.26)
    walk = pose.phase + (np.pi if sign > 0 else 0)
    forward = 0.36 * pose.stride * swing * np.sin(walk)
    bend = 0.20 + 0.55 * max(0.0, forward)
    return _down(forward - 0.04, sign * spread), _down(forward + bend, sign * (spread * 0.4 - 0.02))


def joints(pose: Pose, bones: np.ndarray, swing: float, girth: float) -> Joints:
    """Where every bone is in a pose.

    Args:
        pose: the pose.
        bones: [21, 3], metres: positions of the joints at rest.
        swing: how far the arms swing, relative.
        girth: half width of the hips over half the distance of the shoulder joints; it says how far the arms must stay
            off the body.
    Returns:
        rotations and positions of the 23 bones.
    """
    rotation = np.tile(np.eye(3), (len(BONES), 1, 1))  # of each bone, in the frame of the room

    def rest(start: str, end: str) -> np.ndarray:
        return bones[BONE[end]] - bones[BONE[start]]

    sway = np.sin(pose.phase)
    pelvis = turn("z", -0.07 * pose.stride * sway) @ turn("x", 0.4 * pose.lean)
    chest = turn("z", 0.06 * pose.stride * sway) @ turn("x", pose.lean)
    for name in ("root", "pelvis.L", "pelvis.R", "hang.L", "hang.R"):
        rotation[BONE[name]] = pelvis
    rotation[BONE["spine_lo"]] = 0.5 * (pelvis + chest)
    for name in ("spine_up", "clavicle.L", "clavicle.R", "neck"):
        rotation[BONE[name]] = chest
    rotation[BONE["neck"]] = chest @ turn("z", 0.4 * pose.head_turn)
    rotation[BONE["head"]] = chest @ turn("z", pose.head_turn) @ turn("x", pose.head_nod - pose.lean)
    spread = 0.10 + 0.35 * max(0.0, girth - 0.85)
    for side, sign in _SIDES:
        phase = pose.phase if sign > 0 else pose.phase + np.pi
        # The knee bends most while its leg swings forward, just before it passes the other.
        swing_phase = np.angle(np.exp(1j * (phase + 0.45)))
        hip = 0.04 + 0.44 * pose.stride * np.sin(phase)
        knee = 0.06 + pose.stride * (0.86 * np.exp(-((swing_phase / 0.78) ** 2)) + 0.06 * max(0.0, np.cos(phase + 2.2)))
        shank = hip - knee
        foot = 0.75 * max(0.0, -shank - 0.1) - 0.5 * max(0.0, shank - 0.1)
        thigh_rest, shank_rest = rest(f"upperleg.{side}", f"lowerleg.{side}"), rest(f"lowerleg.{side}", f"foot.{side}")
        rotation[BONE[f"upperleg.{side}"]] = pelvis @ _aligning(thigh_rest, _down(hip, sign * 0.025))
        rotation[BONE[f"lowerleg.{side}"]] = pelvis @ _aligning(shank_rest, _down(shank, sign * 0.03))
        rotation[BONE[f"foot.{side}"]] = pelvis @ turn("z", sign * 0.06) @ turn("x", foot)
        upper, fore = _arm_directions(pose, swing, sign, spread)
        rotation[BONE[f"upperarm.{side}"]] = chest @ _aligning(rest(f"upperarm.{side}", f"lowerarm.{side}"), upper)
        rotation[BONE[f"lowerarm.{side}"]] = chest @ _aligning(rest(f"lowerarm.{side}", f"hand.{side}"), fore)
        rotation[BONE[f"hand.{side}"]] = rotation[BONE[f"lowerarm.{side}"]]
    position = np.zeros((len(BONES), 3))
    position[0] = bones[0]
    for index in range(1, len(_PARENT)):
        parent = _PARENT[index]
        position[index] = position[parent] + rotation[parent] @ (bones[index] - bones[parent])
    for side, _ in _SIDES:
        position[BONE[f"hang.{side}"]] = position[BONE[f"hand.{side}"]]
    return Joints(rotation, position)


def skin(
    vertices: np.ndarray, normals: np.ndarray, weights: np.ndarray, bones: np.ndarray, joints: Joints
) -> tuple[np.ndarray, np.ndarray]:
    """Linear blend skinning.

    Args:
        vertices: [N, 3], metres: at rest.
        normals: [N, 3]: at rest, of unit length.
        weights: [N, 23], 0 .. 1: how much each bone moves a vertex.
        bones: [21, 3], metres: positions of the joints at rest.
        joints: of the pose.
    Returns:
        [N, 3] posed vertices; [N, 3] posed normals, whose length is only about 1.
    """
    bones = np.concatenate([bones, bones[[BONE["hand.L"], BONE["hand.R"]]]])
    shift = joints.position - np.einsum("bij,bj->bi", joints.rotation, bones)
    transform = np.concatenate([joints.rotation, shift[..., None]], 2).astype(np.float32)
    blended = (weights @ transform.reshape(len(transform), 12)).reshape(-1, 3, 4)
    posed = np.einsum("nij,nj->ni", blended[:, :, :3], vertices) + blended[:, :, 3]
    return posed, np.einsum("nij,nj->ni", blended[:, :, :3], normals)
