"""Curves of a run as plain geometry: what the page draws as SVG, in its own colours, without a program in it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dgfast.config import Config
from dgfast.training.optimizers import decay, reconstruction_milestones

WIDTH, HEIGHT = 360, 200  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 28  # margins, in which the ticks have their numbers
POINTS = 240  # of a line; more are averaged
BANDS = 24  # places of a chart that tell their numbers
COLOURS = 6  # that the page has for lines; what comes after begins again, dashed

Series = list[tuple[float, float]]  # (iteration, value), in ascending order

STAGES = {"teacher": "Teacher", "generator": "Start of the generator", "dgnet": "DG-Net"}
GROUPS = {  # title -> names of losses, without the letter of the network
    "Sum": ("total", "loss"),
    "Accuracy": ("accuracy",),
    "Reconstructed pictures": ("image", "positive", "cycle"),
    "Reconstructed codes": ("appearance_code", "structure_code"),
    "Where clothes change anything": ("change",),
    "The game of G and D": ("adversarial", "real", "fake", "r1"),
    "Identities": ("identity", "positive_identity", "generated_identity"),
    "Learning from generated pictures": ("primary", "fine"),
}


@dataclass(frozen=True)
class Tick:
    """A number beside an axis."""

    at: float
    """Where, in the chart's units."""
    text: str
    """The number."""


@dataclass(frozen=True)
class Border:
    """Where a stage begins."""

    at: float
    """Where, in the chart's units."""
    width: float
    """Of the stage: the room for its name."""
    text: str
    """The stage."""


@dataclass(frozen=True)
class Line:
    """A curve."""

    name: str
    """What it shows."""
    colour: int
    """Number of the colour, from 0."""
    dashed: bool
    """Whether another line has this colour already."""
    path: str
    """The averaged curve, as SVG's d."""
    faint: str
    """The single values behind it, likewise; "" where there are too few for an average."""
    last: str
    """The last value."""


@dataclass(frozen=True)
class Band:
    """A part of the width that tells its numbers when it is pointed at."""

    x: float
    """Left edge."""
    width: float
    """Width."""
    text: str
    """The numbers."""


@dataclass(frozen=True)
class Chart:
    """Some curves over the iterations."""

    title: str
    """What they show."""
    words: str
    """The same for those who do not see it, with the first and last values."""
    lines: tuple[Line, ...]
    """The curves."""
    across: tuple[Tick, ...]
    """Ticks of the iterations."""
    up: tuple[Tick, ...]
    """Ticks of the values."""
    borders: tuple[Border, ...]
    """The stages, where there are several."""
    bands: tuple[Band, ...]
    """For the pointer."""


def loss_charts(entries: Sequence[Mapping[str, object]], stage: str) -> list[Chart]:
    """The losses of a stage, those of one meaning in one chart. One that was always 0 has no weight, and no line.

    Args:
        entries: lines of metrics.jsonl.
        stage: its name there.
    """
    series = _series(entry for entry in entries if entry["stage"] == stage)
    series = {name: own for name, own in series.items() if name != "images_per_s" and any(y for _, y in own)}
    charts = []
    for title, names in GROUPS.items():
        own = {_said(name): series.pop(name) for name in list(series) if name.rpartition("/")[2] in names}
        if own:
            charts.append(_chart(title, own))
    if series:  # of a loss that this file does not know
        charts.append(_chart("Other numbers", {_said(name): own for name, own in series.items()}))
    return charts


def speed_chart(entries: Sequence[Mapping[str, object]]) -> Chart | None:
    """Images per second of all stages, one after another.

    Args:
        entries: lines of metrics.jsonl.
    Returns:
        None where there are none.
    """
    series, borders, begin = {}, [], 0.0
    for stage, title in STAGES.items():
        own = _series(entry for entry in entries if entry["stage"] == stage).get("images_per_s", [])
        if own:
            series[title] = [(begin + x, y) for x, y in own]
            borders.append((begin, title))
            begin += own[-1][0] + 1
    return _chart("Images per second", series, borders) if series else None


def rate_chart(config: Config) -> Chart | None:
    """The learning rates of all stages, one after another, as the schedules give them.

    Args:
        config: the run's settings.
    Returns:
        None where there are none.
    """
    optim, teaching = config.optim, config.teaching
    stages: tuple[tuple[str, int, Sequence[int], dict[str, float]], ...] = (
        (
            "teacher",
            0 if teaching.teacher else teaching.teacher_iterations,
            teaching.teacher_milestones,
            {"teacher, backbone": teaching.teacher_backbone_lr, "teacher, head": teaching.teacher_lr},
        ),
        ("generator", optim.generator_iterations, reconstruction_milestones(optim), {"E_s and G": optim.generator_lr}),
        (
            "dgnet",
            optim.iterations,
            optim.milestones,
            {
                "E_s and G": optim.generator_lr,
                "D": optim.discriminator_lr,
                "E_a, backbone": optim.backbone_lr,
                "E_a, heads": optim.head_lr,
            },
        ),
    )
    series: dict[str, Series] = {}
    borders, begin = [], 0
    for stage, iterations, milestones, rates in stages:
        if not iterations:
            continue
        steps = sorted({0, iterations, *(m for m in milestones if 0 < m < iterations)})
        for name, rate in rates.items():
            for start, stop in zip(steps, steps[1:], strict=False):
                value = rate * decay(start, milestones)
                series.setdefault(name, []).extend([(begin + start, value), (begin + stop, value)])
        borders.append((float(begin), STAGES[stage]))
        begin += iterations
    series = {name: [(x, y) for x, y in own if y > 0] for name, own in series.items()}
    series = {name: own for name, own in series.items() if own}
    return _chart("Learning rates", series, borders, logarithmic=True) if series else None


def _series(entries: Iterable[Mapping[str, object]]) -> dict[str, Series]:
    """Name -> its finite values by iteration."""
    found: dict[str, Series] = {}
    for entry in entries:
        for name, value in entry.items():
            if name not in ("stage", "iteration") and isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(name, []).append((float(str(entry["iteration"])), float(value)))
    return found


def _chart(
    title: str,
    series: Mapping[str, Series],
    borders: Sequence[tuple[float, str]] = (),
    *,
    logarithmic: bool = False,
) -> Chart:
    def up(value: float) -> float:
        return math.log10(value) if logarithmic else value

    single = {name: np.array([(x, up(y)) for x, y in own]) for name, own in series.items()}
    # Rates are steps, which an average would round off.
    smooth = single if logarithmic else {name: _averaged(own) for name, own in single.items()}
    points = np.concatenate(list(smooth.values()))
    left, right = 0.0, max(float(points[:, 0].max()), 1.0)
    low, high = float(points[:, 1].min()), float(points[:, 1].max())
    values = _decades(low, high) if logarithmic else _steps(min(0.0, low), high)
    low, high = min(low, values[0]), max(high, values[-1])

    def place(own: np.ndarray) -> np.ndarray:
        x = LEFT + (own[:, 0] - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (own[:, 1] - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return np.stack([x, y], 1)

    def across(x: float) -> float:
        return round(float(place(np.array([[x, low]]))[0, 0]), 1)

    lines = []
    for number, (name, own) in enumerate(single.items()):
        faint = "" if smooth[name] is own else _path(place(_thinned(own)))
        path = _path(place(_thinned(smooth[name]) if not logarithmic else own))
        last = _number(series[name][-1][1])
        lines.append(Line(name, number % COLOURS, number >= COLOURS, path, faint, last))
    changes = (
        f"{line.name} from {_number(own[0][1])} to {line.last}"
        for line, own in zip(lines, series.values(), strict=True)
    )
    return Chart(
        title,
        f"{title}: {'; '.join(changes)}",
        tuple(lines),
        tuple(Tick(across(x), f"{x:,.0f}") for x in _steps(left, right, 4) if left <= x <= right),
        tuple(
            Tick(round(float(place(np.array([[left, value]]))[0, 1]), 1), _number(10**value if logarithmic else value))
            for value in values
        ),
        tuple(
            Border(across(x), across(end) - across(x), text)
            for (x, text), end in zip(borders, [x for x, _ in borders[1:]] + [right], strict=False)
        ),
        _bands(series, left, right),
    )


def _bands(series: Mapping[str, Series], left: float, right: float) -> tuple[Band, ...]:
    edges = np.linspace(left, right, BANDS + 1)
    width = (WIDTH - LEFT - RIGHT) / BANDS
    bands = []
    for number, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        last = high if number + 1 < BANDS else math.inf
        inside = {name: [y for x, y in own if low <= x < last] for name, own in series.items()}
        words = [f"{name}: {_number(float(np.mean(own)))}" for name, own in inside.items() if own]
        if words:
            text = "\n".join([f"iterations {low:,.0f} to {high:,.0f}", *words])
            bands.append(Band(round(LEFT + number * width, 1), round(width, 1), text))
    return tuple(bands)


def _averaged(own: np.ndarray) -> np.ndarray:
    """A running mean in which earlier values count less and less; the values themselves where they are few."""
    if len(own) < 16:
        return own
    keep = 1 - 20 / (len(own) + 20)
    mean, weight, means = 0.0, 0.0, []
    for value in own[:, 1]:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        means.append(mean / weight)
    return np.stack([own[:, 0], means], 1)


def _thinned(own: np.ndarray) -> np.ndarray:
    """As many points as a line needs: means of neighbours."""
    if len(own) <= POINTS:
        return own
    return np.stack([part.mean(0) for part in np.array_split(own, POINTS)])


def _path(points: np.ndarray) -> str:
    if len(points) == 1:  # a line of no length with round ends is a dot
        points = np.repeat(points, 2, axis=0)
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _steps(low: float, high: float, number: int = 4) -> list[float]:
    """Round numbers from one at or below `low` to one at or above `high`."""
    rough = max(high - low, 1e-9) / number
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * index for index in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Exponents of the powers of ten around two logarithms."""
    first = math.floor(low + 1e-9)
    return [float(exponent) for exponent in range(first, max(math.ceil(high - 1e-9), first + 1) + 1)]


def _number(value: float) -> str:
    """A number with three digits that count, without an exponent where that is short."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):.10g}"
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")


def _said(name: str) -> str:
    """The name of a loss: "d/real" is D's."""
    network, _, loss = name.rpartition("/")
    words = loss.replace("_", " ")
    return f"{words} (D)" if network == "d" else words
