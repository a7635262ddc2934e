"""What a run says while it runs: a progress bar, metrics.jsonl and TensorBoard, all by the first process alone."""

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dgfast.files import write_text, writing
from dgfast.run_directory import METRICS, TENSORBOARD

# What the progress bar shows of the numbers.
SHOWN = ("g/total", "g/image", "g/identity", "g/primary", "d/total", "loss", "accuracy", "images_per_s")


class StageLog:
    """Progress and numbers of one stage, written by the first process alone.

    Args:
        run: run directory.
        stage: its name in the files.
        start: first iteration.
        total: number of iterations at the end of the stage.
        images_per_iteration: of all processes, for images/s.
    """

    def __init__(self, run: Path, stage: str, start: int, total: int, images_per_iteration: int):
        self.stage = stage
        self.images = images_per_iteration
        self.path = run / METRICS
        _drop_lines(self.path, stage, start)
        with writing(self.path):
            self.file = self.path.open("a")
        _say_nothing_of_full_disks()
        self.board = SummaryWriter(str(run / TENSORBOARD), purge_step=start, filename_suffix=f".{stage}")
        self.bar = tqdm(initial=start, total=total, desc=stage, unit="it", dynamic_ncols=True, mininterval=0.5)

    def tick(self) -> None:
        """Count one iteration that is done."""
        self.bar.update()

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write the numbers of one iteration into both files, and the most telling into the bar.

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
            for name, value in values.items():
                self.board.add_scalar(f"{self.stage}/{name}", value, iteration)
        shown = {name.split("/")[-1]: f"{value:.3g}" for name, value in values.items() if name in SHOWN}
        self.bar.set_postfix(shown, refresh=False)

    def picture(self, iteration: int, name: str, image: Tensor) -> None:
        """Show a picture in TensorBoard.

        Args:
            iteration: from 0.
            name: of the picture.
            image: [H, W, 3] uint8.
        """
        with writing(self.path):
            self.board.add_image(f"{self.stage}/{name}", image, iteration, dataformats="HWC")

    def close(self) -> None:
        """Write what is still in memory and close the files.

        Raises:
            CannotWrite: a full disk, for example.
        """
        self.bar.close()
        with writing(self.path):
            self.file.close()
            self.board.close()


def _say_nothing_of_full_disks() -> None:
    """TensorBoard writes in a thread and hands an error over to the next call. The thread's own traceback adds
    nothing to the line in which the run then ends."""

    def say_of_others(error: threading.ExceptHookArgs) -> None:
        is_tensorboard = type(error.thread).__module__.startswith("tensorboard.")
        if not (is_tensorboard and isinstance(error.exc_value, OSError)):
            threading.__excepthook__(error)

    threading.excepthook = say_of_others


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
