"""SIGTERM to a command that is not training: its workers end with it, and what it had begun to write is removed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
