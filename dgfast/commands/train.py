"""`dgfast train`, `torchrun -m dgfast.train`: train, evaluate, leave a table and a picture."""

import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import tyro

from dgfast import run_directory
from dgfast.commands import config_file
from dgfast.commands.command_line import check_name, read
from dgfast.commands.quality import SEED, assess, truth_parameters
from dgfast.commands.sources import open_data
from dgfast.config import Config, check
from dgfast.data import ReidData, choose_loader, evaluation_batches
from dgfast.data.datasets import describe
from dgfast.data.records import spread
from dgfast.errors import CannotWrite, Diverged, Interrupted, UserError, within_memory
from dgfast.files import require_writable, write_json, write_png, write_text
from dgfast.models import DGNet, Teacher
from dgfast.models.dgnet import load_model
from dgfast.reporting import Looks, look, write_report
from dgfast.reporting.environment import environment
from dgfast.retrieval.evaluation import evaluate
from dgfast.retrieval.features import FeatureSettings
from dgfast.retrieval.visualise import ranking_figure
from dgfast.synthesis import lite0, swap_matrix
from dgfast.synthesis.distances import Eyes
from dgfast.synthesis.quality import short_table
from dgfast.training.distributed import Workers
from dgfast.training.heap import keep_freed_memory
from dgfast.training.stage_log import say
from dgfast.training.trackers import FINAL, require, tracking
from dgfast.training.trainer import Trainer, read_teacher

HELP = """Train DG-Net: the teacher first, then the networks against it; then evaluate both.

Without arguments: the quick start, on built-in synthetic pedestrians, in minutes on two CPU cores.

With a data set: --preset market1501 --data-root /data/Market-1501 (also dukemtmc, msmt17, cuhk03np, folder).

To go on after a stop: --resume RUN_DIR. Every flag overrides the preset, or the resumed run's value; the defaults
below are those of the preset given with --preset.

Settings in a file: --print-config > my.yaml, then --config my.yaml (docs/training.md).
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
    config_: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """File with settings, YAML or the config.json of a run; flags override them."""
    print_config: bool = False
    """Print all settings as a file for --config, and train nothing."""


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
    require(config.run.track)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    with Workers() as workers, ExitStack() as stack:
        if workers.device.type == "cpu":
            keep_freed_memory()
        resumed = workers.share(_resumed(command, stack) if workers.first else None)
        # Before images are drawn or read, which may take minutes.
        if not resumed:
            require_writable(config.run.out, "pass another --out")
        if config.teaching.teacher:
            read_teacher(config.teaching.teacher)
        data = open_data(config, workers)
        if workers.first:
            print(data.summary())
            if reason := data.why_no_scores():
                say(f"the run will end without a table of scores: {reason}")
            if resumed:
                _check_data(data, resumed)
        trainer = Trainer(config, data, resumed or Path(), workers, Path(torch.hub.get_dir()))
        if not resumed:
            # Not before the trainer has been made: settings that cannot be trained leave nothing behind.
            trainer.run = workers.share(_begin(config, data, stack) if workers.first else Path())
        run = trainer.run
        if workers.first:
            trainer.tracker = stack.enter_context(tracking(run, config))
        began = time.time()
        try:
            with within_memory(
                f"go on with --resume {run} and a larger --accumulate (it is {config.optim.accumulate}) or"
                " --checkpoint-activations, or begin anew with a smaller --batch-size or --teacher-batch-size"
            ):
                networks, teacher = trainer.train()
        except (Diverged, Interrupted):
            _keep_settings(config, run, workers)
            raise
        except CannotWrite as error:
            raise UserError(f"{error}; then go on with --resume {run}") from error
        # After any other error the settings given now have not been shown to fit: config.json stays as it was.
        _keep_settings(config, run, workers)
        with workers.first_goes_first():
            if workers.first:
                # Not compiled: batches of other sizes, whose results must outlive the next call (see Trainer).
                less = f"go on with --resume {run} and an --eval-batch-size below {config.evaluation.eval_batch_size}"
                with torch.compiler.set_stance("force_eager"), within_memory(less):
                    _report(config, trainer, networks, teacher, time.time() - began)
                run_directory.forget_launch(config)


def parse(argv: list[str], prog: str = "dgfast train", also: Iterable[str] = ()) -> Command:
    """Read the command line. With --print-config, print what it says and leave the process.

    Args:
        argv: flags.
        prog: the command that mistakes in the flags are blamed on.
        also: further flags of that command.
    Returns:
        what to do: the flags, and for those not given the values of the file, the preset or the resumed run.
    Raises:
        UserError: an unknown preset, a file that holds no settings, a run directory that holds no run; see also
            `command_line.read`.
        SystemExit: --help, --print-config.
    """
    resume = _value_of("--resume", argv)
    if resume is None:
        default = defaults(argv)
    else:
        check_name("resume", resume)
        if (file := _value_of("--config", argv)) is not None:
            raise UserError(
                f"--config {file} does not go with --resume {resume}, which goes on with its own settings; leave one of"
                " them away"
            )
        default = run_directory.read_config(Path(resume))
    command = read(Command, argv, prog=prog, description=HELP, default=Command(default), also=also)
    if command.print_config:
        print_config(command.config)
    return command


def defaults(argv: list[str], **own: Any) -> Config:
    """The settings that the other flags of a command line override: of the file and the preset that it names.

    Args:
        argv: flags.
        own: settings that the command has in place of the preset's.
    Raises:
        UserError: there is no such preset, or the file does not serve.
    """
    file = _value_of("--config", argv)
    if file is not None:
        check_name("config", file)
    return config_file.under_flags(None if file is None else Path(file), _value_of("--preset", argv), **own)


def print_config(config: Config) -> NoReturn:
    """Do what --print-config asks for.

    Args:
        config: every setting.
    Raises:
        SystemExit: always, with status 0.
    """
    print(config_file.as_yaml(config), end="")
    sys.exit(0)


def _value_of(flag: str, argv: list[str]) -> str | None:
    """The value of a flag that must be known before the others, since it decides theirs; the last one counts."""
    found = None
    for word, after in itertools.zip_longest(argv, argv[1:]):
        if word == flag:
            found = after
        elif word.startswith(flag + "="):
            found = word.split("=", 1)[1]
    return found


def _resumed(command: Command, stack: ExitStack) -> Path | None:
    """The run that is resumed, locked until the end of `stack`; None where a new one begins."""
    config, run = command.config, command.resume
    if run:
        # The link runs/latest may soon point to another run.
        run = run.resolve() if run.is_symlink() else run
        _check_resumed(config, run)
    elif run := run_directory.begun_by_this_launch(config):
        say(f"torchrun started the processes again: going on with {run}")
    if run:
        stack.enter_context(run_directory.locked(run))
    return run


def _begin(config: Config, data: ReidData, stack: ExitStack) -> Path:
    """The directory of a new run, locked until the end of `stack`."""
    run = run_directory.begin(config, data.name, describe(data))
    stack.enter_context(run_directory.locked(run))
    run_directory.link_latest(run)
    run_directory.remember_launch(config, run)
    return run


def _check_resumed(config: Config, run: Path) -> None:
    """Refuse flags that would make another run of it."""
    began = run_directory.read_config(run)
    for flag, was, asked in (
        ("--name", began.run.name, config.run.name),
        ("--out", began.run.out, config.run.out),
    ):
        if was != asked:
            raise UserError(
                f"{flag} {asked} does not go with --resume {run}, which goes on where it lies; leave {flag} away"
            )
    then, now = began.teaching.teacher, config.teaching.teacher
    if (then is None) != (now is None) or (now is not None and not _same_teacher(now, then, run)):
        raise UserError(
            f"--teacher is {now}; run {run} began with {then or 'a teacher that it trains itself'}; expected the same:"
            " leave --teacher away, or begin a new run with it"
        )


def _same_teacher(now: Path, then: Path | None, run: Path) -> bool:
    """Whether a given teacher is the one that a run has copied; before it has, any is."""
    copied = run / run_directory.TEACHER
    if not copied.is_file():
        return True
    try:
        expected = load_model(copied, "teacher").state_dict()
    except UserError:  # damaged; the run is about to copy its teacher once more
        return now == then
    found = read_teacher(now).state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def _check_data(data: ReidData, run: Path) -> None:
    """Refuse other images than those that the run began with; note them for a run that has not done so."""
    began, now = run_directory.read_data(run), describe(data)
    if began is None:
        run_directory.write_data(now, run)
    elif began["fingerprint"] != now["fingerprint"]:
        then, found = (
            f"{values.get('train_images')} training images of {values.get('train_identities')} identities in"
            f" {values.get('root')}"
            for values in (began, now)
        )
        raise UserError(
            f"run {run} began with {then}, and now there are {found}; expected the same names, labels and sizes: pass"
            " the --data-root of then, or begin a new run"
        )


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
        swaps = swap_matrix(networks, structures, appearances)
        write_png(swaps.numpy(), run / "swaps.png")
        trainer.tracker.picture(FINAL, 0, "swaps", swaps)
    report = {
        "dataset": data.name,
        "train_images": len(data.train),
        "train_identities": data.num_classes,
        "cameras": data.num_cameras,
        "train_seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name(settings.device) if settings.device.type == "cuda" else "cpu",
        "precision": trainer.precision.name,
        "torch": torch.__version__,
        "environment": environment(
            trainer.workers.world_size, choose_loader(config.data.loader, trainer.workers.device)[1]
        ),
    }
    text = shown = ""  # in the file, and on the screen
    result = None
    if reason := data.why_no_scores():
        report["no_scores"] = reason
        print(f"\n{data.name}: no scores, because {reason}")
    else:
        result = evaluate(data, networks, teacher, settings)
        trainer.tracker.scores(result.scores)
        report |= result.to_json()
        if values := result.calibration(data.name, config.evaluation.alpha):
            run_directory.write_verification(values, run)
        ranking_figure(data.query, data.gallery, result.distances.numpy(), run / "rankings.png")
        text = f"{data.name}: {len(data.query)} queries, {len(data.gallery)} gallery images\n{result.text()}"
        shown = text
    if config.data.data_root is None:
        # Other people than those of the run, whichever seed they were drawn from.
        seed = SEED + (config.synthetic.synthetic_seed == SEED)
        parameters = truth_parameters(settings.image_size, TRUE_SWAPS, seed)
        quality = assess(networks, parameters, config.evaluation.alpha, Eyes(lite0.installed()))
        report["quality"] = quality.to_json()
        write_png(quality.picture(), run / "truth.png")
        heading = f"\n\n{TRUE_SWAPS} true swaps of other people (docs/generation.md)\n"
        shown, text = text + heading + short_table(quality.measured), text + heading + quality.table()
    if text:
        write_text(f"{text}\n", run / run_directory.TABLE)
        print(f"\n{shown}\n")
    write_json(report, run / "report.json")
    page = _page(run, lambda: look(data, networks, teacher, settings, result))
    print(f"run directory  {run}\npicture        {run / 'swaps.png'}\nreport         {page or run / 'report.json'}")


def _page(run: Path, see: Callable[[], Looks]) -> Path | None:
    """Write the page of a finished run; a run does not fail for it, whatever stands against it."""
    try:
        return write_report(run, see())
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"without {run / run_directory.PAGE}: {reason}; the run is complete: try `dgfast report {run}`")
        return None
