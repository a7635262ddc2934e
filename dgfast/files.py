"""Files that appear whole or not at all: every file that dgfast writes is written through `replacing`."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from dgfast.errors import CannotWrite, UserError

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # ending -> format
ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}
QUALITY = 95  # of JPEG and WebP


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what was written takes the place of `path` when the context ends without error.

    A reader sees the old content or the new, whatever happens in between: a crash, a full disk, a power cut. After an
    error the partial file is removed and `path` is as it was.

    Args:
        path: file to write; its folder is made if need be. Or a folder to make, if the context makes the name that it
            gets a folder; then `path` must not exist yet, or be an empty folder.
    Yields:
        the name to write to, in the same folder, hidden and ending in ".tmp"; nothing is there yet.
    Raises:
        CannotWrite: the file or the folder cannot be written: a full disk, no permission, something in the way.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            for inside in sorted(partial.rglob("*")):
                _flush(inside)
            _flush(partial)  # the rename must not reach the disk before the content
            os.replace(partial, path)
            _flush(path.parent)
    finally:
        _remove(partial)


def remove_unfinished(folder: Path) -> None:
    """Remove what `replacing` had begun in a folder when its process was killed.

    Args:
        folder: nobody else may be writing there.
    """
    for left in folder.glob(".*.tmp"):
        _remove(left)


@contextmanager
def writing_with_others(folder: Path) -> Iterator[None]:
    """Surround what is written to a folder that several processes write to; what killed ones left there is removed.

    All that write share a lock, and whoever gets it for itself alone knows that nobody is writing. The system ends the
    lock with the process, however that ends.

    Args:
        folder: it is made if need be. Where it cannot be, or has no locks, nothing is removed.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_unfinished(folder)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the context, what the system has against a file becomes one line that names the file.

    Args:
        path: what is written.
    Raises:
        CannotWrite: in place of an OSError.
    """
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(path, error) from error
    except RuntimeError as error:  # torch.save's own error, raised while it closes a file that could not be written
        if not isinstance(error.__context__, OSError):
            raise
        raise CannotWrite(path, error.__context__) from error


def require_writable(folder: Path, instead: str) -> None:
    """Find out before a long computation whether its results can be written.

    Args:
        folder: it need not exist yet; then the folder that it will lie in is tried. Nothing is made.
        instead: what the user can do, the end of the message.
    Raises:
        UserError: the folder cannot be written to.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}); expected a folder with room for the results: {instead}"
        ) from error


def write_text(text: str, path: Path) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Args:
        text: its content.
        path: file to write.
    Raises:
        CannotWrite: the system does not let it.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(values: object, path: Path) -> None:
    """Write a JSON file, indented, whole or not at all.

    Args:
        values: what `json.dumps` takes.
        path: file to write.
    Raises:
        CannotWrite: the system does not let it.
        TypeError: `values` holds something that JSON has no form for.
    """
    write_text(json.dumps(values, indent=2) + "\n", path)


def write_png(pixels: np.ndarray, path: Path) -> None:
    """Write a picture as PNG, whole or not at all.

    Args:
        pixels: [H, W, 3] uint8, RGB.
        path: file to write.
    Raises:
        CannotWrite: the system does not let it.
    """
    with replacing(path) as partial:
        Image.fromarray(pixels).save(partial, "PNG")


def require_ending(path: Path, name: str, endings: Mapping[str, str]) -> None:
    """Refuse a file whose ending names no format, before anything is computed for it.

    Args:
        path: file to write.
        name: of the flag that named it.
        endings: allowed endings, such as `PICTURES`.
    Raises:
        UserError: it has another ending.
    """
    if path.suffix.lower() not in endings:
        found = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise UserError(f"{name} {path} {found}; expected a file that ends in {', '.join(endings)}")


def write_picture(pixels: np.ndarray, path: Path) -> None:
    """Write a picture in the format that the file's ending names, whole or not at all.

    Args:
        pixels: [H, W, 3] uint8, RGB.
        path: file to write; its ending is one of `PICTURES`.
    Raises:
        CannotWrite: the system does not let it.
    """
    with replacing(path) as partial:
        Image.fromarray(pixels).save(partial, PICTURES[path.suffix.lower()], quality=QUALITY)


def write_animation(frames: np.ndarray, milliseconds: int, path: Path) -> None:
    """Write an animation that begins anew when it ends, in the format that the file's ending names, whole or not at
    all.

    Args:
        frames: [N, H, W, 3] uint8, RGB, N at least 2.
        milliseconds: that each frame is shown; GIF knows hundredths of a second.
        path: file to write; its ending is one of `ANIMATIONS`.
    Raises:
        CannotWrite: the system does not let it.
    """
    first, *others = (Image.fromarray(frame) for frame in frames)
    options = {"save_all": True, "append_images": others, "duration": milliseconds, "loop": 0, "quality": QUALITY}
    with replacing(path) as partial:
        first.save(partial, ANIMATIONS[path.suffix.lower()], **options)


def _flush(path: Path) -> None:
    """Wait until what was written to a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
