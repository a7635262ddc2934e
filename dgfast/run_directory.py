"""A run directory: what it holds, how it is made, found again and read.

config.json             every setting of the run
data.json               which images it was begun with, as a fingerprint of their names, labels and sizes
.lock                   locked by the process that trains it
checkpoints/            STAGE-NNNNNNNN.pt, the last two of each stage
teacher.safetensors     the trained teacher (baseline)
model.safetensors       the trained DG-Net
metrics.jsonl           losses and speed, a line each `--log-every` iterations
tensorboard/, wandb/, mlflow/  the same and pictures, for the trackers that `--track` names
tracked.json            by which names W&B and MLflow know the run, so that a resumed one goes on there
samples/NNNNNNNN.png    people in each other's clothes while the training goes on
table.txt, report.json  scores of the finished run
swaps.png, rankings.png pictures of the finished run
truth.png               its swaps beside their truth, of the built-in people
report.html             all of it in one page, and what the networks see (`dgfast report`)
verification.json       the score from which on two images show the same person, and its error rates
quality.json, quality.txt, quality.png  what `dgfast quality` has measured
licence.txt             in a folder of imported weights: whose they are
README.md               in a folder of `dgfast save`: the model card
"""

import errno
import fcntl
import itertools
import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dgfast.config import Config, from_json, to_json
from dgfast.errors import CannotWrite, UserError
from dgfast.files import remove_unfinished, replacing, write_json, write_text, writing

log = logging.getLogger("dgfast")
CONFIG = "config.json"
DATA = "data.json"
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
TEACHER = "teacher.safetensors"
MODEL = "model.safetensors"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
MLFLOW = "mlflow"
TRACKED = "tracked.json"
SAMPLES = "samples"
TABLE = "table.txt"
CARD = "README.md"  # of a folder to be shared
OLD_CARD = "README.old-{}.md"  # the one that was there before
VERIFICATION = "verification.json"
LICENCE = "licence.txt"  # of weights that came from elsewhere
PAGE = "report.html"
BUNDLED = Path(__file__).parent / "bundled"  # the model that comes with dgfast, and its settings
LATEST = "latest"  # a link beside the run directories to the newest of them


def begin(config: Config, name: str, data: Mapping[str, Any]) -> Path:
    """Make the directory of a new run: `--out`, and there `--name` or what preset, data set and time make up.

    Args:
        config: the run's settings.
        name: of the data set.
        data: what `data.json` is to say of it.
    Returns:
        the directory. Where the second is that of another run, its name gets a number.
    Raises:
        UserError: the name was given and is another run's, or the directory cannot be made.
    """
    if config.run.name:
        run = config.run.out / config.run.name
        make(config, run, data)
        return run
    base = config.run.out / f"{config.preset}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))
    return next(
        run for run in itertools.chain((base,), numbered) if not run.exists() and _make(config, run, data, given=False)
    )


def make(config: Config, run: Path, data: Mapping[str, Any] | None = None) -> None:
    """Make a run directory with its config.json, whole or not at all.

    Args:
        config: the run's settings.
        run: the directory; it may exist already, but hold no run.
        data: what `data.json` is to say of the data set; None writes none.
    Raises:
        UserError: it holds another run, or cannot be made.
    """
    if (run / CONFIG).exists() or not _make(config, run, data, given=True):
        raise UserError(f"run directory {run} holds a run already; expected a new --name, or --resume {run}")


def _make(config: Config, run: Path, data: Mapping[str, Any] | None, *, given: bool) -> bool:
    """Make it, unless another process is quicker; whether it was made."""
    try:
        if given and run.is_dir():  # it may be the user's, and there may be other files in it
            _fill(config, run, data)
        else:
            with replacing(run) as partial:
                partial.mkdir()
                _fill(config, partial, data)
    except CannotWrite as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise UserError(f"run directory {run} cannot be made ({error.strerror}); pass another --out") from error
    return True


def _fill(config: Config, run: Path, data: Mapping[str, Any] | None) -> None:
    if data is not None:
        write_data(data, run)
    write_config(config, run)


@contextmanager
def locked(run: Path, used: str = "trained") -> Iterator[None]:
    """Within the context no other process may write this folder; what an earlier one left half-written is removed.

    The system ends the lock with the process, however that ends, and not with a child that outlives it. So a run that
    was killed can be resumed at once.

    Args:
        run: run directory, or another folder that is written for hours.
        used: what is done with it, for the message.
    Raises:
        UserError: another process writes it.
        CannotWrite: the directory cannot be written to.
    """
    file = run / LOCK
    with writing(run):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
                raise UserError(
                    f"{run} is being {used} by {holder}; expected a folder that nobody else writes: wait for its end,"
                    " or stop it first"
                ) from error
            log.warning(
                "%s: its file system has no locks (%s): take care that one process writes it", run, error.strerror
            )
        else:
            with writing(file):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            for folder in (run, *run.glob("*/")):
                remove_unfinished(folder)
        yield
    finally:
        os.close(descriptor)


def trained_by(run: Path) -> str | None:
    """Who trains a run now.

    Args:
        run: run directory.
    Returns:
        the process, in words; None: nobody does, or nobody knows.
    """
    try:
        with (run / LOCK).open("r+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return file.read(200).strip() or "another process"
    except OSError:  # it was never trained here, or this is a place to read only
        pass
    return None


def write_data(data: Mapping[str, Any], run: Path) -> None:
    """Write data.json.

    Args:
        data: what `datasets.describe` says of the data set.
        run: run directory.
    """
    write_json(data, run / DATA)


def read_data(run: Path) -> dict[str, Any] | None:
    """What data.json says.

    Args:
        run: run directory.
    Returns:
        what `write_data` wrote; None where there is no such file, as in runs of version 0.1.
    Raises:
        UserError: it holds something else.
    """
    file = run / DATA
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text())
        if isinstance(values["fingerprint"], str):
            return values
        raise TypeError("its fingerprint is no text")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); expected what dgfast wrote there: put it back, or remove it if the data"
            " set is still the same"
        ) from error


def write_verification(values: Mapping[str, Any], run: Path) -> None:
    """Write verification.json.

    Args:
        values: kind, alpha, eer, threshold_eer, thresholds, data and pairs, as docs/evaluation.md describes them.
        run: run directory.
    """
    write_json(values, run / VERIFICATION)


def read_verification(run: Path) -> dict[str, Any] | None:
    """What verification.json says: from which score on two images show the same person.

    Args:
        run: run directory.
    Returns:
        what `write_verification` wrote; None where there is no such file, as in runs that were not evaluated since.
    Raises:
        UserError: it holds something else.
    """
    file = run / VERIFICATION
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text())
        positive, negative = values["pairs"]
        numbers = [values["alpha"], values["eer"], values["threshold_eer"], positive, negative]
        for fpr, point in values["thresholds"].items():
            numbers += [float(fpr), point["threshold"], point["tpr"]]
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
            raise TypeError("a number is missing or not finite")
        if not isinstance(values["kind"], str) or not isinstance(values["data"], str):
            raise TypeError("kind and data are no texts")
        return values
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); expected what dgfast wrote there: put it back, or remove it and run"
            f" `dgfast eval --run {run}`"
        ) from error


def report_path(folder: Path, name: str, root: Path) -> Path:
    """Where a report on a data set goes: NAME.json, with a number where that is the report on another data set.

    Args:
        folder: of the reports.
        name: without ending; data sets of one layout share it.
        root: the data set's folder, which reports hold as "root".
    Returns:
        a file that is not there yet, or that this report may replace.
    """
    numbered = (folder / f"{name}-{number}.json" for number in itertools.count(2))
    paths = itertools.chain((folder / f"{name}.json",), numbered)
    return next(path for path in paths if _root_of(path) in (None, os.path.realpath(root)))


def _root_of(report: Path) -> str | None:
    """The data set's folder that a report names; None where there is no report, or it names none."""
    try:
        return os.path.realpath(json.loads(report.read_text())["root"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_config(config: Config, run: Path) -> None:
    """Write config.json: at the start, and again when a resumed run has gone on with other flags.

    Args:
        config: the run's settings.
        run: run directory.
    """
    write_json(to_json(config), run / CONFIG)


def where_to_look(folder: Path) -> str:
    """Where to look for a run, for a message about a folder that holds none.

    Args:
        folder: that was taken for a run directory.
    """
    if (folder / LATEST / CONFIG).is_file():
        return f"did you mean {folder / LATEST}?"
    return "look into the folder that was given as --out (by default runs)"


def read_config(run: Path) -> Config:
    """The settings of a run.

    Args:
        run: run directory.
    Returns:
        what `write_config` wrote.
    Raises:
        UserError: there is no run, or its config.json is not one.
    """
    file = run / CONFIG
    if not file.is_file():
        raise UserError(f"{run} holds no {CONFIG}; expected a run directory: {where_to_look(run)}")
    try:
        return from_json(json.loads(file.read_text()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}); expected what dgfast wrote there") from error


def link_latest(run: Path) -> None:
    """Point the link `latest` beside the run directory to it. A real file or folder of that name is left alone.

    Args:
        run: run directory.
    """
    latest = run.parent / LATEST
    if latest.is_symlink() or not latest.exists():
        link = run.parent / f".{LATEST}.{os.getpid()}.tmp"
        link.symlink_to(run.name)
        link.replace(latest)


def remember_launch(config: Config, run: Path) -> None:
    """Under torchrun, note which run this launch has begun, so that workers that are started again go on with it.

    Args:
        config: the run's settings.
        run: run directory.
    """
    if note := _launch_note(config):
        write_text(str(run), note)


def begun_by_this_launch(config: Config) -> Path | None:
    """The run that this launch of torchrun began before a worker died and all workers were started again.

    Args:
        config: settings from the command line, which is the same at every start.
    Returns:
        run directory; None where there is none, or where the command line names another.
    """
    note = _launch_note(config)
    if note is None or not note.is_file():
        return None
    run = Path(note.read_text())
    return run if (run / CONFIG).is_file() and config.run.name in ("", run.name) else None


def forget_launch(config: Config) -> None:
    """Remove the note of `remember_launch` when the run has ended.

    Args:
        config: the run's settings.
    """
    if note := _launch_note(config):
        note.unlink(missing_ok=True)


def _launch_note(config: Config) -> Path | None:
    """The file in which a launch of torchrun notes its run; None without torchrun."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch == "none":
        # All launches without a rendezvous share this name. The agent outlives its workers and tells them apart.
        launch = f"none-{socket.gethostname()}-{os.getppid()}"
    return config.run.out / f".torchrun-{launch}" if launch else None
