"""Errors that end a command with one clear line instead of a traceback."""


class UserError(Exception):
    """A mistake that the user can mend: entry points print the message on one line and exit with status 2.

    The message says what, what was found, what was expected and the next step.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Diverged(Exception):
    """A loss that is no longer finite: entry points print the message on one line and exit with status 1."""


class Interrupted(Exception):
    """SIGINT or SIGTERM, after the iteration was finished and saved: entry points exit with status 128 + signal."""

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal
