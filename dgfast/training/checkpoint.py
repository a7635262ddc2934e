"""Checkpoints: everything a stage needs to go on as if it had never stopped, written whole or not at all."""

import logging
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from dgfast.errors import UserError
from dgfast.files import replacing

log = logging.getLogger("dgfast")
KEPT = 2  # checkpoints of a stage: the last one, and the one before it in case the last is damaged


class Writer:
    """Saves checkpoints while the training goes on, one at a time."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[Path] | None = None

    def save(self, folder: Path, stage: str, iteration: int, state: dict[str, Any]) -> None:
        """Save as the function `save` does, of the state as it is now: it is copied before this returns.

        Waits for the checkpoint before.

        Args:
            folder: made if need be.
            stage: name of the stage.
            iteration: number of iterations that are done.
            state: tensors, numbers, strings, lists, dicts.
        Raises:
            Exception: what writing the checkpoint before raised.
        """
        self.wait()
        self.writing = self.thread.submit(save, folder, stage, iteration, _copied(state))

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            Exception: what writing it raised.
        """
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def close(self) -> None:
        """Wait for a checkpoint that is being written, whatever becomes of it, and end the thread."""
        self.thread.shutdown()


def _copied(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        # `cpu` copies a tensor of a GPU, but returns one of the CPU as it is; that one is copied by `clone`.
        return state.detach().cpu() if state.is_cuda else state.detach().clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_copied(value) for value in state)
    return state


def save(folder: Path, stage: str, iteration: int, state: dict[str, Any]) -> Path:
    """Write `<stage>-<iteration>.pt` into the folder and remove all but the last two of that stage.

    Args:
        folder: made if need be.
        stage: name of the stage.
        iteration: number of iterations that are done.
        state: tensors, numbers, strings, lists, dicts.
    Returns:
        the file.
    """
    path = folder / f"{stage}-{iteration:08d}.pt"
    # torch is given an open file: given a name, it would write the name into the file, and equal runs would differ.
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save({**state, "iteration": iteration}, file)
    for old in checkpoints(folder, stage)[:-KEPT]:
        old.unlink()
    return path


def checkpoints(folder: Path, stage: str) -> list[Path]:
    """List the checkpoints of a stage.

    Args:
        folder: may be absent.
        stage: name of the stage.
    Returns:
        files, oldest first.
    """
    return sorted(p for p in folder.glob(f"{stage}-*.pt") if re.fullmatch(rf"{stage}-\d+\.pt", p.name))


def latest(folder: Path, stage: str) -> dict[str, Any] | None:
    """Read the newest checkpoint of a stage that can be read; a damaged one is named and passed over.

    Args:
        folder: may be absent.
        stage: name of the stage.
    Returns:
        the state that was saved, and "iteration"; None where there is no checkpoint.
    Raises:
        UserError: there are checkpoints and none can be read: beginning anew would overwrite what may still be mended.
    """
    found = checkpoints(folder, stage)
    for path in reversed(found):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            log.warning("checkpoint %s cannot be read (%s): trying the one before it", path, type(error).__name__)
    if found:
        raise UserError(
            f"{folder} holds {len(found)} checkpoints of stage {stage}, none of which can be read; expected a sound"
            " one: put one back, or begin a new run without --resume"
        )
    return None
