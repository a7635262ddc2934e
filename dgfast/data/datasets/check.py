"""Which files of a data set are sound images: each is decoded once, the answer is kept in a cache outside the data set.

A damaged file that goes unnoticed ends a GPU decoding pipeline for good, hours into a run.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageStat
from tqdm import tqdm

from dgfast.data.loaders.image import UnreadableImage, read_image
from dgfast.errors import UserError
from dgfast.files import write_text, writing_with_others

_log = logging.getLogger("dgfast")

_FORMAT = 3  # of the cache file; a file of another format is ignored, so that all images are checked again
_NAMED = 5  # bad files that the warning names
# Deviation of an image's grey values, of 0 .. 255, below which it counts as of one colour. One pixel that differs by 10
# in an image of 48 x 48 gives 0.2. A small run survived 60 iterations with 0.02; with 0 it did not survive 7.
_FLAT = 0.1


@dataclass(frozen=True)
class CheckedImages:
    """What was found."""

    bad: dict[Path, str]
    """The files that cannot be decoded, with the reason."""
    flat: frozenset[Path]
    """The sound files that show one colour and nothing else, such as black frames of a camera."""
    smallest: tuple[int, int] | None
    """(height, width) of the sound image with the smallest area; None: there is no sound image."""
    largest: tuple[int, int] | None
    """(height, width) of the sound image with the largest area; None: there is no sound image."""


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where dgfast keeps what it can make again.

    Args:
        environment: variables of the process.
    Returns:
        `$XDG_CACHE_HOME/dgfast`, or `~/.cache/dgfast`.
    Raises:
        UserError: the user has no home directory.
    """
    base = environment.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "dgfast"
    except RuntimeError as error:  # a user without a name and without HOME, as in some containers
        raise UserError(
            "there is no home directory for the cache; expected a folder that can be written to: set XDG_CACHE_HOME"
        ) from error


def check_images(paths: Iterable[Path], root: Path, cache_dir: Path, *, progress: bool = True) -> CheckedImages:
    """Decode every image that has not been decoded before, and log one warning line if some cannot be.

    A file counts as decoded before if its path, size and modification time are those in the cache, so a change to one
    file costs one decode. The cache is one JSON file per `root`.

    Args:
        paths: the images; a file that does not exist is a bad one.
        root: the data set's folder.
        cache_dir: where the cache is kept; made if need be. If it cannot be written the check still works, with a
            warning.
        progress: show a bar on stderr while decoding.
    Returns:
        the bad files, those of one colour, and the range of sizes.
    """
    base = os.path.abspath(root)
    names = {path: os.path.relpath(path, base) for path in paths}
    cache_file = cache_dir / f"index-{hashlib.sha256(os.fsencode(base)).hexdigest()[:20]}.json"

    known = _load(cache_file, base)
    stamps = {path: _stamp(path) for path in names}
    # An entry is [stamp, height, width, flat] of a sound image or [stamp, reason] of a bad one.
    todo = [path for path, name in names.items() if known.get(name, [None])[0] != stamps[path]]
    if todo:
        # Pillow decodes outside the interpreter lock, so threads suffice.
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            silent = None if progress else True  # None: where stderr is no terminal
            results = tqdm(pool.map(_check, todo), "checking images", len(todo), disable=silent, leave=False)
            for path, result in zip(todo, results, strict=True):
                known[names[path]] = [stamps[path], *result]
        try:
            with writing_with_others(cache_dir):
                write_text(json.dumps({"format": _FORMAT, "root": base, "files": known}), cache_file)
        except OSError as error:
            kept = f"which images of {base} can be decoded cannot be kept in {cache_file}"
            reason = error.strerror or error
            _log.warning("%s (%s): they will be checked again; or set XDG_CACHE_HOME", kept, reason)

    bad: dict[Path, str] = {}
    flat, sizes = set(), set()
    for path, name in names.items():
        _, *result = known[name]
        if len(result) == 1:
            bad[path] = result[0]
        else:
            sizes.add(tuple(result[:2]))
            if result[2]:
                flat.add(path)
    if bad:
        named = some(f"{names[path]} ({reason})" for path, reason in bad.items())
        _log.warning("%s: %d of %d images cannot be read and are left out: %s", base, len(bad), len(names), named)
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return CheckedImages(bad, frozenset(flat), by_area[0] if by_area else None, by_area[-1] if by_area else None)


def some(words: Iterable[str]) -> str:
    """The first few of many words, for a message.

    Args:
        words: what there is, each without "; ".
    """
    words = list(words)
    return "; ".join(words[:_NAMED]) + (f"; and {len(words) - _NAMED} more" if len(words) > _NAMED else "")


def _check(path: Path) -> tuple[int, int, bool] | tuple[str]:
    """(height, width, whether it shows one colour alone) of a sound image, or (reason,)."""
    try:
        image = read_image(path)
    except UnreadableImage as error:
        return (str(error),)
    return image.height, image.width, ImageStat.Stat(image.convert("L")).stddev[0] < _FLAT


def _stamp(path: Path) -> str:
    """What tells whether a file has changed, without reading it: its size in bytes and its modification time."""
    try:
        status = path.stat()
    except OSError as error:
        return f"missing: {type(error).__name__}"
    return f"{status.st_size}:{status.st_mtime_ns}"


def _load(cache_file: Path, root: str) -> dict[str, list]:
    try:
        content = json.loads(cache_file.read_text())
        if content["format"] == _FORMAT and content["root"] == root and isinstance(content["files"], dict):
            return content["files"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is no cache, or something else has damaged it: all images are checked again
    return {}
