"""`dgfast import-reference`: released checkpoints of the public reference system become dgfast's."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dgfast import run_directory
from dgfast.commands.command_line import read
from dgfast.config import PRESETS
from dgfast.errors import UserError
from dgfast.files import write_text
from dgfast.models import DGNet
from dgfast.models.backbones import read_tensors
from dgfast.models.dgnet import make_teacher, save_model
from dgfast.models.reference_weights import convert, sizes

HELP = """Turn checkpoints of the public reference system into a folder for dgfast eval, dgfast.load and --teacher.

dgfast import-reference --gen gen_00100000.pt --id id_00100000.pt --dis dis_00100000.pt --out imported

dgfast import-reference --teacher net_last.pth --out imported-teacher
"""

TERMS = """These weights were converted from checkpoints of the public DG-Net reference. They are not dgfast's: the
licence under which they were released, which allows no commercial use, goes with them.
"""


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    out: Path
    """Folder to write: config.json, model.safetensors (from gen, id and dis), teacher.safetensors, licence.txt."""
    gen: Path | None = None
    """Checkpoint of the structure encoder and the decoder."""
    id: Path | None = None
    """Checkpoint of the appearance encoder."""
    dis: Path | None = None
    """Checkpoint of the discriminator; left out, it starts afresh."""
    teacher: Path | None = None
    """Checkpoint of the teacher."""


def main(argv: list[str] | None = None) -> None:
    """Convert what the command line names.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: a file that cannot be read or is another network's.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast import-reference", description=HELP)
    files = {"gen": command.gen, "id": command.id, "dis": command.dis, "teacher": command.teacher}
    states = {network: _state(network, path) for network, path in files.items() if path is not None}
    if ("gen" in states) != ("id" in states):
        raise UserError("--gen and --id are needed together: the model is both; or pass --teacher alone")
    config, num_classes = sizes(states)
    ours = convert(states)
    made = {}
    if "dgnet" in ours:
        made[run_directory.MODEL] = _fill(
            DGNet(config, num_classes), ours["dgnet"], optional="discriminator." * ("dis" not in states)
        )
    if "teacher" in ours:
        made[run_directory.TEACHER] = _fill(make_teacher(config, num_classes), ours["teacher"], optional="")
    run_directory.make(replace(PRESETS["market1501"], model=config), command.out)
    write_text(TERMS, command.out / run_directory.LICENCE)
    for name, model in made.items():
        save_model(model, config, num_classes, command.out / name)
        print(f"{command.out / name}: {num_classes} identities")


def _state(network: str, path: Path) -> dict[str, Tensor]:
    state = unwrap(read_tensors(path))
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        raise UserError(
            f"--{network} {path} holds {f'{others[0]!r}, which is no tensor' if others else 'nothing'}; expected a"
            " checkpoint of the reference: check the path"
        )
    return state


def unwrap(state: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict within a checkpoint.

    Args:
        state: the state dict itself, or a dictionary whose one value it is; names may begin with "module.", as
            DataParallel writes them.
    Returns:
        name -> tensor, without that beginning.
    """
    while len(state) == 1 and isinstance(next(iter(state.values())), dict):
        state = next(iter(state.values()))
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _fill(model: Any, state: dict[str, Tensor], optional: str) -> Any:
    try:
        missing, _ = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(
            f"the checkpoints do not fit the paper's sizes: {str(error).splitlines()[-1].strip()}"
        ) from error
    missing = [
        m for m in missing if not m.endswith("num_batches_tracked") and not (optional and m.startswith(optional))
    ]
    if missing:
        raise UserError(
            f"{len(missing)} entries are missing from the checkpoints, first {missing[0]}; expected whole networks"
        )
    return model
