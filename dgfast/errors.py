"""Errors that end a command with one clear line instead of a traceback; launcher.py says how."""

from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend; the command's exit status is 2.

    Args:
        message: what, what was found, what was expected, and the next step; printed on one line.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


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
