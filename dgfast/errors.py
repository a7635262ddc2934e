"""Errors that end a command with one clear line instead of a traceback; launcher.py says how."""


class UserError(Exception):
    """A mistake that the user can mend; the command's exit status is 2.

    Args:
        message: what, what was found, what was expected, and the next step; printed on one line.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


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
