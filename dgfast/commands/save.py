"""`dgfast save`: a trained model as a folder that can be shared."""

import sys
from dataclasses import dataclass
from pathlib import Path

import dgfast
from dgfast.commands.command_line import read
from dgfast.files import require_writable
from dgfast.run_directory import CARD, OLD_CARD

HELP = """Write a folder with a trained model, to be copied, uploaded or kept: model.safetensors, config.json and a
model card (README.md) that says what it was trained on, how good it is and how to use it. Open it by
dgfast.load("FOLDER"), or with any command's --model.

dgfast save --model runs/latest --out my-model --licence apache-2.0 --half
"""


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    out: Path
    """Folder to write."""
    model: Path | None = None
    """Run directory, folder of `dgfast import-reference`, or a .safetensors. Default: the small model that comes with
    dgfast."""
    licence: str = ""
    """Of the weights, such as apache-2.0; imported reference weights keep their own."""
    half: bool = False
    """Weights in half precision: half the file, and features that differ in the fourth digit."""


def main(argv: list[str] | None = None) -> None:
    """Save as the command line says.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: no such model, or the folder cannot be written.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast save", description=HELP)
    model = dgfast.load(command.model)
    require_writable(command.out, "pass another --out")
    old_cards = OLD_CARD.format("*")
    before = set(command.out.glob(old_cards))
    folder = model.save_pretrained(command.out, licence=command.licence, half=command.half)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.1f} MB; the model card is {folder / CARD}")
    for card in set(folder.glob(old_cards)) - before:
        print(f"the card that was there before is {card}")
