"""SIGTERM to a command that is not training: its workers end with it, and what it had begun to write is removed."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dgfast import launcher

COMMAND = "import sys; from dgfast.commands.cli import main; main()"


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def descendants(pid: int) -> set[int]:
    found = set()
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        found |= {child} | descendants(child)
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_synth_ends_its_workers(tmp_path, number):
    words = ["synth", "--out", str(tmp_path / "people"), "--identities", "400", "--workers", "2"]
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *words], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(tmp_path.glob(".people.*.tmp/*/*.jpg")) or process.poll() is not None)
    workers = descendants(process.pid)
    assert len(workers) >= 2
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=120)
    wait_for(lambda: all(map(is_gone, workers)))
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number
        assert errors.splitlines()[-1] == "dgfast: stopped by SIGTERM" and "Traceback" not in errors
        assert list(tmp_path.iterdir()) == []


def left(capsys, command) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        launcher.run(command)
    return caught.value.code, capsys.readouterr().err


def test_sigterm_tidies_up_and_is_told_by_the_status(capsys, tmp_path):
    from dgfast.files import replacing

    def command():
        with replacing(tmp_path / "a") as partial:
            partial.write_text("half")
            try:
                signal.raise_signal(signal.SIGTERM)
            except Exception:
                pytest.fail("what handles errors must not stop it")

    before = signal.getsignal(signal.SIGTERM)
    assert left(capsys, command) == (128 + signal.SIGTERM, "dgfast: stopped by SIGTERM\n")
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) == before


def test_one_of_several_processes_leaves_sigterm_to_the_system(capsys, monkeypatch):
    """It may wait for the others within torch, where no handler of Python is called."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    left(capsys, lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_what_the_system_has_against_a_file_is_one_line(capsys):
    def command():
        raise OSError(errno.EROFS, "Read-only file system", "/data/x")

    status, said = left(capsys, command)
    assert status == 2 and said.startswith("dgfast: /data/x: Read-only file system;") and said.count("\n") == 1
    with pytest.raises(FileNotFoundError):
        launcher.run(lambda: open("/nowhere"))
