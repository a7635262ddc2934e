"""How a command ends: its exit status, and one line instead of a traceback for the user's mistakes."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from dgfast.errors import Diverged, Interrupted, NoMemory, UserError, out_of_memory

DIVERGED = 1
USER_ERROR = 2
STOPPED = 128  # plus the number of the signal
_LESS = "end other programs, or lower --batch-size, --eval-batch-size, --jobs or --workers, whichever the command has"
# What the system may have against a file, whichever it is: not a mistake in the code, and its name says enough.
_OF_THE_SYSTEM = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS)


def run(command: Callable[[], None]) -> NoReturn:
    """Run a command and leave the process with its status.

    Args:
        command: the command's `main`, which reads its arguments from `sys.argv`.
    Raises:
        SystemExit: always; 0 after success, 2 after the user's mistake, 1 after a loss that is no longer finite,
            128 + signal after a stop, or when nobody reads its output any more. Any other exception passes through,
            with its traceback and status 1.
    """
    try:
        with _terminable():
            try:
                command()
            finally:
                sys.stdout.flush()
    except UserError as error:
        _leave(str(error), USER_ERROR)
    except Diverged as error:
        _leave(str(error), DIVERGED)
    except Interrupted as error:
        _leave(str(error), STOPPED + error.signal)
    except _Terminated:
        _leave("stopped by SIGTERM", STOPPED + signal.SIGTERM)
    except KeyboardInterrupt:
        _leave("interrupted", STOPPED + signal.SIGINT)
    except BrokenPipeError:
        # Whoever read has seen enough, as in `dgfast --help | head`. Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(STOPPED + signal.SIGPIPE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM and error.filename:
            _leave(f"{error.filename}: {error.strerror}; expected a disk with room and the right to use it", USER_ERROR)
        if out_of_memory(error):
            _leave(str(NoMemory(error, _LESS)), USER_ERROR)
        _wait_unless_first()  # most errors of the other processes only say that the first one has left
        raise
    sys.exit(0)


def is_first() -> bool:
    """Whether this is the first process of those that torchrun started, or the only one: it speaks for all."""
    return int(os.environ.get("RANK", "0")) == 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM; like Ctrl-C, it passes whatever handles errors, and lets whatever tidies up do so."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Within the context SIGTERM tidies up before it ends the process; a second one ends it at once.

    Not with several processes: one that waits for the others in torch would hear of it only when they come.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield
        return

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(message: str, status: int) -> NoReturn:
    _wait_unless_first()
    print(f"dgfast: {message}", file=sys.stderr, flush=True)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Under torchrun: without Python's clean-up, which could wait for processes that torchrun is ending.
        os._exit(status)
    sys.exit(status)


def _wait_unless_first() -> None:
    """Give the first process time to speak: when it leaves, torchrun ends the others before they repeat its words.

    On a machine without the first process they wait for each other.
    """
    if not is_first():
        time.sleep(5 + int(os.environ.get("LOCAL_RANK", "0")))
