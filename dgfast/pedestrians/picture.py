"""The picture: one crop of one person - drawn as a `Shot`, rendered, and developed by the camera.

All randomness of a picture is in its shot, which does not depend on clothes: the same shot of the same person in other
clothes differs from the first only where clothes or their shadows are.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from .body import BodyPack, load_body_pack
from .cameras import COUNT, Camera, View, draw_view, make_cameras, project
from .figure import Figure, PosedFigure, build_figure, pose_figure
from .identity import draw_identity
from .mesh import smoothstep
from .noise import lookup, texture
from .pose import Pose, draw_gait, draw_step, turn
from .rasterise import rasterise
from .scene import background, furniture
from .shading import Light, ground_tint, shade

_PASSERS = 24  # people who pass by in a data set, beside its identities
_FINER = 2  # people are drawn at twice the resolution
_PASSER_STREAM, _BACKGROUND_STREAM = 4, 5  # random streams of the seed; plan.py uses others


@dataclass(frozen=True)
class World:
    """What all pictures of a data set share."""

    pack: BodyPack
    """The bodies."""
    cameras: list[Camera]
    """The six cameras."""
    backgrounds: list[np.ndarray]
    """[scene.HEIGHT, scene.WIDTH, 3] float32, linear RGB: the view of each camera without people."""
    seed: int
    """Of the data set."""

    def passer(self, index: int) -> Figure:
        """Somebody who passes by.

        Args:
            index: of the person, 0 .. 23.
        """
        return _passer(self.seed, index)


@lru_cache(maxsize=2 * _PASSERS)
def _passer(seed: int, index: int) -> Figure:
    return build_figure(draw_identity(np.random.default_rng([seed, _PASSER_STREAM, index])), load_body_pack())


@lru_cache(maxsize=1)
def make_world(seed: int, difficulty: float) -> World:
    """The cameras of a data set and what they see; the last one made is kept for the process.

    Args:
        seed: of the data set.
        difficulty: 0 .. 1: how much the cameras differ.
    """
    streams = [np.random.default_rng([seed, _BACKGROUND_STREAM, index]) for index in range(COUNT)]
    backgrounds = [background(rng, index) for index, rng in enumerate(streams)]
    return World(load_body_pack(), make_cameras(difficulty), backgrounds, seed)


@dataclass(frozen=True)
class Passer:
    """Somebody else in the picture."""

    who: int
    """Index of the person, for `World.passer`."""
    pose: Pose
    """The moment of the walk."""
    view: View
    """Where the person is seen."""


@dataclass(frozen=True)
class Encounter:
    """One person walking past one camera."""

    camera: int
    """Index of the camera, 0 .. 5."""
    gait: Pose
    """The manner of walking."""
    heading: float
    """Direction of the walk, degrees; 0: towards the camera."""
    ground_x: float
    """Where in the camera's view, 0 (left) .. 1 (right)."""
    ground_y: float
    """Where in the camera's view, 0 (far) .. 1 (near)."""
    scale: float
    """Of the part of the view that is behind the person."""
    exposure: float
    """Relative."""
    sun: float
    """Strength of the direct light: 1 in full sun, near 0 in the shade."""
    hour: float
    """Angle by which the sun is off its usual place, radians."""


@dataclass(frozen=True)
class Shot:
    """How one picture is taken."""

    encounter: Encounter
    """The walk that it shows."""
    pose: Pose
    """The moment of the walk."""
    view: View
    """The person before the camera, and the detector's box."""
    ground_x: float
    """Shift of the ground behind the person to the right, pixels of the camera's view."""
    ground_y: float
    """Shift of the ground behind the person downwards, pixels of the camera's view."""
    behind: Passer | None
    """Somebody behind the person, or nobody."""
    before: Passer | None
    """Somebody in front of the person, or nobody."""
    shade: float | None
    """Place in a pattern of leaves that shade the person, or None: no leaves."""
    furniture: int | None
    """Seed of an object in front of the person, or None: no object."""
    quality: float
    """Added to the camera's JPEG quality."""
    sensor: int
    """Seed of exposure, blur and noise."""


@dataclass(frozen=True)
class Picture:
    """What a camera has taken."""

    image: np.ndarray
    """[H, W, 3] uint8 RGB, before it becomes a JPEG."""
    mask: np.ndarray
    """[H, W] uint8: 255 where clothes of the person are seen, else 0."""
    quality: int
    """Of the JPEG, 35 .. 95, as libjpeg counts."""

    def jpeg(self) -> bytes:
        """The image as the camera stores it."""
        return cv2.imencode(".jpg", self.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.quality])[1].tobytes()


def draw_encounter(rng: np.random.Generator, camera: Camera) -> Encounter:
    """Somebody comes past a camera.

    Args:
        rng: what it is drawn from.
        camera: the camera.
    """
    heading = camera.headings[rng.integers(len(camera.headings))] + rng.normal(0, 28)
    if rng.random() < 0.22:
        heading = rng.uniform(0, 360)
    return Encounter(
        camera=camera.number - 1,
        gait=draw_gait(rng),
        heading=float(heading),
        ground_x=float(rng.uniform(0.1, 0.9)),
        ground_y=float(rng.uniform(0, 1)),
        scale=float(rng.uniform(0.8, 1.3)),
        exposure=float(rng.normal(1, 0.10)),
        sun=float(rng.uniform(0.10, 0.40) if rng.random() < 0.35 else rng.uniform(0.7, 1.2)),
        hour=float(rng.normal(0, 0.6)),
    )


def _draw_passer(rng: np.random.Generator, camera: Camera, behind: bool) -> Passer:
    encounter = draw_encounter(rng, camera)
    view = draw_view(rng, encounter.heading)
    side = float(rng.choice([-1, 1]))
    if behind:
        aside_x, aside_y, size = side * rng.uniform(0.32, 0.55), rng.uniform(-0.06, 0.02), rng.uniform(0.6, 0.95)
    else:
        aside_x, aside_y, size = side * rng.uniform(0.34, 0.52), rng.uniform(0, 0.12), rng.uniform(1.0, 1.1)
    view = View(view.heading, view.tilt, view.fill * size, False, 0, 0, view.stretch, float(aside_x), float(aside_y))
    return Passer(int(rng.integers(_PASSERS)), draw_step(rng, encounter.gait), view)


def draw_shot(rng: np.random.Generator, encounter: Encounter, camera: Camera) -> Shot:
    """A picture of an encounter.

    Args:
        rng: what it is drawn from.
        encounter: somebody who walks past the camera.
        camera: that camera.
    """
    pose, view = draw_step(rng, encounter.gait), draw_view(rng, encounter.heading)
    ground_x, ground_y = float(rng.normal(0, 25)), float(rng.normal(0, 8))
    behind = _draw_passer(rng, camera, behind=True) if rng.random() < 0.12 else None
    kind = rng.random()
    return Shot(
        encounter=encounter,
        pose=pose,
        view=view,
        ground_x=ground_x,
        ground_y=ground_y,
        behind=behind,
        before=_draw_passer(rng, camera, behind=False) if kind < 0.05 else None,
        shade=float(rng.random()) if rng.random() < 0.25 else None,
        furniture=int(rng.integers(1 << 30)) if 0.05 <= kind < 0.10 else None,
        quality=float(rng.normal(0, 4)),
        sensor=int(rng.integers(1 << 62)),
    )


def _ground(world: World, shot: Shot, height: int, width: int) -> np.ndarray:
    """The part [H, W, 3] of the camera's view that is behind the person."""
    view, encounter = world.backgrounds[shot.encounter.camera], shot.encounter
    rows, columns = view.shape[:2]
    tall = int(np.clip(380 * encounter.scale, 200, rows))
    wide = int(np.clip(tall * width / height, 1, columns))
    left = int(np.clip(encounter.ground_x * columns + shot.ground_x - wide / 2, 0, columns - wide))
    top = int(np.clip((rows - tall) * (0.35 + 0.65 * encounter.ground_y) + shot.ground_y, 0, rows - tall))
    crop = view[top : top + tall, left : left + wide]
    return cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA if tall > height else cv2.INTER_LINEAR)


@dataclass(frozen=True)
class _Layer:
    """One person, drawn."""

    colour: np.ndarray
    """[H, W, 3] float32, linear RGB, multiplied by the opacity."""
    opacity: np.ndarray
    """[H, W] float32, 0 .. 1."""
    garment: np.ndarray
    """[H, W] float32, 0 .. 1: share of clothes."""
    feet: np.ndarray
    """[2], pixels: x and y of the middle of the soles."""

    def over(self, canvas: np.ndarray) -> np.ndarray:
        """The person in front of a picture [H, W, 3]."""
        return canvas * (1 - self.opacity[..., None]) + self.colour


def _light(camera: Camera, encounter: Encounter) -> Light:
    return Light(turn("z", encounter.hour) @ camera.light.direction, camera.light.ambient, encounter.sun)


def _leaf_shade(shade: float, height: int, width: int) -> np.ndarray:
    """Light [H, W, 1] that comes through the leaves of a tree: soft patches down to 0.45."""
    v, u = np.mgrid[0:height, 0:width].astype(np.float32) / height
    patches = lookup(texture("blotch"), 0.35 * u + np.float32(shade), 0.35 * v + np.float32(shade * 7))
    return 1 - np.float32(0.55) * smoothstep(-0.5, 0.5, cv2.GaussianBlur(patches, (0, 0), height / 64))[..., None]


def _draw(
    world: World, posed: PosedFigure, camera: Camera, light: Light, view: View, height: int, width: int
) -> _Layer:
    fine_height, fine_width = height * _FINER, width * _FINER
    figure = posed.figure
    soles = posed.outline[posed.outline[:, 2] < 0.06]
    body, feet = project(camera, view, posed.outline, [posed.vertices, soles], fine_height, fine_width)
    fragments = rasterise(
        body.points, body.depth, figure.faces, figure.closed, figure.clip, figure.part, fine_height, fine_width
    )  # fmt: skip
    attributes = fragments.interpolate(np.concatenate([figure.traits, posed.normals @ body.rotation.T], 1))
    traits, normal = attributes[:6], attributes[6:]
    normal /= np.sqrt(np.square(normal).sum(0)) + np.float32(1e-6)
    # Single sheets of cloth and hair are seen from both sides, so their normals are turned towards the camera.
    inside_out = ~figure.closed[fragments.face] & (normal[1] > 0.15)
    normal *= np.where(inside_out, np.float32(-1), np.float32(1))
    colour, garment = shade(figure.identity, world.pack, figure.part[fragments.face], traits, normal, light)
    layers = np.zeros((fine_height * fine_width, 4), np.float32)
    layers[fragments.pixel, :3], layers[fragments.pixel, 3] = colour, 1
    cloth = np.zeros(fine_height * fine_width, np.float32)
    cloth[fragments.pixel] = garment
    person = cv2.resize(layers.reshape(fine_height, fine_width, 4), (width, height), interpolation=cv2.INTER_AREA)
    clothes = cv2.resize(cloth.reshape(fine_height, fine_width), (width, height), interpolation=cv2.INTER_AREA)
    return _Layer(person[..., :3], person[..., 3], clothes, feet.points.mean(0) / _FINER)


def _throw_shadow(canvas: np.ndarray, feet: np.ndarray, light: np.ndarray) -> np.ndarray:
    """The picture [H, W, 3] with a shadow around the feet [2], which the sun in direction `light` [3] throws."""
    height, width = canvas.shape[:2]
    unit = height / 256
    x = (np.arange(width, dtype=np.float32) - feet[0] + 10 * unit * np.float32(light[0])) / (25 * unit)
    y = (np.arange(height, dtype=np.float32) - feet[1]) / (6.5 * unit)
    return canvas * (1 - 0.55 * np.exp(-(x[None] ** 2) - y[:, None] ** 2))[..., None]


def _develop(canvas: np.ndarray, camera: Camera, encounter: Encounter, sensor: int) -> np.ndarray:
    """Linear light to the camera's 8-bit image: exposure, white balance, tone, saturation, haze, blur, noise."""
    rng = np.random.default_rng(sensor)
    unit = canvas.shape[0] / 256
    exposure = camera.brightness * (1 + camera.wander * (encounter.exposure * rng.normal(1, 0.06) - 1))
    balance = camera.gain * exposure * (1 + camera.wander * rng.normal(0, 0.025, 3))
    image = np.power(np.maximum(canvas * balance.astype(np.float32), 1e-5), np.float32(camera.gamma / 2.2))
    grey = image.mean(2, keepdims=True)
    image = grey + (image - grey) * np.float32(camera.saturation)
    image = (image - 0.45) * np.float32(camera.contrast) + np.float32(0.45)
    hazy, veil, glare = rng.random(), rng.uniform(0.6, 0.8), rng.uniform(0, 0.12)
    if hazy < 0.10 * min(1.0, 2 * camera.wander):
        image = image * np.float32(veil) + np.float32(glare)
    image = cv2.GaussianBlur(image, (0, 0), camera.blur * rng.uniform(0.7, 1.3) * unit)
    shaken, length = rng.random(), int(rng.integers(3, 8))
    if shaken < 0.15 * min(1.0, 2 * camera.wander):
        image = cv2.blur(image, (max(int(length * unit), 1), 1))
    image += np.float32(camera.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def take_picture(world: World, figure: Figure | None, shot: Shot, size: tuple[int, int]) -> Picture:
    """Render a picture.

    Args:
        world: the data set's.
        figure: the person; None: nobody, a false detection.
        shot: how the picture is taken.
        size: (height, width) in pixels.
    Returns:
        the image and the mask of the person's clothes.
    """
    height, width = size
    camera = world.cameras[shot.encounter.camera]
    light = _light(camera, shot.encounter)
    canvas = _ground(world, shot, height, width) * ground_tint(light)

    def layer(someone: Figure, pose: Pose, view: View) -> _Layer:
        return _draw(world, pose_figure(someone, world.pack, pose), camera, light, view, height, width)

    if shot.behind:
        behind = layer(world.passer(shot.behind.who), shot.behind.pose, shot.behind.view)
        canvas = behind.over(_throw_shadow(canvas, behind.feet, light.direction))
    clothes = np.zeros(size, np.float32)
    if figure:
        person = layer(figure, shot.pose, shot.view)
        canvas = person.over(_throw_shadow(canvas, person.feet, light.direction))
        clothes = person.garment
    if shot.before:
        before = layer(world.passer(shot.before.who), shot.before.pose, shot.before.view)
        canvas, clothes = before.over(canvas), clothes * (1 - before.opacity)
    if shot.furniture is not None:
        clothes = np.where(furniture(canvas, shot.furniture), 0, clothes)
    if shot.shade is not None:
        canvas *= _leaf_shade(shot.shade, height, width)
    image = _develop(canvas, camera, shot.encounter, shot.sensor)
    quality = int(np.clip(camera.quality + shot.quality, 35, 95))
    return Picture(image, np.where(clothes >= 0.5, 255, 0).astype(np.uint8), quality)
