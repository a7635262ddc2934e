"""Disks that are full and places that are not ours: one line with the path, and nothing half-written."""

import contextlib
import errno
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from dgfast import run_directory
from dgfast.commands import cli, train
from dgfast.config import Config
from dgfast.data.datasets.check import default_cache_dir
from dgfast.errors import CannotWrite, UserError
from dgfast.files import require_writable, write_text
from dgfast.models.dgnet import make_teacher, save_model
from dgfast.profiling.trace import read
from dgfast.training import checkpoint
from dgfast.training.stage_log import StageLog
from dgfast.training.trackers import _TensorBoard
from tests import tiny


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Writing more fails, as on a full disk, but with "File too large"."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB; not everybody may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not Path("/bin/mount").exists() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_a_file_that_finds_no_room_names_itself(tmp_path):
    with no_file_above(100), pytest.raises(CannotWrite, match="a.txt cannot be written .File too large") as caught:
        write_text("x" * 1000, tmp_path / "a.txt")
    assert caught.value.errno == errno.EFBIG and "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError) and isinstance(caught.value, OSError)
    assert everything(tmp_path) == []


def test_a_checkpoint_and_a_model_that_find_no_room_name_themselves(tmp_path):
    state = {"a": torch.zeros(100_000)}
    with no_file_above(10_000):
        with pytest.raises(CannotWrite, match="dgnet-00000002.pt cannot be written"):
            checkpoint.save(tmp_path, "dgnet", 2, state)
        with pytest.raises(CannotWrite, match="teacher.safetensors cannot be written"):
            save_model(make_teacher(tiny.MODEL, 2), tiny.MODEL, 2, tmp_path / "teacher.safetensors")
    assert everything(tmp_path) == []


@pytest.mark.slow
def test_a_run_that_finds_no_room_says_how_it_goes_on(market, tmp_path):
    flags = tiny.flags(tiny.config(market, tmp_path))
    with no_file_above(300_000), pytest.raises(UserError) as caught:
        train.main(flags)
    run = tmp_path / "run"
    assert "teacher-00000002.pt cannot be written (File too large)" in str(caught.value)
    assert str(caught.value).endswith(f"go on with --resume {run}") and "\n" not in str(caught.value)
    assert not list(run.rglob("*.tmp"))
    train.main(["--resume", str(run)])
    assert (run / "report.json").exists()


def test_numbers_that_find_no_room_end_in_one_line(tmp_path, capfd):
    """TensorBoard writes in a thread; its traceback would be a second word on the same matter."""
    board = _TensorBoard(tmp_path)
    log = StageLog(tmp_path, "dgnet", 0, 10_000, 1, board)
    with no_file_above(8192):
        with pytest.raises(CannotWrite, match="metrics.jsonl cannot be written"):
            for iteration in range(2000):
                log.write(iteration, {"loss": 1.0, "other": 2.0})
    for close in (log.close, lambda: board.close(False)):
        with contextlib.suppress(CannotWrite):
            close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_dead_tensorboard_is_silent_in_its_thread(tmp_path, capfd):
    board = _TensorBoard(tmp_path)
    log = StageLog(tmp_path, "dgnet", 0, 10_000, 1, board)
    log.file.close()
    log.file = open(os.devnull, "w")  # noqa: SIM115 (closed by the log): only TensorBoard finds no room
    with no_file_above(100), pytest.raises(OSError):
        for iteration in range(2000):
            log.write(iteration, {"loss": 1.0})
            board.board.flush()
    assert "Traceback" not in capfd.readouterr().err


def features(folder: Path) -> list[str]:
    rows = np.random.default_rng(0).normal(size=(1200, 4)).astype(np.float32)
    np.save(folder / "q.npy", rows[:400])
    np.save(folder / "g.npy", rows)
    return ["rerank", "--query", str(folder / "q.npy"), "--gallery", str(folder / "g.npy")]


def test_reranking_reserves_its_room_before_it_computes(tmp_path, monkeypatch):
    words, asked = features(tmp_path), []

    def full(descriptor, offset, size):
        asked.append(size)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr("dgfast.commands.rerank.rerank", lambda *_, **__: pytest.fail("it computes"))
    with pytest.raises(UserError, match="d.npy cannot be written .No space left on device"):
        cli.dispatch([*words, "--out", str(tmp_path / "d.npy")])
    assert asked == [400 * 1200 * 4 + 128] and everything(tmp_path) == ["g.npy", "q.npy"]


@pytest.mark.slow
def test_reranking_onto_a_full_disk_is_one_line(tmp_path, small_disk):
    """A page that finds no room would end the process by a signal, without a word."""
    words = [*features(tmp_path), "--out", str(small_disk / "d.npy")]
    code = "import sys; from dgfast.commands.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert len(lines) == 1 and "d.npy cannot be written (No space left on device)" in lines[0]
    assert everything(small_disk) == []


def test_people_that_find_no_room_leave_nothing(tmp_path):
    with no_file_above(700), pytest.raises(UserError, match="people cannot be written .File too large"):
        cli.dispatch(["synth", "--out", str(tmp_path / "people"), "--identities", "2", "--workers", "1"])
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_finds_no_room_is_done_without(market, tmp_path, monkeypatch, caplog):
    from dgfast.data import load_reid

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with no_file_above(10), caplog.at_level(logging.WARNING, "dgfast"):
        assert len(load_reid(market, "market1501", progress=False).train) == 18
    assert "set XDG_CACHE_HOME" in caplog.text and everything(tmp_path) == []


def test_no_home_is_one_line(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        default_cache_dir({})


@pytest.mark.parametrize("content", ["", '{"traceEvents": [', "{}"])
def test_a_trace_that_was_cut_short_is_one_line(tmp_path, content):
    (tmp_path / "trace.json").write_text(content)
    with pytest.raises(UserError, match="could not be written whole"):
        read(tmp_path / "trace.json", 1)


def test_a_place_that_is_not_ours_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run_directory.make(Config(), run)
    save_model(make_teacher(tiny.MODEL, 2), tiny.MODEL, 2, run / "teacher.safetensors")
    monkeypatch.setattr("dgfast.commands.evaluate.open_data", lambda *_: pytest.fail("it opens the data"))
    with pytest.raises(UserError, match="/proc/nowhere cannot be written to .*pass another --out"):
        cli.dispatch(["eval", "--run", str(run), "--out", "/proc/nowhere"])
    with pytest.raises(UserError, match="/proc cannot be written to"):
        require_writable(Path("/proc"), "pass another")


def test_weights_are_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        save_model(make_teacher(tiny.MODEL, 2), tiny.MODEL, 2, tmp_path / "teacher.safetensors")
        checkpoint.save(tmp_path, "dgnet", 2, {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_reports_on_two_data_sets_of_a_layout_lie_beside_each_other(tmp_path):
    def written(root: str) -> str:
        path = run_directory.report_path(tmp_path, "eval-market1501", Path(root))
        path.write_text(json.dumps({"root": root}))
        return path.name

    assert written("/data/a") == written("/data/a") == "eval-market1501.json"
    assert written("/data/b") == written("/data/../data/b") == "eval-market1501-2.json"
    (tmp_path / "eval-market1501.json").write_text("garbage")
    assert written("/data/c") == "eval-market1501.json"
