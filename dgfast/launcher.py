"""How a command ends: its exit status, and one line instead of a traceback for the user's mistakes."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from dgfast.errors import Diverged, Interrupted, UserError

DIVERGED = 1
USER_ERROR = 2
STOPPED = 128  # plus the number of the signal


def run(command: Callable[[], None]) -> NoReturn:
    """Run a command and leave the process with its status.

    Args:
        command: the command's `main`, which reads its arguments from `sys.argv`.
    Raises:
        SystemExit: always; 0 after success, 2 after the user's mistake, 1 after a loss that is no longer finite,
            128 + signal after a stop. Any other exception passes through, with its traceback and status 1.
    """
    try:
        command()
    except UserError as error:
        _leave(str(error), USER_ERROR)
    except Diverged as error:
        _leave(str(error), DIVERGED)
    except Interrupted as error:
        _leave(str(error), STOPPED + error.signal)
    except KeyboardInterrupt:
        _leave("interrupted", STOPPED + signal.SIGINT)
    except Exception:
        _wait_unless_first()  # most errors of the other processes only say that the first one has left
        raise
    sys.exit(0)


def _leave(message: str, status: int) -> NoReturn:
    _wait_unless_first()
    print(f"dgfast: {message}", file=sys.stderr, flush=True)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Under torchrun: without Python's clean-up, which could wait for processes that torchrun is ending.
        os._exit(status)
    sys.exit(status)


def _wait_unless_first() -> None:
    """Give the first process time to speak: when it leaves, torchrun ends the others before they repeat its words."""
    if int(os.environ.get("RANK", "0")):
        time.sleep(5)
