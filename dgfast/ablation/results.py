"""What a finished run leaves for the table: one small JSON file, which also says with which settings it was made."""

import dataclasses
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dgfast.config import Config, DataConfig, RunConfig, TeacherConfig, changed, from_json, to_json
from dgfast.errors import UserError
from dgfast.pedestrians import VERSION

from .rows import Row

RESULTS = "results"
# Settings that say where and how a run works, not what comes out. The teacher is a file here, but always of the same
# settings.
_ELSEWHERE = {
    "data": ("loader", "loader_workers", "prefetch", "cache"),
    "teaching": ("teacher",),
    "run": tuple(
        f.name
        for f in dataclasses.fields(RunConfig)
        if f.name not in ("seed", "precision", "tf32", "compile", "cuda_graphs")
    ),
}
_DEFAULTS = {"data": DataConfig(), "teaching": TeacherConfig(), "run": RunConfig()}

Results = dict[tuple[str, int], dict[str, Any]]


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that decide a run's result, by which runs and results are told apart.

    Args:
        config: every setting.
    Returns:
        plain JSON values; what decides nothing has its default.
    """
    parts = {
        part: dataclasses.replace(getattr(config, part), **{name: getattr(_DEFAULTS[part], name) for name in names})
        for part, names in _ELSEWHERE.items()
    }
    return to_json(dataclasses.replace(config, **parts))


def expect_same(found: dict[str, Any], expected: dict[str, Any], source: Path) -> None:
    """Refuse what was made with other settings.

    Args:
        found: what `settings_of` gave then; settings that did not exist yet have their defaults.
        expected: what `settings_of` gives now.
        source: the file that holds `found`.
    Raises:
        UserError: the first setting that differs, or `found` has a setting that does not exist.
    """
    try:
        found = settings_of(from_json(found))
    except (TypeError, AttributeError) as error:
        raise UserError(f"{source} cannot be read ({error}); expected what dgfast ablation wrote; remove it") from error
    for (name, then), now in zip(_flat(found), (value for _, value in _flat(expected)), strict=True):
        if then != now:
            raise UserError(
                f"{source} was made with --{name.replace('_', '-')} {then}; expected {now}, as the flags and the row"
                " say: give the flags that it was made with, another --out, or remove it"
            )


def _flat(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        found += _flat(value) if isinstance(value, dict) else [(name, value)]
    return found


def result_file(out: Path, row: str, seed: int) -> Path:
    """Where the result of a run is kept.

    Args:
        out: folder of the ablation.
        row: name of the row.
        seed: of the run.
    """
    return out / RESULTS / f"{row}-{seed}.json"


def read_results(config: Config, rows: Sequence[Row]) -> Results:
    """The results that are there, of these rows and any seed.

    Args:
        config: the settings that rows change; its `--out` is the folder of the ablation.
        rows: rows of the table.
    Returns:
        name of the row and seed -> what `collect` made.
    Raises:
        UserError: a file is no result, or one of other settings.
    """
    found: Results = {}
    by_name = {row.name: row for row in rows}
    for file in sorted((config.run.out / RESULTS).glob("*.json")):
        try:
            entry = json.loads(file.read_text())
            row, seed, settings = entry["row"], entry["seed"], entry["settings"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{file} is no result ({reason}); expected what dgfast ablation wrote; remove it"
            ) from error
        if row in by_name:
            expect_same(settings, settings_of(changed(config, {**by_name[row].changes, "seed": seed})), file)
            found[row, seed] = entry
    return found


def collect(run: Path, row: Row, config: Config, seconds: float) -> dict[str, Any]:
    """The result of a finished run.

    Args:
        run: its directory, with report.json and perhaps the scores on another data set.
        row: what it was made for.
        config: its settings.
        seconds: that it took.
    Returns:
        plain JSON values.
    """
    report = json.loads((run / "report.json").read_text())
    result = {
        "row": row.name,
        "seed": config.run.seed,
        "scores": report["scores"],
        "seconds": round(seconds, 1),
        "versions": {"dgfast": version("dgfast"), "torch": torch.__version__, "pedestrians": VERSION},
        "settings": settings_of(config),
    }
    if "quality" in report:
        result["quality"] = report["quality"]["scores"]["ours"]["regions"]
    for file in run.glob("eval-*.json"):
        result["transfer"] = json.loads(file.read_text())["scores"]
    return result
