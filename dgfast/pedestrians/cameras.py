"""The cameras: six fixed ones with their own height, light, colours and habits, and the box a detector would draw."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .pose import turn
from .shading import Light

COUNT = 6  # cameras of a data set


@dataclass(frozen=True)
class Camera:
    """One of the fixed cameras; all values from `gain` to `blur` are those of the image that it develops."""

    number: int
    """1 .. 6."""
    elevation: float
    """Angle by which it looks down, radians."""
    distance: float
    """From the people, metres."""
    headings: tuple[float, ...]
    """Usual directions of the people, degrees; 0: towards the camera."""
    light: Light
    """Where the sun stands, and how strong it is."""
    gain: np.ndarray
    """[3]: white balance, factors of red, green and blue."""
    brightness: float
    """Factor of the exposure."""
    gamma: float
    """Relative exponent of the tone curve; above 1: darker."""
    saturation: float
    """Factor of the colours' distance to grey."""
    contrast: float
    """Factor of the distance to a middle grey."""
    blur: float
    """Deviation of the Gaussian blur, pixels at 256 rows."""
    noise: float
    """Deviation of the noise, of values in 0 .. 1."""
    quality: float
    """Of the JPEG, as libjpeg counts."""
    wander: float
    """0 .. 1: how far exposure and white balance drift from image to image."""


def make_cameras(difficulty: float) -> list[Camera]:
    """The six cameras of a data set.

    Args:
        difficulty: 0: alike in colour, sharp and clean; 1: as different as cheap cameras are.
    Returns:
        `COUNT` cameras, in the order of their numbers.
    """
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

    def blend(clean: Any, hard: Any) -> Any:
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
    """A person before a camera, and the box that a detector draws around the person."""

    heading: float
    """Direction of the person, radians; 0: into the camera."""
    tilt: float
    """Added to the camera's elevation, radians."""
    fill: float
    """Share of the box's height that the body takes; above 1: the box is too small."""
    fitted: bool
    """Whether the box is a good one, with all limbs inside."""
    shift_x: float
    """Of the body in the box, to the right, in body heights."""
    shift_y: float
    """Of the body in the box, downwards, in body heights."""
    stretch: float
    """Horizontal factor."""
    aside_x: float = 0.0
    """Shift of a passer-by to the right, in image widths."""
    aside_y: float = 0.0
    """Shift of a passer-by downwards, in image heights."""


def draw_view(rng: np.random.Generator, heading: float) -> View:
    """A detector's box: mostly good, one in eight too tight or too wide.

    Args:
        rng: what it is drawn from.
        heading: direction of the person, degrees; 0: towards the camera.
    Returns:
        the view, in which the heading varies by some degrees.
    """
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
    """Where points of a person lie in the image."""

    points: np.ndarray
    """[N, 2] float32, pixels: x to the right, y down."""
    depth: np.ndarray
    """[N] float32, metres: distance along the camera's axis."""
    rotation: np.ndarray
    """[3, 3] float32: of the person about the vertical axis, in the camera's room."""


def project(
    camera: Camera, view: View, outline: np.ndarray, points: list[np.ndarray], height: int, width: int
) -> list[Projection]:
    """Project points of a posed person into the detector's box.

    Args:
        camera: the camera.
        view: the person before it, and the box.
        outline: [V, 3], metres: the naked body, around which the box is drawn, so that clothes do not move it.
        points: sets of points [N, 3], metres.
        height: of the box's image, pixels.
        width: of the box's image, pixels.
    Returns:
        a projection for every set.
    """
    rotation = turn("z", view.heading).astype(np.float32)
    elevation = camera.elevation + view.tilt
    cosine, sine = np.float32(np.cos(elevation)), np.float32(np.sin(elevation))
    middle = np.float32(0.5 * outline[:, 2].max())

    def onto_sensor(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        room = vertices @ rotation.T
        up = room[:, 2] - middle
        depth = camera.distance + room[:, 1] * cosine - up * sine
        return room[:, 0] / depth, -(up * cosine + room[:, 1] * sine) / depth, depth

    x, y, _ = onto_sensor(outline)
    tall = float(np.ptp(y)) * 1.02  # hair and soles
    wide = float(np.ptp(x)) * 1.10  # sleeves
    scale, stretch = view.fill * height / tall, view.stretch
    if view.fitted:
        # The box of a wide person is wide, too, and is squeezed into the image's shape, as with real detections.
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
