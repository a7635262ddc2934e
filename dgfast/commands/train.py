"""`dgfast train`, `torchrun -m dgfast.train`: train, evaluate, leave a table and a picture."""

import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro

from dgfast import run_directory
from dgfast.commands.quality import SEED, assess, truth_parameters
from dgfast.commands.sources import open_data
from dgfast.config import PRESETS, Config, check
from dgfast.data import evaluation_batches
from dgfast.errors import Diverged, Interrupted, UserError
from dgfast.files import write_json, write_png, write_text
from dgfast.models import DGNet, Teacher
from dgfast.retrieval.evaluation import evaluate, table
from dgfast.retrieval.features import FeatureSettings
from dgfast.retrieval.visualise import ranking_figure
from dgfast.synthesis import lite0, swap_matrix
from dgfast.synthesis.distances import Eyes
from dgfast.synthesis.quality import short_table
from dgfast.training.distributed import Workers
from dgfast.training.samples import spread
from dgfast.training.stage_log import say
from dgfast.training.trainer import Trainer

HELP = """Train DG-Net: the teacher first, then the networks against it; then evaluate both.

Without arguments: the quick start, on built-in synthetic pedestrians, in minutes on two CPU cores.

With a data set: --preset market1501 --data-root /data/Market-1501 (also dukemtmc, msmt17, cuhk03np, folder).

To go on after a stop: --resume RUN_DIR. Every flag overrides the preset, or the resumed run's value; the defaults
below are those of the preset given with --preset.
"""
SWAPS = 7  # bodies and clothes of the swap matrix
TRUE_SWAPS = 40  # swaps that are compared with the rendered truth; they take a few seconds


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    config: Config = field(default_factory=Config)
    """Every setting of the run."""
    resume: Path | None = None
    """Run directory of an earlier run to go on with."""


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says; see `HELP`.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: a setting, the data set or a file does not serve.
        Diverged: a loss is no longer finite.
        Interrupted: stopped by a signal, after saving.
    """
    command = parse(sys.argv[1:] if argv is None else argv)
    config = command.config
    check(config)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    with Workers() as workers:
        data = open_data(config, workers)
        if workers.first:
            print(data.summary())
        found = _find_run(command, data.name) if workers.first else (False, Path())
        resumes, run = workers.share(found)
        trainer = Trainer(config, data, run, workers, Path(torch.hub.get_dir()))
        with workers.first_goes_first():
            # Not before the trainer has been made: settings that cannot be trained leave nothing behind.
            if workers.first and not resumes:
                run_directory.make(config, run)
                run_directory.link_latest(run)
                run_directory.remember_launch(config, run)
        began = time.time()
        try:
            networks, teacher = trainer.train()
        except (Diverged, Interrupted):
            _keep_settings(config, run, workers)
            raise
        # After any other error the settings given now have not been shown to fit: config.json stays as it was.
        _keep_settings(config, run, workers)
        with workers.first_goes_first():
            if workers.first:
                # Not compiled: batches of other sizes, whose results must outlive the next call (see Trainer).
                with torch.compiler.set_stance("force_eager"):
                    _report(config, trainer, networks, teacher, time.time() - began)
                run_directory.forget_launch(config)


def parse(argv: list[str], prog: str = "dgfast train") -> Command:
    """Read the command line.

    Args:
        argv: flags.
        prog: the command that mistakes in the flags are blamed on.
    Returns:
        what to do: the flags, and for those not given the values of the preset or of the resumed run.
    Raises:
        UserError: an unknown preset, or a run directory that holds no run.
        SystemExit: --help, or flags that do not exist.
    """
    resume = _value_of("--resume", argv)
    default = preset_of(argv) if resume is None else run_directory.read_config(Path(resume))
    return tyro.cli(
        Command,
        args=argv,
        default=Command(default),
        prog=prog,
        description=HELP,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def preset_of(argv: list[str]) -> Config:
    """The preset that a command line names, whose settings are the defaults of its other flags.

    Args:
        argv: flags.
    Raises:
        UserError: there is no such preset.
    """
    preset = _value_of("--preset", argv) or "quickstart"
    if preset not in PRESETS:
        raise UserError(f"preset {preset!r} is unknown; expected one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def _value_of(flag: str, argv: list[str]) -> str | None:
    """The value of a flag that must be known before the others, since it decides their defaults."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.split("=", 1)[1]
    return None


def _find_run(command: Command, data: str) -> tuple[bool, Path]:
    """Whether a run is resumed, and its directory."""
    if command.resume:
        return True, command.resume
    if begun := run_directory.begun_by_this_launch(command.config):
        say(f"torchrun started the processes again: going on with {begun}")
        return True, begun
    return False, run_directory.new_path(command.config, data)


def _keep_settings(config: Config, run: Path, workers: Workers) -> None:
    """Write down the flags that a resumed run went on with, so that the next resume starts from them."""
    if workers.first:
        run_directory.write_config(config, run)


def _report(config: Config, trainer: Trainer, networks: DGNet, teacher: Teacher, seconds: float) -> None:
    """Write the table, report.json and the pictures of a finished run, and print the table."""
    data, run = trainer.data, trainer.run
    settings = FeatureSettings.of(config.data, config.evaluation, trainer.workers.device)
    bodies = spread(data.query or data.train, 2 * SWAPS)
    if len(bodies) >= 2:
        images, _ = next(
            evaluation_batches(settings.loader, bodies, settings.image_size, len(bodies), device=settings.device)
        )
        structures, appearances = images.chunk(2)
        write_png(swap_matrix(networks, structures, appearances).numpy(), run / "swaps.png")
    report = {
        "dataset": data.name,
        "train_images": len(data.train),
        "train_identities": data.num_classes,
        "cameras": data.num_cameras,
        "train_seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name(settings.device) if settings.device.type == "cuda" else "cpu",
        "precision": trainer.precision.name,
        "torch": torch.__version__,
    }
    text = ""
    if data.query and data.gallery:
        result = evaluate(data, networks, teacher, settings)
        report["scores"] = result.scores
        ranking_figure(data.query, data.gallery, result.distances.numpy(), run / "rankings.png")
        text = f"{data.name}: {len(data.query)} queries, {len(data.gallery)} gallery images\n{table(result.scores)}\n"
    else:
        print(f"\n{data.name} has no query and gallery: no scores")
    if config.data.data_root is None:
        # Other people than those of the run, whichever seed they were drawn from.
        seed = SEED + (config.synthetic.synthetic_seed == SEED)
        parameters = truth_parameters(settings.image_size, TRUE_SWAPS, seed)
        quality = assess(networks, parameters, config.evaluation.alpha, Eyes(lite0.installed()))
        report["quality"] = quality.to_json()
        text += f"\n{TRUE_SWAPS} true swaps of other people (docs/generation.md)\n{short_table(quality.measured)}\n"
    if text:
        write_text(text, run / "table.txt")
        print(f"\n{text}")
    write_json(report, run / "report.json")
    print(f"run directory  {run}\npicture        {run / 'swaps.png'}\nreport         {run / 'report.json'}")
