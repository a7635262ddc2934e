"""A process that has so many seconds and no more."""

import os
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bounded(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int | None, str]:
    """Run a command in the repository. When its time is up, all that it started ends with it.

    Args:
        command: its words.
        environment: its variables.
        seconds: that it may take.
    Returns:
        its exit status, None where the time was up, and what it said.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
