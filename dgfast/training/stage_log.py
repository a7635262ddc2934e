"""What a run says while it runs: a progress bar, metrics.jsonl and the trackers, all by the first process alone."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from dgfast.files import write_text, writing
from dgfast.run_directory import METRICS

from .tracker import Tracker

# What the progress bar shows of the numbers.
SHOWN = ("g/total", "g/positive", "g/identity", "g/primary", "d/total", "loss", "accuracy", "images_per_s")


class StageLog:
    """Progress and numbers of one stage, written by the first process alone.

    Args:
        run: run directory.
        stage: its name in the files.
        start: first iteration.
        total: number of iterations at the end of the stage.
        images_per_iteration: of all processes, for images/s.
        tracker: where else the numbers go.
    """

    def __init__(self, run: Path, stage: str, start: int, total: int, images_per_iteration: int, tracker: Tracker):
        self.stage = stage
        self.images = images_per_iteration
        self.path = run / METRICS
        _drop_lines(self.path, stage, start)
        with writing(self.path):
            self.file = self.path.open("a")
        self.tracker = tracker
        tracker.stage(stage, start)
        self.bar = tqdm(initial=start, total=total, desc=stage, unit="it", dynamic_ncols=True, mininterval=0.5)

    def tick(self) -> None:
        """Count one iteration that is done."""
        self.bar.update()

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write the numbers of one iteration into the file and the trackers, and the most telling into the bar.

        Args:
            iteration: from 0.
            values: losses and the like by name.
        Raises:
            CannotWrite: a full disk, for example.
        """
        rate = self.bar.format_dict["rate"] or 0.0
        values = {**values, "images_per_s": rate * self.images}
        with writing(self.path):
            self.file.write(json.dumps({"stage": self.stage, "iteration": iteration, **values}) + "\n")
            self.file.flush()
            self.tracker.scalars(self.stage, iteration, values)
        shown = {name.split("/")[-1]: f"{value:.3g}" for name, value in values.items() if name in SHOWN}
        self.bar.set_postfix(shown, refresh=False)

    def picture(self, iteration: int, name: str, image: Tensor) -> None:
        """Hand a picture to the trackers.

        Args:
            iteration: from 0.
            name: of the picture.
            image: [H, W, 3] uint8.
        """
        with writing(self.path):
            self.tracker.picture(self.stage, iteration, name, image)

    def close(self) -> None:
        """Write what is still in memory and close the file.

        Raises:
            CannotWrite: a full disk, for example.
        """
        self.bar.close()
        with writing(self.path):
            self.file.close()


def say(message: str) -> None:
    """Print a line on standard error that does not tear the progress bar.

    Args:
        message: the line.
    """
    tqdm.write(message, file=sys.stderr)


def _drop_lines(metrics: Path, stage: str, start: int) -> None:
    """Remove lines that a resumed stage is going to write again."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            again = entry["stage"] == stage and entry["iteration"] >= start
        except (ValueError, TypeError, KeyError):  # the last line, if the process was killed while it wrote
            continue
        if not again:
            kept.append(line)
    write_text("".join(line + "\n" for line in kept), metrics)
