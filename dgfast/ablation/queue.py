"""The queue: runs side by side, each a process of its own, until all are done, one signal comes or the time is over."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from dgfast import run_directory
from dgfast.errors import Interrupted, UserError
from dgfast.files import write_json
from dgfast.training.loop import StopRequest
from dgfast.training.stage_log import say

from .results import collect, result_file
from .runs import Run

LOG = "log.txt"
PAUSE = 0.2  # seconds between two looks at the running processes
_DGFAST = (sys.executable, "-c", "from dgfast.commands.cli import main; main()")


@dataclass(frozen=True)
class Failure:
    """A run that ended without its result."""

    name: str
    """Of its directory."""
    log: Path
    """What it printed."""
    said: str
    """The last line of that."""


def work(
    out: Path,
    runs: Sequence[Run],
    *,
    jobs: int = 1,
    minutes: float | None = None,
    keep: bool = False,
    transfer: Path | None = None,
) -> list[Failure]:
    """Work through runs. What one leaves half done, the next call goes on with.

    Args:
        out: folder of the ablation.
        runs: as `plan` lists them.
        jobs: runs at the same time.
        minutes: begin no run after so long; None: no limit.
        keep: keep the checkpoints of finished runs.
        transfer: another data set, on which every finished run is evaluated; None: there is none.
    Returns:
        the runs that failed. Runs that need one of them have not been begun.
    Raises:
        Interrupted: stopped by a signal, after all processes have saved and left.
        UserError: another queue works in this folder, or a run directory holds a run of other settings.
    """
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    waiting, working, failures, lost = list(runs), list[_Process](), list[Failure](), set[str]()
    bar = tqdm(total=len(runs), desc="ablation", unit="run", disable=None)
    with _alone(out) as lock, StopRequest().listening() as stop, bar:
        try:
            while waiting or working:
                if stop.signal:
                    raise Interrupted(stop.signal, "stopped; the same command goes on")
                lost |= {run.config.run.name for run in waiting if run.needs and run.needs.config.run.name in lost}
                waiting = [run for run in waiting if run.config.run.name not in lost]
                ready = [run for run in waiting if run.needs is None or run.needs.finished]
                for run in ready[: max(0, jobs - len(working))] if time.monotonic() < end else ():
                    run.prepare()
                    waiting.remove(run)
                    working.append(_Process(run, transfer, lock))
                if not working:
                    break
                time.sleep(PAUSE)
                for process in list(working):
                    if process.goes_on():
                        continue
                    working.remove(process)
                    bar.update()
                    if failure := process.finish(out, keep):
                        failures.append(failure)
                        lost.add(failure.name)
        finally:
            for process in working:
                process.stop()
            for process in working:
                process.wait()
    return failures


class _Process:
    """A run that is being made: one command after another, each skipped where its product is there already."""

    def __init__(self, run: Run, transfer: Path | None, lock: int):
        self.run, self.lock, self.began = run, lock, time.monotonic()
        folder = str(run.folder)
        self.steps = [(run.product, ["train", "--resume", folder])]
        if run.row and transfer:
            loader = ["--loader", run.config.data.loader, "--loader-workers", str(run.config.data.loader_workers)]
            self.steps.append(("eval-*.json", ["eval", "--run", folder, "--data-root", str(transfer), *loader]))
        self.log: IO[bytes] = (run.folder / LOG).open("ab")
        self.child: subprocess.Popen[bytes] | None = None

    def goes_on(self) -> bool:
        """Whether there is something left to wait for; begins the next command where one has ended well."""
        if self.child is not None:
            if self.child.poll() is None:
                return True
            if not self._has(self.steps[0][0]):
                return False
        self.steps = [step for step in self.steps if not self._has(step[0])]
        if not self.steps:
            return False
        self.child = subprocess.Popen(
            [*_DGFAST, *self.steps[0][1]],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(self.run.config.run.threads)},
            start_new_session=True,  # Ctrl-C reaches the queue alone, which passes it on once: a second signal kills
            pass_fds=(self.lock,),
        )
        return True

    def finish(self, out: Path, keep: bool) -> Failure | None:
        """Collect what the run has left and say so; what went wrong, if it left too little."""
        run, seconds = self.run, time.monotonic() - self.began
        name = run.config.run.name
        self.log.close()
        if self.steps:
            log = run.folder / LOG
            said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            say(f"{name} has failed: see {log}")
            return Failure(name, log, said[-1] if said else "")
        text = f"{name}: {seconds / 60:.1f} min"
        if run.row:
            result = collect(run.folder, run.row, run.config, seconds)
            write_json(result, result_file(out, run.row.name, run.config.run.seed))
            if scores := result["scores"].get(run.row.feature):
                text += f", mAP {scores['mAP']:.1f}, rank-1 {scores['rank1']:.1f}"
            if not keep:
                shutil.rmtree(run.folder / run_directory.CHECKPOINTS, ignore_errors=True)
        say(text)
        return None

    def stop(self) -> None:
        """Ask the process to save and leave."""
        if self.child is not None:
            self.child.terminate()

    def wait(self) -> None:
        """Wait until it has left."""
        if self.child is not None:
            self.child.wait()
        self.log.close()

    def _has(self, product: str) -> bool:
        return any(self.run.folder.glob(product))


@contextmanager
def _alone(out: Path) -> Iterator[int]:
    """Hold the folder's lock. Child processes get it, too, so that it outlives a queue that is killed: nobody else
    begins the runs that its children still work on."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{out} is in use by another dgfast ablation, or by runs that one has left behind; expected nobody:"
                " wait for them, or end them"
            ) from error
        yield file.fileno()
