"""TensorBoard, W&B and MLflow are told of a run, offline, by the packages themselves; and what fails costs no run."""

import importlib.util
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dgfast.commands import train
from dgfast.config import check
from dgfast.errors import Interrupted, UserError
from dgfast.training import trackers
from dgfast.training.trackers import _Forgiving, require, tracking
from tests import tiny

INSTALLED = [
    name
    for name, packages in {"wandb": ["wandb"], "mlflow": ["mlflow", "sqlalchemy", "alembic"]}.items()
    if all(importlib.util.find_spec(package) for package in packages)
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """No setting and no key of the user's own trackers."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
            patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(home))
        patch.setenv("NETRC", str(home / "netrc"))
        yield patch


@pytest.fixture(scope="module")
def run(market, tmp_path_factory, alone):
    """A run with every tracker that is installed here, stopped and resumed."""
    out = tmp_path_factory.mktemp("tracked")
    config = tiny.config(market, out, track=("tensorboard", *INSTALLED), stop_after=3)
    said = []
    alone.setattr(trackers, "say", said.append)
    with pytest.raises(Interrupted):
        train.main(tiny.flags(config))
    train.main(["--resume", str(out / "run"), "--stop-after", "None"])
    assert not [line for line in said if "fail" in line or "cannot" in line], said
    assert len([line for line in said if line.startswith("W&B: no key")]) == (2 if "wandb" in INSTALLED else 0)
    return out / "run"


def expected(run: Path) -> dict[str, list[tuple[int, float]]]:
    """STAGE/NAME -> iterations and values, as metrics.jsonl has them."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        stage, iteration = entry.pop("stage"), entry.pop("iteration")
        for name, value in entry.items():
            found.setdefault(f"{stage}/{name}", []).append((iteration, value))
    return found


def scores(run: Path) -> dict[str, float]:
    report = json.loads((run / "report.json").read_text())["scores"]
    return {f"scores/{kind}/{name}": value for kind, row in report.items() for name, value in row.items()}


def test_tensorboard_has_all_stages_pictures_and_scores(run):
    boards = {}
    for stage in ("teacher", "dgnet", "final"):
        boards[stage] = EventAccumulator(str(run / "tensorboard" / stage), size_guidance={"scalars": 0, "images": 0})
        boards[stage].Reload()
    for name, points in expected(run).items():
        found = boards[name.split("/")[0]].Scalars(name)
        assert [(e.step, pytest.approx(e.value)) for e in found] == points, name
    assert {n: pytest.approx(boards["final"].Scalars(n)[0].value) for n in scores(run)} == scores(run)
    assert boards["dgnet"].Tags()["images"] == ["dgnet/samples"] and boards["final"].Tags()["images"] == ["final/swaps"]


def records(content: bytes) -> Iterator[bytes]:
    """What a .wandb file holds: a header of 7 bytes, then LevelDB's log format, blocks of 32 KiB."""
    assert content.startswith(b":W&B")
    place, record = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no header fits into the rest of a block
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record = content[place + 7 : place + 7 + length] if kind in (1, 2) else record + content[place + 7 :][:length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record


@pytest.mark.skipif("wandb" not in INSTALLED, reason='needs the extra: pip install "dgfast[wandb]"')
def test_wandb_offline_holds_all_numbers_of_both_parts(run):
    from wandb.proto import wandb_internal_pb2

    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # one run, in two parts
    assert json.loads((run / "tracked.json").read_text())["wandb"] in files[0].name
    found: dict[str, list[tuple[int, float]]] = {}
    summary = {}
    for file in files:
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                stage, _, rest = name.partition("/")
                if isinstance(value, (int, float)) and rest not in ("", "iteration"):
                    found.setdefault(name, []).append((row[f"{stage}/iteration"], value))
            summary |= {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.summary.update}
    for name, points in expected(run).items():
        assert found[name] == [(i, pytest.approx(value)) for i, value in points], name
    assert {name: summary[name] for name in scores(run)} == scores(run)
    assert len(list((run / "wandb").glob("offline-run-*/files/media/images/**/*.png"))) >= 2


@pytest.mark.skipif("mlflow" not in INSTALLED, reason='needs the extra: pip install "dgfast[mlflow]"')
def test_mlflow_reads_back_one_run_with_all_numbers(run):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dgfast")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.run_id == json.loads((run / "tracked.json").read_text())["mlflow"]
    assert kept.info.status == "FINISHED" and kept.info.run_name == "run"
    assert kept.data.params["batch_size"] == "2" and kept.data.params["preset"] == "market1501"
    for name, points in expected(run).items():
        history = sorted(client.get_metric_history(kept.info.run_id, name), key=lambda metric: metric.step)
        assert [(metric.step, pytest.approx(metric.value)) for metric in history] == points, name
    assert {name: kept.data.metrics[name] for name in scores(run)} == scores(run)
    assert list((run / "mlflow" / "artifacts").rglob("*samples*.png"))


class Fails:
    """A tracker whose network is gone."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            raise ConnectionError("no\nnetwork")

        return call


def test_a_tracker_that_fails_is_named_once_and_asked_less_and_less_often(monkeypatch):
    said, tracker = [], Fails()
    monkeypatch.setattr(trackers, "say", said.append)
    forgiving = _Forgiving(tracker, "mlflow")
    forgiving.stage("dgnet", 0)
    for iteration in range(100):
        forgiving.scalars("dgnet", iteration, {"loss": 1.0})
    asked = tracker.calls.count("scalars")
    assert asked == 6  # after 1, 2, 4, 8, 16 and 32 calls that were left out
    forgiving.scores({"both": {"mAP": 1.0}})
    forgiving.close(True)
    assert tracker.calls[-2:] == ["scores", "close"]
    assert len(said) == 1 and "\n" not in said[0]
    assert said[0].startswith("mlflow fails (ConnectionError: no network); the run goes on")


def test_a_tracker_that_cannot_begin_is_left_out(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(trackers, "say", said.append)
    monkeypatch.setattr(trackers, "_MLflow", lambda *_: Fails().begin())
    with tracking(tmp_path, tiny.config(tmp_path, tmp_path, track=("mlflow", "tensorboard"))) as found:
        found.stage("dgnet", 0)
        found.scalars("dgnet", 0, {"loss": 1.0})
    assert said == ["mlflow cannot begin (ConnectionError: no network); the run goes on without it"]
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.skipif("mlflow" not in INSTALLED, reason='needs the extra: pip install "dgfast[mlflow]"')
def test_a_server_that_is_not_there_does_not_stop_a_run(tmp_path, monkeypatch, alone):
    said = []
    monkeypatch.setattr(trackers, "say", said.append)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking(tmp_path, tiny.config(tmp_path, tmp_path, track=("mlflow",))) as found:
        found.scalars("dgnet", 0, {"loss": 1.0})
    assert len(said) == 1 and said[0].startswith("mlflow cannot begin (") and not (tmp_path / "mlflow").exists()


def test_after_an_error_trackers_hear_that_the_run_has_not_finished(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(trackers._TensorBoard, "close", lambda _, finished: closed.append(finished))
    config = tiny.config(tmp_path, tmp_path)
    with pytest.raises(KeyboardInterrupt), tracking(tmp_path, config):
        raise KeyboardInterrupt
    with tracking(tmp_path, config):
        pass
    assert closed == [False, True]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_begins(name, tmp_path, monkeypatch, market):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    config = tiny.config(market, tmp_path / "out", track=("tensorboard", name))
    with pytest.raises(UserError, match=rf"--track {name} needs the package .*pip install -e .\.\[{name}\]"):
        train.main(tiny.flags(config))
    assert not (tmp_path / "out").exists()
    require(("tensorboard",))


def test_trackers_are_flags(tmp_path):
    assert train.parse([]).config.run.track == ("tensorboard",)
    assert train.parse(["--track", "mlflow", "tensorboard"]).config.run.track == ("mlflow", "tensorboard")
    assert train.parse(["--track"]).config.run.track == ()
    with pytest.raises(UserError, match="--track is mlflow mlflow; expected each tracker once"):
        check(train.parse(["--track", "mlflow", "mlflow"]).config)
    assert not {"wandb", "mlflow"} & sys.modules.keys() or INSTALLED  # nobody pays for what is not asked for
    with tracking(tmp_path, tiny.config(tmp_path, tmp_path, track=())) as found:
        found.picture("dgnet", 0, "samples", torch.zeros(2, 2, 3, dtype=torch.uint8))
    assert not list(tmp_path.iterdir())
