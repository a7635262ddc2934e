"""`dgfast COMMAND`: finds the command's module and runs its `main`."""

import importlib
import importlib.metadata
import sys

from dgfast.commands.command_line import meant
from dgfast.errors import UserError
from dgfast.launcher import run

COMMANDS = {  # name -> module in this folder, purpose
    "train": ("train", "train the teacher and DG-Net, evaluate, leave a table and a picture"),
    "eval": ("evaluate", "score a run on a data set"),
    "rerank": ("rerank", "re-rank saved features by k-reciprocal neighbours, exactly"),
    "embed": ("embed", "vectors of people in images or in a video, in a file with an index"),
    "search": ("search", "the pictures of a gallery that show the same person as a query"),
    "verify": ("verify", "check everything that a run directory holds, and whether it can be resumed"),
    "quality": ("quality", "compare generated pictures with the rendered truth"),
    "report": ("report", "write one page about a run: curves, scores, swaps, rankings, what E_a looks at"),
    "export": ("export", "write the appearance encoder as ONNX, for trackers and other programs"),
    "swap": ("swap", "people in each other's clothes, as a table of pictures"),
    "interpolate": ("interpolate", "pictures between two people's clothes, or between their bodies"),
    "generate": ("generate", "write a whole data set of generated people as a Market-1501 folder"),
    "ablation": ("ablation", "a queue of runs that differ in one thing, and their table"),
    "save": ("save", "a trained model as a folder to be shared, with a model card"),
    "synth": ("synth", "write synthetic pedestrians as a Market-1501 folder"),
    "import-reference": ("import_reference", "turn checkpoints of the public reference system into dgfast's"),
    "profile": ("profile", "measure training: images/s, time by phase, FLOPs, memory, batch sizes"),
    "doctor": ("doctor", "say what this machine offers and what is missing"),
}


def main() -> None:
    """Entry point of the console script `dgfast`; leaves the process with the command's status."""
    run(lambda: dispatch(sys.argv[1:]))


def dispatch(argv: list[str]) -> None:
    """Run one command; without one, or with --help, list them.

    Args:
        argv: the command line behind `dgfast`: a command's name and its flags.
    Raises:
        UserError: there is no such command, or what the command raises.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: dgfast COMMAND [flags]      (dgfast COMMAND --help explains the flags)\n")
        for name, (_, purpose) in COMMANDS.items():
            print(f"  {name:<18}{purpose}")
        return
    if argv[0] == "--version":
        print(f"dgfast {importlib.metadata.version('dgfast')}")
        return
    if argv[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise UserError(f"command {argv[0]!r} is unknown;{meant(argv[0], COMMANDS)} expected one of {known}")
    module, _ = COMMANDS[argv[0]]
    importlib.import_module(f"dgfast.commands.{module}").main(argv[1:])
