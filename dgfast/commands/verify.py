"""`dgfast verify`: is everything sound that a run directory holds, and can the run be resumed?"""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgfast import run_directory
from dgfast.commands.command_line import named_first, read
from dgfast.commands.sources import pedestrians_folder
from dgfast.config import Config, check
from dgfast.data import load_reid
from dgfast.data.datasets import describe
from dgfast.errors import UserError, out_of_memory
from dgfast.models import DGNet
from dgfast.models.dgnet import load_model, make_teacher
from dgfast.training import checkpoint
from dgfast.training.stages import DGNetStage, ReconstructionStage, TeacherStage

HELP = """Look through a run directory: settings, checkpoints, weights, numbers, and whether its data set is the same.

Every file of weights is read whole and compared with its checksum, and every weight must be finite. Nothing is changed.
The exit status is 0 where all is sound, 1 where something is not, 2 where there is no run.

dgfast verify runs/latest

dgfast verify --run runs/latest --json               (the same for programs)

dgfast verify --run runs/latest --no-data            (without the data set, which may lie on another machine)
"""


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    run: Path
    """Run directory; its name may also stand alone, as the first word."""
    data: bool = True
    """Compare the data set with the one that the run began with."""
    json: bool = False
    """Print JSON in place of text."""


@dataclass
class Findings:
    """What was found in a run directory."""

    run: Path
    """The directory."""
    trained_by: str | None = None
    """The process that trains it now; None: nobody does."""
    sound: dict[str, str] = field(default_factory=dict)
    """File -> what it holds."""
    wrong: dict[str, str] = field(default_factory=dict)
    """File -> what is wrong with it."""
    obstacles: list[str] = field(default_factory=list)
    """Why the run cannot be resumed; empty: it can."""
    reached: dict[str, int] = field(default_factory=dict)
    """Stage -> iterations that its newest sound checkpoint has behind it."""

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON has a form for."""
        return {
            "run": str(self.run),
            "trained_by": self.trained_by,
            "sound": self.sound,
            "wrong": self.wrong,
            "resumable": not self.obstacles,
            "obstacles": self.obstacles,
            "reached": self.reached,
        }

    def text(self) -> str:
        """All of it, for people."""
        width = max(map(len, (*self.sound, *self.wrong)), default=0)
        lines = [f"ok     {name:<{width}}  {said}" for name, said in self.sound.items()]
        lines += [f"WRONG  {name:<{width}}  {said}" for name, said in self.wrong.items()]
        if self.trained_by:
            lines.append(f"It is being trained by {self.trained_by}.")
        elif self.obstacles:
            lines.append(f"It cannot be resumed: {'; '.join(self.obstacles)}.")
        else:
            reached = ", ".join(f"{stage} after iteration {done}" for stage, done in self.reached.items())
            lines.append(f"It can be resumed with `dgfast train --resume {self.run}`: {reached or 'from its start'}.")
        return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Look as the command line says, and print what was found.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: there is no run.
        SystemExit: with status 1, where something is wrong.
    """
    argv = named_first(sys.argv[1:] if argv is None else argv, "--run")
    command = read(Command, argv, prog="dgfast verify", description=HELP)
    found = examine(command.run, data=command.data)
    print(json.dumps(found.to_json(), indent=2) if command.json else found.text())
    if found.wrong or found.obstacles:
        sys.exit(1)


def examine(run: Path, *, data: bool = True) -> Findings:
    """Look through a run directory.

    Args:
        run: the directory.
        data: also compare the data set with the one that the run began with.
    Returns:
        what was found.
    Raises:
        UserError: there is no run.
    """
    files = (run_directory.CONFIG, run_directory.CHECKPOINTS, run_directory.MODEL, run_directory.TEACHER)
    if not any((run / name).exists() for name in files):
        raise UserError(f"{run} holds no run; expected a run directory: {run_directory.where_to_look(run)}")
    found = Findings(run, run_directory.trained_by(run))
    config = _config(found)
    classes = _data(found, config, data)
    for stage in (TeacherStage, ReconstructionStage, DGNetStage):
        _checkpoints(found, stage.name, config, classes)
    for name, kind in ((run_directory.TEACHER, "teacher"), (run_directory.MODEL, "dgnet")):
        if (run / name).exists():
            _model(found, name, kind)
    _metrics(found)
    _verification(found)
    if (run / "report.json").exists():
        try:
            json.loads((run / "report.json").read_text())
            found.sound["report.json"] = "scores of the finished run"
        except (OSError, ValueError) as error:
            found.wrong["report.json"] = f"no JSON ({error})"
    return found


def _config(found: Findings) -> Config | None:
    try:
        config = run_directory.read_config(found.run)
        check(config)
    except UserError as error:
        found.wrong[run_directory.CONFIG] = str(error)
        found.obstacles.append(f"{run_directory.CONFIG} is wrong")
        return None
    found.sound[run_directory.CONFIG] = f"settings of preset {config.preset}"
    return config


def _data(found: Findings, config: Config | None, look: bool) -> int | None:
    """Compare the data set; returns the number of its identities as far as it is known."""
    try:
        began = run_directory.read_data(found.run)
    except UserError as error:
        found.wrong[run_directory.DATA] = str(error)
        found.obstacles.append(f"{run_directory.DATA} is wrong")
        return None
    if began is not None:
        images = f"{began.get('train_images')} training images of {began.get('train_identities')} identities"
        found.sound[run_directory.DATA] = images
    now = None
    if look and config is not None:
        root, kind = config.data.data_root, config.data.dataset
        if root is None:
            root, kind = pedestrians_folder(config), "market1501"
        if config.data.data_root is not None or root.exists():  # else they are drawn again when the run goes on
            try:
                now = describe(
                    load_reid(root, kind, splits=("train",), variant=config.data.variant, progress=sys.stderr.isatty())
                )
            except UserError as error:
                found.wrong["data set"] = str(error)
                found.obstacles.append("its data set cannot be read")
    if now is not None and began is not None and now["fingerprint"] != began["fingerprint"]:
        found.wrong["data set"] = (
            f"{now['root']}: {now['train_images']} training images of {now['train_identities']} identities; their"
            " names, labels or sizes are not those that the run began with"
        )
        found.obstacles.append("its data set is another one")
    elif now is not None:
        found.sound["data set"] = f"{now['root']}: {'as it was' if began else 'nothing to compare it with'}"
    classes = (began or now or {}).get("train_identities")
    return classes if isinstance(classes, int) else None


def _checkpoints(found: Findings, stage: str, config: Config | None, classes: int | None) -> None:
    files = checkpoint.checkpoints(found.run / run_directory.CHECKPOINTS, stage)
    for path in files:
        name = str(path.relative_to(found.run))
        try:
            state = checkpoint.read(path)
        except Exception as error:  # a damaged file leads to errors of any kind
            if out_of_memory(error):
                raise
            if found.trained_by and not path.exists():
                continue  # the run has written a newer one meanwhile
            found.wrong[name] = _reason(error)
            continue
        if broken := _not_finite(state) or _misfit(state, config, classes):
            found.wrong[name] = broken
        else:
            found.sound[name] = f"{state['iteration']} iterations"
            found.reached[stage] = max(found.reached.get(stage, 0), state["iteration"])
    if files and stage not in found.reached:
        found.obstacles.append(f"no checkpoint of stage {stage} is sound")


def _model(found: Findings, name: str, kind: Any) -> None:
    try:
        model = load_model(found.run / name, kind)
    except UserError as error:
        found.wrong[name] = str(error)
        return
    if broken := _not_finite(model.state_dict()):
        found.wrong[name] = broken
    else:
        found.sound[name] = f"{sum(value.numel() for value in model.state_dict().values()):,} values"


def _metrics(found: Findings) -> None:
    """Each line must be one object, and the iterations of a stage must follow each other."""
    file = found.run / run_directory.METRICS
    if not file.exists():
        return
    last: dict[str, int] = {}
    lines = file.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            stage, iteration = str(entry["stage"]), int(entry["iteration"])
            values = [value for value in entry.values() if isinstance(value, float)]
        except (ValueError, TypeError, KeyError, AttributeError):
            wrong = "no numbers of an iteration"
        else:
            if not all(map(math.isfinite, values)):
                wrong = "a number that is not finite"
            elif iteration <= last.get(stage, -1):
                wrong = f"iteration {iteration} of {stage} after iteration {last[stage]}"
            else:
                last[stage] = iteration
                continue
        found.wrong[run_directory.METRICS] = f"line {number}: {wrong}"
        return
    found.sound[run_directory.METRICS] = f"{len(lines)} lines"


def _verification(found: Findings) -> None:
    try:
        values = run_directory.read_verification(found.run)
    except UserError as error:
        found.wrong[run_directory.VERIFICATION] = str(error)
        return
    if values:
        found.sound[run_directory.VERIFICATION] = (
            f"the same person from a score of {values['threshold_eer']:.4f} on (equal error rate {values['eer']:.1%},"
            f" {values['data']})"
        )


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inside in value.items():
            yield from _tensors(inside, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for place, inside in enumerate(value):
            yield from _tensors(inside, f"{name}.{place}")


def _not_finite(state: dict[str, Any]) -> str:
    bad = [name for name, value in _tensors(state) if value.is_floating_point() and not value.isfinite().all()]
    return f"{len(bad)} of its tensors hold values that are not finite, first {bad[0]}" if bad else ""


def _misfit(state: dict[str, Any], config: Config | None, classes: int | None) -> str:
    """Why the networks of a checkpoint are not those of the settings; "" where they are, or nobody knows."""
    expected: nn.Module
    if config is None or classes is None:
        return ""
    with torch.device("meta"):  # sizes alone: no memory is taken
        if "networks" in state:
            expected, found = DGNet(config.model, classes), state["networks"]
        else:
            expected, found = make_teacher(config.model, classes), state.get("teacher")
    sizes = {name: value.shape for name, value in _tensors(found)}
    if sizes != {name: value.shape for name, value in expected.state_dict().items()}:
        return f"its networks have other sizes than {run_directory.CONFIG} says"
    return ""


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
