"""Where the numbers and pictures of a run can be watched: TensorBoard, W&B and MLflow, behind one small interface.

What a run needs it writes itself (metrics.jsonl, the pictures, report.json). So a tracker that fails costs nothing but
its own curves: one warning, and the training goes on.
"""

import importlib.util
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from dgfast.config import Config, TrackerName, to_json
from dgfast.errors import UserError, how_to_install
from dgfast.files import write_json, writing
from dgfast.run_directory import MLFLOW, TENSORBOARD, TRACKED

from .stage_log import say
from .tracker import Scores, Tracker

FINAL = "final"  # in place of a stage, for what the finished run is told to have reached
PROJECT = "dgfast"  # of W&B, and experiment of MLflow, unless the environment names another


class _TensorBoard:
    """Event files in the run directory. They are part of the run: a full disk ends it.

    Args:
        run: run directory.
    """

    def __init__(self, run: Path):
        self.folder = run / TENSORBOARD
        self.board: SummaryWriter | None = None
        _say_nothing_of_full_disks()

    def stage(self, stage: str, start: int) -> None:
        self.close(True)
        # A folder each: purge_step hides all that the folder holds from that step on, and so the stages before.
        self.board = SummaryWriter(str(self.folder / stage), purge_step=start)

    def scalars(self, stage: str, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._open(stage).add_scalar(f"{stage}/{name}", value, iteration)

    def picture(self, stage: str, iteration: int, name: str, image: Tensor) -> None:
        self._open(stage).add_image(f"{stage}/{name}", image, iteration, dataformats="HWC")

    def scores(self, scores: Scores) -> None:
        for name, value in _flat(scores).items():
            self._open(FINAL).add_scalar(name, value, 0)

    def close(self, finished: bool) -> None:
        if self.board:
            board, self.board = self.board, None
            with writing(self.folder):
                board.close()

    def _open(self, stage: str) -> SummaryWriter:
        if self.board is None or Path(self.board.log_dir) != self.folder / stage:
            self.stage(stage, 0)
        assert self.board
        return self.board


class _WandB:
    """Weights & Biases. Without a key and without WANDB_MODE it works offline, and never asks.

    Args:
        run: run directory, where its files go.
        config: the run's settings.
    """

    def __init__(self, run: Path, config: Config):
        import wandb

        mode = os.environ.get("WANDB_MODE")
        if mode is None and not wandb.login(prompt=False, verify=False):
            mode = "offline"
            say(f"W&B: no key (wandb login, WANDB_API_KEY), so offline: wandb sync {run}/wandb/offline-run-* sends it")
        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(run),
            id=_remembered(run, "wandb"),
            name=run.name,
            resume=None if mode == "offline" else "allow",  # offline, parts of one id meet when they are sent
            config=to_json(config),
            mode=mode,  # type: ignore[arg-type]
            # Nothing is read from the terminal or written to it, and the end of a run waits a minute for a network.
            settings=wandb.Settings(console="off", silent=True, login_timeout=1, init_timeout=30, finish_timeout=60),
        )
        _remember(run, "wandb", self.run.id)

    def stage(self, stage: str, start: int) -> None:
        # W&B's own steps never go back; ours begin again with each stage, and after a stop.
        self.run.define_metric(f"{stage}/iteration", hidden=True)
        self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/iteration")

    def scalars(self, stage: str, iteration: int, values: Mapping[str, float]) -> None:
        self.run.log({f"{stage}/iteration": iteration, **{f"{stage}/{name}": value for name, value in values.items()}})

    def picture(self, stage: str, iteration: int, name: str, image: Tensor) -> None:
        picture = self.wandb.Image(image.cpu().numpy())
        self.run.log({f"{stage}/iteration": iteration, f"{stage}/{name}": picture})

    def scores(self, scores: Scores) -> None:
        self.run.summary.update(_flat(scores))

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class _MLflow:
    """MLflow: a SQLite file in the run directory, or the server that MLFLOW_TRACKING_URI names.

    Args:
        run: run directory.
        config: the run's settings.
    """

    def __init__(self, run: Path, config: Config):
        # A server that does not answer holds the training up, so it gets one more try instead of seven, and no minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.metric = Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        place = (run / MLFLOW).resolve()
        if uri is None:
            place.mkdir(exist_ok=True)
        self.client = MlflowClient(uri or f"sqlite:///{place / 'mlflow.db'}")
        known = _remembered(run, "mlflow")
        if known is not None:
            self.id = known
            self.client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        artifacts = None if uri else (place / "artifacts").as_uri()
        experiment = found.experiment_id if found else self.client.create_experiment(name, artifacts)
        self.id = self.client.create_run(experiment, run_name=run.name).info.run_id
        _remember(run, "mlflow", self.id)
        sections = {name: part if isinstance(part, dict) else {name: part} for name, part in to_json(config).items()}
        settings = [Param(name, str(value)) for part in sections.values() for name, value in part.items()]
        for first in range(0, len(settings), 100):  # a server takes so many at once
            self.client.log_batch(self.id, params=settings[first : first + 100])

    def stage(self, stage: str, start: int) -> None:
        pass  # every number has its own steps

    def scalars(self, stage: str, iteration: int, values: Mapping[str, float]) -> None:
        self._log({f"{stage}/{name}": value for name, value in values.items()}, iteration)

    def picture(self, stage: str, iteration: int, name: str, image: Tensor) -> None:
        self.client.log_image(self.id, image.cpu().numpy(), key=f"{stage}/{name}", step=iteration)

    def scores(self, scores: Scores) -> None:
        self._log(_flat(scores), 0)
        self.client.log_dict(self.id, {kind: dict(row) for kind, row in scores.items()}, "scores.json")

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, [self.metric(name, value, now, step) for name, value in values.items()])


class _Forgiving:
    """A tracker whose failures do not reach the run: one warning, and it is left out of the next 1, 2, 4, ... calls.

    So a server that is gone for a minute loses little, and one that never answers holds a run up a few times only.

    Args:
        tracker: what may fail.
        name: of it, in the warning.
    """

    def __init__(self, tracker: Tracker, name: str):
        self.tracker, self.name = tracker, name
        self.failures = self.left_out = 0

    def stage(self, stage: str, start: int) -> None:
        self._try(False, self.tracker.stage, stage, start)

    def scalars(self, stage: str, iteration: int, values: Mapping[str, float]) -> None:
        self._try(True, self.tracker.scalars, stage, iteration, values)

    def picture(self, stage: str, iteration: int, name: str, image: Tensor) -> None:
        self._try(True, self.tracker.picture, stage, iteration, name, image)

    def scores(self, scores: Scores) -> None:
        self._try(False, self.tracker.scores, scores)

    def close(self, finished: bool) -> None:
        self._try(False, self.tracker.close, finished)

    def _try(self, may_be_left_out: bool, call: Any, *arguments: object) -> None:
        if may_be_left_out and self.left_out:
            self.left_out -= 1
            return
        try:
            call(*arguments)
        except Exception as error:
            if not self.failures:
                say(f"{self.name} fails ({_one_line(error)}); the run goes on, and metrics.jsonl has all numbers")
            self.left_out = 2**self.failures
            self.failures = min(self.failures + 1, 10)


class _Several:
    """Several trackers as one.

    Args:
        each: the trackers.
    """

    def __init__(self, each: Iterable[Tracker] = ()):
        self.each = list(each)

    def stage(self, stage: str, start: int) -> None:
        for one in self.each:
            one.stage(stage, start)

    def scalars(self, stage: str, iteration: int, values: Mapping[str, float]) -> None:
        for one in self.each:
            one.scalars(stage, iteration, values)

    def picture(self, stage: str, iteration: int, name: str, image: Tensor) -> None:
        for one in self.each:
            one.picture(stage, iteration, name, image)

    def scores(self, scores: Scores) -> None:
        for one in self.each:
            one.scores(scores)

    def close(self, finished: bool) -> None:
        for one in self.each:
            one.close(finished)


NONE: Tracker = _Several()


def require(names: Iterable[TrackerName]) -> None:
    """Find out before anything is begun whether trackers are installed.

    Args:
        names: of the trackers.
    Raises:
        UserError: a package is missing.
    """
    needed = {"wandb": ["wandb"], "mlflow": ["mlflow"]}
    if "MLFLOW_TRACKING_URI" not in os.environ:
        needed["mlflow"] += ["sqlalchemy", "alembic"]  # of its SQLite file
    for name in names:
        for package in needed.get(name, []):
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"--track {name} needs the package {package}, which is not installed; expected the extra of that"
                    f" name: {how_to_install(name)}; or leave {name} away"
                )


@contextmanager
def tracking(run: Path, config: Config) -> Iterator[Tracker]:
    """The trackers that a run asks for, open within the context. After an error they hear that it has not finished.

    Args:
        run: run directory.
        config: the run's settings.
    """
    trackers = _Several(_opened(run, config))
    try:
        yield trackers
    except BaseException:
        with suppress(OSError):  # the first error says more
            trackers.close(False)
        raise
    trackers.close(True)


def _opened(run: Path, config: Config) -> Iterator[Tracker]:
    for name in config.run.track:
        if name == "tensorboard":
            yield _TensorBoard(run)
            continue
        try:
            tracker: Tracker = _WandB(run, config) if name == "wandb" else _MLflow(run, config)
        except Exception as error:
            say(f"{name} cannot begin ({_one_line(error)}); the run goes on without it")
        else:
            yield _Forgiving(tracker, name)


def _remembered(run: Path, name: str) -> str | None:
    """The name under which a tracker knows this run; None where it does not yet."""
    try:
        return str(json.loads((run / TRACKED).read_text())[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(run: Path, name: str, its: str) -> None:
    known = {other: found for other in ("wandb", "mlflow") if (found := _remembered(run, other)) is not None}
    write_json({**known, name: its}, run / TRACKED)


def _flat(scores: Scores) -> dict[str, float]:
    return {f"scores/{kind}/{name}": value for kind, row in scores.items() for name, value in row.items()}


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _say_nothing_of_full_disks() -> None:
    """TensorBoard writes in a thread and hands an error over to the next call. The thread's own traceback adds
    nothing to the line in which the run then ends."""

    def say_of_others(error: threading.ExceptHookArgs) -> None:
        is_tensorboard = type(error.thread).__module__.startswith("tensorboard.")
        if not (is_tensorboard and isinstance(error.exc_value, OSError)):
            threading.__excepthook__(error)

    threading.excepthook = say_of_others
