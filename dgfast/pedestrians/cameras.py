"""The cameras: six fixed ones with their own height, light, colours and habits, and the box a detector would draw."""

from dataclasses import dataclass

import numpy as np

from .pose import turn
from .shading import Light

COUNT = 6


@dataclass(frozen=True)
class Camera:
    """number: 1..6; elevation: radians it looks down; distance: metres; headings: usual directions of people, degrees
    (0: towards the camera); gain [3], brightness, gamma, saturation, contrast: of the developed image; blur: pixels at
    256 rows; noise: deviation in 0..1; quality: of the JPEG; wander: how far exposure and white balance drift, 0..1."""

    number: int
    elevation: float
    distance: float
    headings: tuple[float, ...]
    light: Light
    gain: np.ndarray
    brightness: float
    gamma: float
    saturation: float
    contrast: float
    blur: float
    noise: float
    quality: float
    wander: float


def make_cameras(difficulty: float) -> list[Camera]:
    """The six cameras. difficulty 0: alike in colour, sharp, clean; 1: as different as cheap cameras get."""
    elevations = (4, 10, 16, 8, 22, 13)
    distances = (6.0, 7.0, 9.0, 6.5, 10.0, 8.0)
    headings = ((0,), (90,), (180, 0), (45, 225), (270,), (0, 180, 90))
    lights = ((0.5, -0.6, 0.6), (-0.7, -0.4, 0.6), (0.1, -0.35, 1), (0.8, 0.1, 0.6), (-0.4, -0.8, 0.4), (0.2, 0.3, 0.9))
    ambients = (0.55, 0.62, 0.50, 0.48, 0.58, 0.66)
    gains = (
        (1.04, 1, 0.94),
        (0.90, 1, 1.12),
        (1.14, 0.99, 0.84),
        (0.97, 1.04, 0.98),
        (1, 0.97, 1.08),
        (1.08, 1.02, 0.88),
    )
    brightness = (1.0, 1.16, 0.82, 1.08, 0.92, 0.74)
    gamma = (1.0, 0.80, 1.22, 0.92, 1.12, 1.35)
    saturation = (0.95, 0.72, 1.05, 0.85, 1.15, 0.65)
    contrast = (1.0, 0.86, 1.1, 0.95, 1.06, 0.82)
    blur = (0.6, 1.0, 0.7, 1.5, 0.9, 1.2)
    noise = (0.010, 0.016, 0.022, 0.012, 0.014, 0.030)
    quality = (88, 70, 80, 62, 85, 55)

    def blend(clean, hard):
        return clean + difficulty * (hard - clean)

    return [
        Camera(
            number=i + 1,
            elevation=float(np.deg2rad(elevations[i])),
            distance=distances[i],
            headings=headings[i],
            light=Light(np.array(lights[i]) / np.linalg.norm(lights[i]), ambients[i]),
            gain=blend(np.ones(3), np.array(gains[i])),
            brightness=blend(1, brightness[i]),
            gamma=blend(1, gamma[i]),
            saturation=blend(1, saturation[i]),
            contrast=blend(1, contrast[i]),
            blur=blend(0.45, blur[i]),
            noise=blend(0.006, noise[i]),
            quality=blend(92, quality[i]),
            wander=difficulty,
        )
        for i in range(COUNT)
    ]


@dataclass(frozen=True)
class View:
    """A person before a camera, and the box around the person.

    heading: radians, 0 looks into the camera; tilt: radians added to the camera's elevation; fill: share of the box's
    height the body takes; fitted: a good box, with all limbs inside; shift_x, shift_y: of the body, in body heights;
    stretch: horizontal; aside_x, aside_y: shift of a passer-by, in image widths and heights.
    """

    heading: float
    tilt: float
    fill: float
    fitted: bool
    shift_x: float
    shift_y: float
    stretch: float
    aside_x: float = 0.0
    aside_y: float = 0.0


def draw_view(rng: np.random.Generator, heading: float) -> View:
    """A detector's box: mostly good, one in eight too tight or too wide. heading: degrees."""
    turned = float(np.deg2rad(heading + rng.normal(0, 9)))
    tilt, shift_x, shift_y = float(rng.normal(0, 0.02)), float(rng.normal(0, 0.018)), float(rng.normal(0, 0.016))
    fill, stretch = float(rng.uniform(0.82, 0.96)), float(rng.uniform(0.94, 1.10))
    kind = rng.random()
    if kind < 0.06:
        shift_y += float(rng.uniform(-0.12, 0.12))
        return View(turned, tilt, float(rng.uniform(1.05, 1.25)), False, 2 * shift_x, shift_y, stretch)
    if kind < 0.12:
        return View(turned, tilt, float(rng.uniform(0.70, 0.82)), False, 3 * shift_x, 2 * shift_y, stretch)
    return View(turned, tilt, fill, True, shift_x, shift_y, stretch)


@dataclass(frozen=True)
class Projection:
    """Points [N, 2] in pixels, depths [N], and the rotation [3, 3] of the person in the camera's room."""

    points: np.ndarray
    depth: np.ndarray
    rotation: np.ndarray


def project(
    camera: Camera, view: View, outline: np.ndarray, points: list[np.ndarray], height: int, width: int
) -> list[Projection]:
    """Projects point sets [N, 3] into the box around `outline` [V, 3], the naked body: clothes do not move it."""
    rotation = turn("z", view.heading).astype(np.float32)
    elevation = camera.elevation + view.tilt
    cosine, sine = np.float32(np.cos(elevation)), np.float32(np.sin(elevation))
    middle = np.float32(0.5 * outline[:, 2].max())

    def onto_sensor(vertices):
        room = vertices @ rotation.T
        up = room[:, 2] - middle
        depth = camera.distance + room[:, 1] * cosine - up * sine
        return room[:, 0] / depth, -(up * cosine + room[:, 1] * sine) / depth, depth

    x, y, _ = onto_sensor(outline)
    tall = float(np.ptp(y)) * 1.02  # hair and soles
    wide = float(np.ptp(x)) * 1.10  # sleeves
    scale, stretch = view.fill * height / tall, view.stretch
    if view.fitted:
        # A wide person gets a wide box, which is squeezed into the image's shape, as with real detections.
        squeeze = 0.98 * width / (wide * scale)
        if stretch > squeeze:
            stretch = max(squeeze, 0.84)
            scale *= min(1.0, squeeze / stretch)
    room_x = width / 2 - 0.5 * 0.98 * wide * scale * stretch if view.fitted else np.inf
    shift_x = float(np.clip(view.shift_x * tall * scale, -max(room_x, 0), max(room_x, 0)))
    centre_x, centre_y = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2 - 0.01 * tall
    left = width / 2 + shift_x + view.aside_x * width
    top = height / 2 + view.shift_y * tall * scale + view.aside_y * height
    found = []
    for vertices in points:
        x, y, depth = onto_sensor(vertices)
        pixels = np.stack([(x - centre_x) * (scale * stretch) + left, (y - centre_y) * scale + top], 1)
        found.append(Projection(pixels.astype(np.float32), depth.astype(np.float32), rotation))
    return found
