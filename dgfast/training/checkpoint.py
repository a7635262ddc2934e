"""Checkpoints: everything a stage needs to go on as if it had never stopped, written whole or not at all."""

import logging
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from dgfast import checksums
from dgfast.errors import UserError, out_of_memory
from dgfast.files import replacing

log = logging.getLogger("dgfast")
KEPT = 2  # checkpoints of a stage: the last one, and the one before it in case the last is damaged


class Writer:
    """Saves checkpoints of a stage while the training goes on, one at a time.

    Args:
        folder: made if need be.
        stage: name of the stage.
        read: the checkpoint that the stage goes on from; None where it begins.
    """

    def __init__(self, folder: Path, stage: str, read: Path | None) -> None:
        self.folder, self.stage = folder, stage
        self.known = [] if read is None else [read]  # oldest first; what was read or written here
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[None] | None = None

    def save(self, iteration: int, state: dict[str, Any]) -> None:
        """Save as the function `save` does, of the state as it is now: it is copied before this returns. Then remove
        older checkpoints of the stage.

        Waits for the checkpoint before.

        Args:
            iteration: number of iterations that are done.
            state: tensors, numbers, strings, lists, dicts.
        Raises:
            Exception: what writing the checkpoint before raised.
        """
        self.wait()
        self.writing = self.thread.submit(self._save, iteration, _copied(state))

    def _save(self, iteration: int, state: dict[str, Any]) -> None:
        path = save(self.folder, self.stage, iteration, state)
        self.known = [*(known for known in self.known if known != path), path]
        self.known = prune(self.folder, self.stage, self.known)

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
    """Write `<stage>-<iteration>.pt` into the folder, with a checksum of the whole file in it.

    Args:
        folder: made if need be.
        stage: name of the stage.
        iteration: number of iterations that are done.
        state: tensors, numbers, strings, lists, dicts.
    Returns:
        the file.
    Raises:
        CannotWrite: the system does not let it.
    """
    path = folder / f"{stage}-{iteration:08d}.pt"
    with replacing(path) as partial:
        # torch is given an open file: given a name, it would write the name into the file, and equal runs would differ.
        with partial.open("wb") as file:
            torch.save({**state, "iteration": iteration}, file)
        checksums.add_comment(partial)
        checksums.seal(partial)
    return path


def prune(folder: Path, stage: str, known: list[Path]) -> list[Path]:
    """Remove all checkpoints of a stage but the last two that were read or written and are still sound.

    The others may have higher numbers: damaged ones that were passed over. As long as fewer than two are known to be
    sound, nothing is removed.

    Args:
        folder: of the checkpoints.
        stage: name of the stage.
        known: files that this process has read or written, oldest first.
    Returns:
        the files of `known` that are kept, oldest first.
    """
    sound = [path for path in reversed(known) if _is_sound(path)][:KEPT]
    if len(sound) == KEPT:
        for old in checkpoints(folder, stage):
            if old not in sound:
                old.unlink()
    return sound[::-1]


def _is_sound(path: Path) -> bool:
    try:
        verify(path)
    except (checksums.Damaged, OSError) as error:
        log.warning("checkpoint %s is damaged (%s)", path, error)
        return False
    return True


def verify(path: Path) -> None:
    """Read a checkpoint and compare it with its checksum; earlier versions' with those that torch wrote.

    Args:
        path: the file.
    Raises:
        checksums.Damaged: it is not what was written.
        OSError: it cannot be read.
    """
    if not checksums.verify(path):
        checksums.verify_archive(path)


def checkpoints(folder: Path, stage: str) -> list[Path]:
    """List the checkpoints of a stage.

    Args:
        folder: may be absent.
        stage: name of the stage.
    Returns:
        files, oldest first.
    """
    return sorted(p for p in folder.glob(f"{stage}-*.pt") if re.fullmatch(rf"{stage}-\d+\.pt", p.name))


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint; no code in the file is run.

    Args:
        path: the file.
    Returns:
        the state that was saved, and "iteration".
    Raises:
        checksums.Damaged: the file is not what was written, or is no checkpoint.
        Exception: torch cannot read it.
    """
    verify(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not isinstance(state.get("iteration"), int):
        raise checksums.Damaged("it holds no checkpoint")
    return state


def latest(folder: Path, stage: str) -> tuple[Path, dict[str, Any]] | None:
    """Read the newest checkpoint of a stage that is sound; a damaged one is named and passed over.

    Args:
        folder: may be absent.
        stage: name of the stage.
    Returns:
        the file, and its state as `read` gives it; None where there is no checkpoint.
    Raises:
        UserError: there are checkpoints and none can be read: beginning anew would overwrite what may still be mended.
    """
    found = checkpoints(folder, stage)
    for path in reversed(found):
        try:
            return path, read(path)
        except Exception as error:
            if out_of_memory(error):  # the file is sound, and what is before it would be no smaller
                raise
            reason = str(error) if isinstance(error, (checksums.Damaged, OSError)) else type(error).__name__
            log.warning("checkpoint %s cannot be read (%s): trying the one before it", path, reason)
    if found:
        raise UserError(
            f"{folder} holds {len(found)} checkpoints of stage {stage}, none of which can be read; expected a sound"
            " one: put one back, or begin a new run without --resume"
        )
    return None
