"""A run directory: made whole, trained by one process at a time, resumed as what it is."""

import dataclasses
import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dgfast import run_directory
from dgfast.commands import sources, train
from dgfast.config import SyntheticConfig
from dgfast.data import load_reid
from dgfast.data.datasets import describe
from dgfast.errors import Interrupted, UserError
from dgfast.models.dgnet import make_teacher, save_model
from tests import tiny

FACTS = {"name": "market1501", "fingerprint": "0"}


def test_two_starts_in_the_same_second_get_two_directories(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    config = tiny.config(tmp_path, tmp_path / "runs", name="")
    made = [run_directory.begin(config, "market1501", FACTS) for _ in range(3)]
    name = "market1501-market1501-20260101-000000"
    assert [run.name for run in made] == [name, f"{name}-2", f"{name}-3"]
    assert all(run_directory.read_config(run) == config and run_directory.read_data(run) == FACTS for run in made)


def test_many_starts_at_once_get_a_directory_each(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "now")
    config = tiny.config(tmp_path, tmp_path / "runs", name="")
    made, together = [], threading.Barrier(8)

    def start():
        together.wait()
        made.append(run_directory.begin(config, "x", FACTS))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8 and sorted(os.listdir(tmp_path / "runs")) == sorted(run.name for run in made)


def test_a_run_directory_appears_whole(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_directory, "write_config", fails)
    with pytest.raises(UserError, match="cannot be made .No space left"):
        run_directory.begin(tiny.config(tmp_path, tmp_path / "runs"), "x", FACTS)
    assert os.listdir(tmp_path / "runs") == []


def test_a_name_that_is_taken_is_refused(tmp_path):
    config = tiny.config(tmp_path, tmp_path / "runs")
    run_directory.begin(config, "x", FACTS)
    with pytest.raises(UserError, match="holds a run already"):
        run_directory.begin(config, "x", FACTS)


HOLDER = """
import os, sys, time
from pathlib import Path
from dgfast import run_directory

with run_directory.locked(Path(sys.argv[1])):
    child = os.fork() if "fork" in sys.argv else 1
    os.write(1, b"held" + bytes([10]) if child else b"")
    time.sleep(60)
"""


def hold(run: Path, *words: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(run), *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def stopped(market, tmp_path):
    """A run that was stopped after the first iteration of DG-Net."""
    with pytest.raises(Interrupted):
        train.main(tiny.flags(tiny.config(market, tmp_path, stop_after=1)))
    return tmp_path / "run"


def test_a_run_that_is_being_trained_is_not_resumed(tmp_path, market):
    run = tmp_path / "run"
    run_directory.make(tiny.config(market, tmp_path), run)
    before = sorted(os.listdir(run))
    holder = hold(run)
    try:
        with pytest.raises(UserError, match=f"is being trained by process {holder.pid} on "):
            train.main(["--resume", str(run)])
        assert set(os.listdir(run)) == {*before, run_directory.LOCK}
    finally:
        holder.kill()
        holder.wait()


def test_the_lock_ends_with_the_process_even_if_a_child_lives_on(tmp_path):
    """Loaders have processes of their own, which outlive a killed run for some seconds."""
    (tmp_path / "run").mkdir()
    holder = hold(tmp_path / "run", "fork")
    (child,) = map(int, Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split())
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    try:
        os.kill(child, 0)
        with run_directory.locked(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_is_named_once_and_used(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with caplog.at_level(logging.WARNING, "dgfast"), run_directory.locked(tmp_path):
        pass
    assert len(caplog.records) == 1 and "has no locks" in caplog.text


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for left in (".config.json.0.tmp", "checkpoints/.dgnet-00000004.pt.1.tmp"):
        (tmp_path / left).write_text("half")
    (tmp_path / "mine.tmp").write_text("the user's")
    with run_directory.locked(tmp_path):
        pass
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".lock", "checkpoints", "mine.tmp"]


@pytest.mark.slow
def test_a_run_goes_on_as_itself_or_not_at_all(stopped, market, tmp_path):
    def refuse(*words: object) -> str:
        with pytest.raises(UserError) as caught:
            train.main(["--resume", str(stopped), *map(str, words)])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    metrics = (stopped / "metrics.jsonl").read_bytes()
    assert "--name other does not go with --resume" in refuse("--name", "other")
    assert "--out" in refuse("--out", tmp_path / "elsewhere")
    assert "began with a teacher that it trains itself" in refuse("--teacher", stopped)
    other = tiny.market(tmp_path / "other", images=4)
    assert "6 training images" not in refuse("--data-root", other)
    assert "began with 18 training images of 2 identities" in refuse("--data-root", other)
    assert (stopped / "metrics.jsonl").read_bytes() == metrics
    # The same images at another place are the same data.
    tiny.market(tmp_path / "moved")
    train.main(["--resume", str(stopped), "--stop-after", "None", "--data-root", str(tmp_path / "moved")])
    assert (stopped / "model.safetensors").exists()


@pytest.mark.slow
def test_another_teacher_is_refused(market, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_model(make_teacher(tiny.MODEL, 2), tiny.MODEL, 2, tmp_path / name / "teacher.safetensors")
    with pytest.raises(Interrupted):
        train.main(tiny.flags(tiny.config(market, tmp_path, stop_after=1, teacher=tmp_path / "one")))
    resume = ["--resume", str(tmp_path / "run"), "--stop-after", "2"]
    for teacher in (tmp_path / "two", tmp_path / "two" / "teacher.safetensors", "None"):
        with pytest.raises(UserError, match="--teacher is"):
            train.main([*resume, "--teacher", str(teacher)])
    os.rename(tmp_path / "one", tmp_path / "moved")
    with pytest.raises(Interrupted):
        train.main([*resume, "--teacher", str(tmp_path / "moved")])


def test_the_fingerprint_follows_labels_names_and_sizes(market, tmp_path):
    def of(root: Path) -> str:
        return describe(load_reid(root, "market1501", progress=False))["fingerprint"]

    assert of(market) == of(tiny.market(tmp_path / "same"))
    changed = tiny.market(tmp_path / "changed")
    first = min((changed / "bounding_box_train").iterdir())
    first.write_bytes(first.read_bytes() + b"\0")
    assert of(changed) != of(market)
    first.write_bytes(first.read_bytes()[:-1])
    assert of(changed) == of(market)
    first.rename(first.with_name(first.name.replace("_c1", "_c2").replace("_01.", "_02.")))
    assert of(changed) != of(market)


@pytest.mark.parametrize("content", ["", "[]", "5", "null", "{}", '{"fingerprint": 3}', "\0\0", "{"])
def test_a_data_file_of_something_else_is_one_line(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        run_directory.read_data(tmp_path)


def test_a_second_first_run_takes_the_pedestrians_of_the_other(tmp_path, monkeypatch):
    """Both found a cold cache; the other one is done while this one still draws."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = SyntheticConfig(synthetic_train_identities=2, synthetic_test_identities=2)
    generate = sources.generate
    made = []

    def slower(root, **settings):
        monkeypatch.setattr(sources, "generate", generate)
        made.append(sources._built_in_pedestrians(config, (48, 48)))  # the other run, meanwhile
        made.append((root / "synthetic.json").stat().st_ino)
        generate(root, **settings)

    monkeypatch.setattr(sources, "generate", slower)
    root = sources._built_in_pedestrians(config, (48, 48))
    assert [root, (root / "synthetic.json").stat().st_ino] == made
    assert sorted(p.name for p in root.parent.iterdir()) == [root.name]


def test_a_folder_that_appears_at_the_last_moment_is_taken_too(tmp_path, monkeypatch):
    """The other run's folder takes its place between the end of the drawing and the renaming."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = SyntheticConfig(synthetic_train_identities=2, synthetic_test_identities=2)
    rename = os.replace

    def late(partial, target):
        if "pedestrians" in Path(target).name and not Path(target).exists():
            Path(target).mkdir()
            (Path(target) / "synthetic.json").write_text(json.dumps({"of": "the other"}))
        rename(partial, target)

    monkeypatch.setattr(os, "replace", late)
    root = sources._built_in_pedestrians(config, (48, 48))
    assert json.loads((root / "synthetic.json").read_text()) == {"of": "the other"}
    assert [p.name for p in root.parent.iterdir()] == [root.name]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        sources._built_in_pedestrians(SyntheticConfig(), (48, 48))


def test_settings_of_the_run_are_kept_as_they_were(tmp_path):
    config = tiny.config(tmp_path, tmp_path)
    run_directory.make(config, tmp_path / "run")
    changed = dataclasses.replace(config, run=dataclasses.replace(config.run, stop_after=3))
    run_directory.write_config(changed, tmp_path / "run")
    assert run_directory.read_config(tmp_path / "run") == changed
