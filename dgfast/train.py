"""`torchrun -m dgfast.train`, `python -m dgfast.train`, `dgfast train`: train, evaluate, leave a table and a
picture."""

import json
import logging
import os
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro

from dgfast.config import PRESETS, Config, check, from_json, to_json
from dgfast.data import evaluation_batches
from dgfast.errors import Diverged, Interrupted, UserError
from dgfast.launcher import run
from dgfast.models import DGNet, Teacher
from dgfast.retrieval.evaluation import evaluate, table
from dgfast.retrieval.features import FeatureSettings
from dgfast.retrieval.visualise import ranking_figure
from dgfast.sources import open_data
from dgfast.synthesis import swap_matrix
from dgfast.training.distributed import Workers
from dgfast.training.logging import say
from dgfast.training.trainer import Trainer, make_run, spread, write_json, write_png

HELP = """Train DG-Net: the teacher first, then the networks against it; then evaluate both.

Without arguments: the quick start, on built-in synthetic pedestrians, in minutes on two CPU cores.

With a data set: --preset market1501 --data-root /data/Market-1501 (also dukemtmc, msmt17, cuhk03np, folder).

To go on after a stop: --resume RUN_DIR. Every flag overrides the preset, or the resumed run's value; the defaults below are
those of the preset given with --preset.
"""
SWAPS = 7  # bodies and clothes of the swap matrix


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    config: Config = field(default_factory=Config)
    resume: Path | None = None
    """Run directory of an earlier run to go on with."""


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says; see `HELP`.

    Raises:
        UserError, Diverged, Interrupted: `launcher.run` turns them into one line and a status.
    """
    command = parse(sys.argv[1:] if argv is None else argv)
    config = command.config
    check(config)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    workers = Workers()
    try:
        data = open_data(config, workers)
        if workers.first:
            print(data.summary())
        resume, path = workers.share(_run_directory(command, data.name) if workers.first else None)
        trainer = Trainer(config, data, path, workers, Path(torch.hub.get_dir()))
        if workers.first and not resume:  # only now: what cannot be trained leaves nothing behind
            make_run(config, path)
            _link_latest(path)
            _remember(config, path)
        workers.barrier()
        began = time.time()
        try:
            networks, teacher = trainer.train()
        except (
            Diverged,
            Interrupted,
        ):  # after anything else the flags given now have not proved to fit: the run stays what it was
            _record(config, path, workers)
            raise
        _record(config, path, workers)
        if workers.first:
            _report(config, trainer, networks, teacher, time.time() - began)
            _forget(config)
        workers.barrier()
    finally:
        workers.close()


def parse(argv: list[str], prog: str = "dgfast train") -> Command:
    """The command line -> what to do; `prog` is what its mistakes are blamed on.

    Raises:
        UserError: an unknown preset, or a run directory that holds no run.
    """
    resume, preset = _value(argv, "--resume"), _value(argv, "--preset") or "quickstart"
    if resume is not None:
        default = read_run(Path(resume))
    elif preset in PRESETS:
        default = PRESETS[preset]
    else:
        raise UserError(f"preset {preset!r} is unknown; expected one of {', '.join(PRESETS)}")
    return tyro.cli(
        Command,
        args=argv,
        default=Command(default),
        prog=prog,
        description=HELP,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def read_run(path: Path) -> Config:
    """The configuration of a run directory.

    Raises:
        UserError: there is no run, or its config.json is not one.
    """
    file = path / "config.json"
    if not file.is_file():
        raise UserError(
            f"{path} holds no config.json; expected a run directory: look into the folder given as --out (runs)"
        )
    try:
        return from_json(json.loads(file.read_text()))
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise UserError(f"{file} cannot be read ({error}); expected what dgfast wrote there") from error


def _value(argv: list[str], flag: str) -> str | None:
    """The value of a flag that decides the defaults of all others."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.split("=", 1)[1]
    return None


def _run_directory(command: Command, data: str) -> tuple[bool, Path]:
    """Whether a run goes on, and where it is: the one named, or the one that this launch of torchrun began before a
    worker died."""
    if command.resume:
        return True, command.resume
    run = command.config.run
    note = _note(command.config)
    if note and note.is_file():
        path = Path(note.read_text())
        if (path / "config.json").is_file() and run.name in ("", path.name):
            say(f"torchrun started the processes again: going on with {path}")
            return True, path
    return False, run.out / (run.name or f"{command.config.preset}-{data}-{time.strftime('%Y%m%d-%H%M%S')}")


def _note(config: Config) -> Path | None:
    """Where a run under torchrun notes its directory, for processes that are started again with the same command
    line."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if (
        launch == "none"
    ):  # shared by all launches without a rendezvous; the agent, which outlives its workers, tells them apart
        launch = f"none-{socket.gethostname()}-{os.getppid()}"
    return config.run.out / f".torchrun-{launch}" if launch else None


def _remember(config: Config, path: Path) -> None:
    if note := _note(config):
        temporary = note.with_name(note.name + ".tmp")
        temporary.write_text(str(path))
        temporary.replace(note)


def _forget(config: Config) -> None:
    if note := _note(config):
        note.unlink(missing_ok=True)


def _record(config: Config, path: Path, workers: Workers) -> None:
    """Keep the flags that a resumed run went on with, for the next time."""
    if workers.first:
        write_json(to_json(config), path / "config.json")


def _link_latest(path: Path) -> None:
    """Point the link `latest` beside the run directory to it; a real file of that name is left alone."""
    latest = path.parent / "latest"
    if latest.is_symlink() or not latest.exists():
        link = path.parent / f".latest.{os.getpid()}"
        link.symlink_to(path.name)
        link.replace(latest)


def _report(config: Config, trainer: Trainer, networks: DGNet, teacher: Teacher, seconds: float) -> None:
    """The table, report.json and the swap matrix of a finished run."""
    data, path = trainer.data, trainer.run
    how = FeatureSettings.of(config.data, config.evaluation, trainer.workers.device)
    bodies = spread(data.query or data.train, 2 * SWAPS)
    if len(bodies) >= 2:
        images, _ = next(evaluation_batches(how.loader, bodies, how.image_size, len(bodies), device=how.device))
        structures, appearances = images.chunk(2)
        write_png(swap_matrix(networks, structures, appearances), path / "swaps.png")
    report = {
        "dataset": data.name,
        "train_images": len(data.train),
        "train_identities": data.num_classes,
        "cameras": data.num_cameras,
        "train_seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name(how.device) if how.device.type == "cuda" else "cpu",
        "precision": trainer.precision.name,
        "torch": torch.__version__,
    }
    if data.query and data.gallery:
        result = evaluate(data, networks, teacher, how)
        report["scores"] = result.scores
        ranking_figure(data.query, data.gallery, result.distances.numpy(), path / "rankings.png")
        text = (
            f"{data.name}: {len(data.query)} queries, {len(data.gallery)} gallery images\n{table(report['scores'])}\n"
        )
        (path / "table.txt").write_text(text)
        print(f"\n{text}")
    else:
        print(f"\n{data.name} has no query and gallery: no table")
    write_json(report, path / "report.json")
    print(f"run directory  {path}\npicture        {path / 'swaps.png'}\nreport         {path / 'report.json'}")


if __name__ == "__main__":
    run(main)
