"""Errors that end a command with one clear line instead of a traceback; launcher.py says how."""

import errno
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How torch, its libraries, OpenCV and the C++ library say that there is no memory, where no type does.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Insufficient memory",
    "bad_alloc",
)


class UserError(Exception):
    """A mistake that the user can mend; the command's exit status is 2.

    Args:
        message: what, what was found, what was expected, and the next step; printed on one line.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def how_to_install(extra: str) -> str:
    """How to install one of dgfast's extras, the end of a message.

    Args:
        extra: its name in pyproject.toml.
    """
    return f"pip install -e '.[{extra}]' -c constraints.txt (in the folder of dgfast's sources)"


class CannotWrite(UserError, OSError):
    """A file that the system does not let be written: the disk is full, or the place is not the user's to write to.

    It is an OSError, too, for whoever can do without the file.

    Args:
        path: the file or folder.
        error: what the system said.
    """

    def __init__(self, path: Path, error: OSError):
        reason = error.strerror or str(error)
        super().__init__(
            f"{path} cannot be written ({reason}); expected room on the disk and the right to write there; make room,"
            " or choose another folder"
        )
        self.errno, self.strerror, self.filename = error.errno, reason, str(path)

    def __str__(self) -> str:
        return str(self.args[0])


class NoMemory(UserError):
    """An allocation that failed, of the CPU's memory or of a GPU's.

    Args:
        error: what was raised for it.
        next_step: what the user can do, the end of the message.
    """

    def __init__(self, error: BaseException, next_step: str):
        said = str(error).strip().partition("\n")[0].partition(" err == 0. ")
        reason = textwrap.shorten(said[2] or said[0], 160, placeholder=" ...").rstrip(".") or type(error).__name__
        super().__init__(
            f"there is not enough memory ({reason}); expected more that is free, or less work: {next_step}"
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory could not be had, of the CPU or of a GPU.

    Args:
        error: of any library.
    """
    if isinstance(error, UserError):
        return isinstance(error, NoMemory)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # By its name, since torch is not imported here: some commands do without it.
    known = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return known or (isinstance(error, Exception) and any(words in str(error) for words in _NO_MEMORY))


@contextmanager
def within_memory(next_step: str) -> Iterator[None]:
    """Within the context, an allocation that fails becomes one line that says what the user can do.

    Args:
        next_step: that.
    Raises:
        NoMemory: in place of whatever a library raises.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, NoMemory) or not out_of_memory(error):
            raise
        raise NoMemory(error, next_step) from error


class Diverged(Exception):
    """A loss that is no longer finite; the command's exit status is 1."""


class Interrupted(Exception):
    """The end of a command that SIGINT or SIGTERM stopped, after the iteration was finished and saved.

    The command's exit status is 128 + signal.

    Args:
        signal: number of the signal.
        message: where the run stopped and how it goes on.
    """

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal
