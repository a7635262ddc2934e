"""What the files of a run directory say, as tables of words. A file that is not there, or that holds something else,
leaves a gap that has its reason; none stops the page."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard

from PIL import Image

from dgfast import run_directory
from dgfast.config import PRESETS, Config, to_json
from dgfast.ranges import flag
from dgfast.retrieval.evaluation import COLUMNS
from dgfast.retrieval.evaluation import TITLES as FEATURES
from dgfast.synthesis.quality import TITLES as SWAPS

from .curves import STAGES
from .pictures import Picture, embed

NONE = "–"  # in a cell that has no number
GROUPS = {
    "data": "Images",
    "synthetic": "Built-in pedestrians",
    "model": "Networks",
    "loss": "Losses",
    "optim": "Optimisers",
    "teaching": "Teacher",
    "run": "Run",
    "evaluation": "Evaluation",
}


@dataclass(frozen=True)
class Table:
    """A table of words."""

    caption: str
    """What it says."""
    head: tuple[str, ...]
    """Of the columns; the first is that of the rows' names."""
    rows: tuple[tuple[str, ...], ...]
    """A name and its cells."""
    marked: tuple[int, ...] = ()
    """Rows that stand out."""


@dataclass(frozen=True)
class Figure:
    """One of the numbers that people ask for first."""

    name: str
    """What it is."""
    value: str
    """With its unit."""
    note: str
    """What it is to be compared with."""


@dataclass
class Contents:
    """What is in a run directory."""

    run: Path
    """The directory, as commands name it."""
    config: Config
    """The run's settings."""
    trained_by: str | None
    """The process that trains it now, in words."""
    report: dict[str, Any]
    """Of report.json; empty where there is none."""
    entries: list[dict[str, Any]]
    """Of metrics.jsonl."""
    damaged: list[str] = field(default_factory=list)
    """Files that hold something else than dgfast writes there."""

    @property
    def status(self) -> str:
        """How far the run is, and how it goes on; commands are in backticks."""
        reached = self.reached()
        done = ", ".join(f"{STAGES[stage]} {now:,} of {planned:,}" for stage, (now, planned) in reached.items())
        done = f" Iterations so far: {done}." if done else ""
        if self.trained_by:
            return f"It is being trained by {self.trained_by}; this is what there was at the time.{done}"
        if self.report:
            return "The run is finished."
        if (self.run / run_directory.MODEL).is_file():
            return (
                f"The training is finished, the evaluation is not: `dgfast train --resume {self.run}` makes it.{done}"
            )
        return f"The run is not finished: `dgfast train --resume {self.run}` goes on with it.{done}"

    @property
    def data_name(self) -> str:
        """What people call the data set."""
        if self.config.data.data_root is None:
            return "built-in pedestrians"
        return str(self.report.get("dataset") or self._json(run_directory.DATA).get("name") or self.config.data.dataset)

    @property
    def numbers(self) -> str:
        """How many images the run is trained on; "" where that is not known."""
        began = self._json(run_directory.DATA) | self.report
        images, identities = began.get("train_images"), began.get("train_identities")
        if not _is_number(images) or not _is_number(identities):
            return ""
        return f"{images:,} training images of {identities:,} identities"

    def reached(self) -> dict[str, tuple[int, int]]:
        """Stage -> iterations that metrics.jsonl knows of, and those that the settings ask for."""
        optim, teaching = self.config.optim, self.config.teaching
        planned = {
            "teacher": teaching.teacher_iterations,
            "generator": optim.generator_iterations,
            "dgnet": optim.iterations,
        }
        now = {entry["stage"]: int(entry["iteration"]) + 1 for entry in self.entries}
        return {stage: (now[stage], number) for stage, number in planned.items() if stage in now}

    def figures(self) -> list[Figure]:
        """The numbers that people ask for first."""
        best = _entries(self.report, "scores", "both")
        teacher = _entries(self.report, "scores", "baseline")
        found = []
        for name, title in (("rank1", "Rank-1"), ("mAP", "mAP")):
            if _is_number(best.get(name)):
                note = f"teacher {_figure(teacher.get(name), 1)} %" if _is_number(teacher.get(name)) else "DG-Net, both"
                found.append(Figure(title, f"{best[name]:.1f} %", note))
        _, quality = self.quality()
        ours, hand = (_inside(quality, "scores", kind, "regions", "clothes", "l1") for kind in ("ours", "stripes"))
        if _is_number(ours):
            found.append(Figure("Error of the clothes", f"{ours:.3f}", f"L1; by hand {_figure(hand, 3)}"))
        speeds = self._speeds()
        if "dgnet" in speeds:
            found.append(Figure("Speed of DG-Net", f"{speeds['dgnet']:.3g}", "images/s in training"))
        seconds = self.report.get("train_seconds")
        if _is_number(seconds):
            found.append(Figure("Training", _duration(seconds), f"on {self.report.get('device', 'this device')}"))
        return found

    def scores(self, reranked: Mapping[str, Mapping[str, float]]) -> list[Table]:
        """How well people are found, on each data set on which that was measured.

        Args:
            reranked: name of a feature -> its scores after re-ranking, percent.
        """
        own = {**_entries(self.report, "scores"), **reranked}
        tables = [_scores(f"On {self.data_name}", own)] if own else []
        for file in sorted(self.run.glob("eval-*.json")):
            found = self._json(file.name)
            if scores := _entries(found, "scores"):
                caption = f"On {found.get('dataset', '?')} ({found.get('root', '?')}), by dgfast eval"
                tables.append(_scores(caption, scores))
        return tables

    def quality(self) -> tuple[str, dict[str, Any]]:
        """The figures of the swaps whose truth is known, and where they come from."""
        measured = self._json("quality.json")
        if _entries(measured, "scores"):
            return f"{measured.get('swaps', '?')} swaps, by dgfast quality", measured
        own = _entries(self.report, "quality")
        return f"{own.get('swaps', '?')} swaps, at the end of the run", own

    def truth_tables(self) -> list[Table]:
        """The swaps beside their truth, and by the pattern of the clothes."""
        source, quality = self.quality()
        scores = _entries(quality, "scores")
        if not scores:
            return []
        columns = {
            "l1": ("L1", 3),
            "psnr": ("PSNR", 1),
            "ssim": ("SSIM", 3),
            "chroma": ("chroma", 1),
            "perceptual_lite0": ("perceptual", 3),
        }
        rows: list[tuple[str, ...]] = []
        marked = []
        for kind, title in SWAPS.items():
            regions = _entries(scores, kind, "regions")
            owner = _entries(quality, "owner", kind)
            if not regions and not owner:
                continue
            clothes, outside = (_entries(regions, region) for region in ("clothes", "outside"))
            cells = [_figure(clothes.get(name), digits) for name, (_, digits) in columns.items()]
            cells += [_figure(outside.get("l1"), 3), _figure(owner.get("mAP"), 1)]
            if kind == "ours":
                marked.append(len(rows))
            rows.append((title, *cells))
        head = ("clothes", *(title for title, _ in columns.values()), "outside", "owner mAP")
        tables = [_without_gaps(Table(source, head, tuple(rows), tuple(marked)))]
        ours, hand = (_entries(scores, kind, "patterns") for kind in ("ours", "stripes"))
        counts = _entries(quality, "counts")
        rows = [
            (
                str(pattern),
                _figure(counts.get(pattern), 0),
                _figure(_inside(ours, pattern, "l1"), 3),
                _figure(_inside(hand, pattern, "l1"), 3),
            )
            for pattern in ours
        ]
        if rows:
            head = ("pattern", "swaps", SWAPS["ours"], "by hand")
            tables.append(_without_gaps(Table("L1 of the clothes by their pattern", head, tuple(rows))))
        return tables

    def photograph_tables(self) -> list[Table]:
        """What `dgfast quality` has measured on photographs, of which nobody knows the truth."""
        rows = []
        for file in sorted(self.run.glob("quality-*.json")):
            found = self._json(file.name)
            again, change = (_entries(found, name) for name in ("reconstruction", "diversity"))
            if again:
                cells = [_figure(again.get(name), digits) for name, digits in (("l1", 3), ("psnr", 1), ("ssim", 3))]
                cells += [_figure(change.get(name), 3) for name in ("ours", "stripes")]
                rows.append((str(found.get("dataset", file.stem)), _figure(found.get("photographs"), 0), *cells))
        head = ("data set", "photographs", "L1", "PSNR, dB", "SSIM", "diversity of swaps", "by hand")
        return [Table("Photographs in their own clothes", head, tuple(rows))] if rows else []

    def picture(self, name: str) -> Picture | None:
        """A picture of the directory.

        Args:
            name: of its file.
        Returns:
            None where there is none, or it is none.
        """
        file = self.run / name
        if not file.is_file():
            return None
        try:
            with Image.open(file) as image:
                return embed(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            self._complain(name)
            return None

    def newest_sample(self) -> str | None:
        """The last grid that was made while the training went on, by its name in the directory."""
        files = sorted((self.run / run_directory.SAMPLES).glob("*.png"))
        return str(files[-1].relative_to(self.run)) if files else None

    def data_table(self) -> Table | None:
        """The data set."""
        began = self._json(run_directory.DATA) | self.report
        titles = {
            "root": "folder",
            "train_images": "training images",
            "train_identities": "training identities",
            "cameras": "cameras",
        }
        rows = [(title, _word(began[name])) for name, title in titles.items() if name in began]
        return Table("Data", ("", ""), (("data set", self.data_name), *rows)) if rows else None

    def speed_table(self) -> Table | None:
        """Iterations and images per second of each stage."""
        speeds = self._speeds()
        rows = tuple(
            (STAGES[stage], f"{now:,} of {planned:,}", f"{speeds[stage]:.3g}" if stage in speeds else NONE)
            for stage, (now, planned) in self.reached().items()
        )
        return Table("Speed, median", ("stage", "iterations", "images/s"), rows) if rows else None

    def environment_table(self) -> Table | None:
        """The machine and the programs that the run has noted."""
        noted: dict[str, Any] = {
            name: self.report[name] for name in ("device", "precision", "torch") if name in self.report
        }
        noted |= _entries(self.report, "environment")
        if _is_number(self.report.get("train_seconds")):
            noted["training"] = _duration(self.report["train_seconds"])
        rows = tuple((str(name), _word(value)) for name, value in noted.items())
        return Table("Environment", ("", ""), rows) if rows else None

    def settings(self) -> list[Table]:
        """Every setting, with what the preset says where that is something else."""
        preset = PRESETS.get(self.config.preset, Config())
        tables = []
        for name, title in GROUPS.items():
            group, usual = getattr(self.config, name), getattr(preset, name)
            rows: list[tuple[str, ...]] = []
            marked = []
            for entry in dataclasses.fields(group):
                now, then = (to_json(getattr(side, entry.name)) for side in (group, usual))
                if now != then:
                    marked.append(len(rows))
                rows.append((flag(entry.name), _word(now), _word(then) if now != then else ""))
            head = ("flag", "value", "preset" if marked else "")
            tables.append(Table(title, head, tuple(rows), tuple(marked)))
        return [_without_gaps(table) for table in tables]

    def _speeds(self) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for entry in self.entries:
            if _is_number(entry.get("images_per_s")):
                found.setdefault(entry["stage"], []).append(entry["images_per_s"])
        return {stage: median(values) for stage, values in found.items()}

    def _json(self, name: str) -> dict[str, Any]:
        """A file's values; {} where there are none."""
        file = self.run / name
        if not file.is_file():
            return {}
        try:
            values = json.loads(file.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            self._complain(name)
            return {}
        return values

    def _complain(self, name: str) -> None:
        if name not in self.damaged:
            self.damaged.append(name)


def read(run: Path, trained_by: str | None) -> Contents:
    """Read a run directory.

    Args:
        run: the directory.
        trained_by: the process that trains it now, as `run_directory.trained_by` says.
    Raises:
        UserError: there is no run.
    """
    contents = Contents(run, run_directory.read_config(run), trained_by, {}, [])
    contents.report = contents._json("report.json")
    file = run / run_directory.METRICS
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        lines = []  # not yet
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["stage"] in STAGES and _is_number(entry["iteration"]):
                contents.entries.append(entry)
        except (ValueError, TypeError, KeyError):  # the last line of a run that is going on, or was killed
            continue
    return contents


def _inside(values: Any, *names: str) -> Any:
    """An entry of nested dictionaries; None where there is none."""
    for name in names:
        if not isinstance(values, dict) or name not in values:
            return None
        values = values[name]
    return values


def _entries(values: Any, *names: str) -> dict[str, Any]:
    """A dictionary within nested ones; {} where there is none."""
    found = _inside(values, *names)
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _figure(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if _is_number(value) else NONE


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(map(_word, value)) or NONE
    if isinstance(value, float):
        return f"{value:.10g}"
    return NONE if value is None or value == "" else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _scores(caption: str, scores: Mapping[str, Any]) -> Table:
    rows = []
    for name, row in scores.items():
        kind = name.removesuffix("_reranked")
        title = FEATURES.get(kind, kind) + ("" if kind == name else ", re-ranked")
        rows.append((title, *(_figure(_inside(row, score), 1) for score in COLUMNS)))
    head = ("feature", *(title for title, _ in COLUMNS.values()))
    marked = tuple(index for index, name in enumerate(scores) if name == "both")
    return _without_gaps(Table(f"{caption}, percent", head, tuple(rows), marked))


def _without_gaps(table: Table) -> Table:
    """The table without columns that are empty."""
    kept = [0, *(c for c in range(1, len(table.head)) if any(row[c] not in (NONE, "") for row in table.rows))]
    rows = tuple(tuple(row[column] for column in kept) for row in table.rows)
    return dataclasses.replace(table, head=tuple(table.head[column] for column in kept), rows=rows)
