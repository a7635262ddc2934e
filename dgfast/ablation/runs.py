"""Which runs the rows need: one for each row and seed, and before them those that they share.

A teacher does not depend on what generated images are used for, nor does the start of the generator. So each is trained
once for all rows whose settings agree so far. Everything random in a run is a function of its seed, its stage and the
iteration, so that a run that is given both ends with the same bits as one that trains them itself.
"""

import hashlib
import json
from collections.abc import Container, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from dgfast import run_directory
from dgfast.config import Config, LossConfig, changed
from dgfast.files import replacing

from .results import expect_same, settings_of
from .rows import Row

RUNS = "runs"
REPORT = "report.json"
# Settings that act only after the start of the generator, or only after the teacher. What is not named here may act
# earlier: rows that change it get a teacher of their own.
_AFTER_START = {f.name for f in fields(LossConfig)} - {"image_weight", "positive_weight", "change_weight"}
_AFTER_TEACHER = _AFTER_START | {
    *(
        "image_weight",
        "positive_weight",
        "change_weight",
        "structure_jitter",
        "modulation",
        "background",
        "generator_iterations",
    ),
}


@dataclass(frozen=True)
class Run:
    """One run of `dgfast train`."""

    config: Config
    """Its settings; `--out` and `--name` say where it is."""
    product: str
    """File of the run directory that is there once the run has done its work."""
    needs: "Run | None"
    """The run that has to be finished before."""
    row: Row | None
    """The row that it is for; None: it is shared."""

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.config.run.out / self.config.run.name

    @property
    def finished(self) -> bool:
        """Whether its work is done."""
        return (self.folder / self.product).is_file()

    def prepare(self) -> None:
        """Make the run directory, ready for `dgfast train --resume`, or check that it holds this run.

        Raises:
            UserError: it holds a run of other settings.
        """
        file = self.folder / run_directory.CONFIG
        if file.exists():
            expect_same(settings_of(run_directory.read_config(self.folder)), settings_of(self.config), file)
        if self.needs is not None and self.needs.product != run_directory.TEACHER:
            start = self.folder / self.needs.product
            if not start.exists():
                with replacing(start) as partial:
                    partial.write_bytes((self.needs.folder / self.needs.product).read_bytes())
        self.folder.mkdir(parents=True, exist_ok=True)
        run_directory.write_config(self.config, self.folder)


def plan(config: Config, rows: Sequence[Row], seeds: Sequence[int], finished: Container[tuple[str, int]]) -> list[Run]:
    """The runs that are still to be made, in the order in which they are best begun.

    All rows of a seed come before the next seed, so that a queue that is stopped leaves whole comparisons.

    Args:
        config: the settings that rows change; its `--out` is the folder of the ablation.
        rows: rows of the table, those that matter most first.
        seeds: of the runs.
        finished: rows and seeds of which there are results.
    Returns:
        runs; each comes after the one that it needs, unless that is finished.
    """
    out = config.run.out.resolve() / RUNS
    found: dict[str, Run] = {}

    def add(settings: Config, name: str, product: str, needs: Run | None, row: Row | None = None) -> Run:
        if needs is not None:
            teacher = needs if needs.needs is None else needs.needs
            file = teacher.folder / run_directory.TEACHER
            settings = replace(settings, teaching=replace(settings.teaching, teacher=file))
        settings = replace(settings, run=replace(settings.run, out=out, name=name))
        return found.setdefault(name, Run(settings, product, needs, row))

    for seed in seeds:
        for row in rows:
            if (row.name, seed) in finished:
                continue
            whole = changed(config, {**row.changes, "seed": seed})
            # Runs that others go on from stop after their first iteration of DG-Net.
            before = _without(row, _AFTER_TEACHER)
            teacher = changed(config, {**before, "seed": seed, "generator_iterations": 0, "stop_after": 1})
            needs = add(teacher, _shared_name("teacher", teacher), run_directory.TEACHER, None)
            if iterations := whole.optim.generator_iterations:
                start = changed(config, {**_without(row, _AFTER_START), "seed": seed, "stop_after": 1})
                product = f"{run_directory.CHECKPOINTS}/generator-{iterations:08d}.pt"
                needs = add(start, _shared_name("start", start), product, needs)
            add(whole, f"{row.name}-{seed}", REPORT, needs, row)
    return [run for run in found.values() if run.row or not run.finished]


def _without(row: Row, later: set[str]) -> dict[str, object]:
    return {name: value for name, value in row.changes.items() if name not in later}


def _shared_name(kind: str, settings: Config) -> str:
    """A name that holds the seed and a digest of all settings."""
    digest = hashlib.sha256(json.dumps(settings_of(settings), sort_keys=True).encode()).hexdigest()
    return f"{kind}-{settings.run.seed}-{digest[:8]}"
