"""A run directory: what it holds, how it is made, found again and read.

config.json             every setting of the run
checkpoints/            STAGE-NNNNNNNN.pt, the last two of each stage
teacher.safetensors     the trained teacher (baseline)
model.safetensors       the trained DG-Net
metrics.jsonl           losses and speed, a line each `--log-every` iterations; tensorboard/ holds the same
samples/NNNNNNNN.png    people in each other's clothes while the training goes on
table.txt, report.json  scores of the finished run
swaps.png, rankings.png pictures of the finished run
quality.json, quality.txt, quality.png  what `dgfast quality` has measured
"""

import json
import os
import socket
import time
from pathlib import Path

from dgfast.config import Config, from_json, to_json
from dgfast.errors import UserError
from dgfast.files import write_json, write_text

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
TEACHER = "teacher.safetensors"
MODEL = "model.safetensors"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
SAMPLES = "samples"
LATEST = "latest"  # a link beside the run directories to the newest of them


def new_path(config: Config, data: str) -> Path:
    """Where a new run goes: `--out`, and there `--name` or what preset, data set and time make up.

    Args:
        config: the run's settings.
        data: name of the data set.
    Returns:
        the path; nothing is made there.
    """
    return config.run.out / (config.run.name or f"{config.preset}-{data}-{time.strftime('%Y%m%d-%H%M%S')}")


def make(config: Config, run: Path) -> None:
    """Make a run directory with its config.json.

    Args:
        config: the run's settings.
        run: the directory; it may exist already, but hold no run.
    Raises:
        UserError: it holds another run, or cannot be made.
    """
    if (run / CONFIG).exists():
        raise UserError(f"run directory {run} holds a run already; expected a new --name, or --resume {run}")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run directory {run} cannot be made ({error.strerror}); pass another --out") from error
    write_config(config, run)


def write_config(config: Config, run: Path) -> None:
    """Write config.json: at the start, and again when a resumed run has gone on with other flags.

    Args:
        config: the run's settings.
        run: run directory.
    """
    write_json(to_json(config), run / CONFIG)


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
        raise UserError(
            f"{run} holds no {CONFIG}; expected a run directory: look into the folder given as --out (runs)"
        )
    try:
        return from_json(json.loads(file.read_text()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
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
