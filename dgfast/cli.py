"""`dgfast COMMAND`: each command is a module with a `main(argv)`; `python -m dgfast.MODULE` is the same thing."""

import importlib
import sys

from dgfast.errors import UserError
from dgfast.launcher import run

COMMANDS = {
    "train": ("dgfast.train", "train the teacher and DG-Net, evaluate, leave a table and a picture"),
    "eval": ("dgfast.evaluate", "score a run on a data set"),
    "rerank": ("dgfast.rerank", "re-rank saved features by k-reciprocal neighbours, exactly"),
    "synth": ("dgfast.synth", "write synthetic pedestrians as a Market-1501 folder"),
    "import-reference": ("dgfast.import_reference", "turn checkpoints of the public reference system into dgfast's"),
    "profile": ("dgfast.profile", "measure training: images/s, time by phase, FLOPs, memory, batch sizes"),
    "doctor": ("dgfast.doctor", "say what this machine offers and what is missing"),
}


def main() -> None:
    """Entry point of the console script."""
    run(lambda: dispatch(sys.argv[1:]))


def dispatch(argv: list[str]) -> None:
    """Run one command; without one, or with --help, list them.

    Raises:
        UserError: there is no such command.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: dgfast COMMAND [flags]      (dgfast COMMAND --help explains the flags)\n")
        for name, (_, purpose) in COMMANDS.items():
            print(f"  {name:<18}{purpose}")
        return
    if argv[0] not in COMMANDS:
        raise UserError(f"command {argv[0]!r} is unknown; expected one of {', '.join(COMMANDS)}")
    importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
