"""Which files of a data set are sound images: each is decoded once, the answer is kept in a cache outside the data set.

A damaged file that goes unnoticed ends a GPU decoding pipeline for good, hours into a run.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dgfast.data.loaders.image import UnreadableImage, read_image

_log = logging.getLogger("dgfast")

_FORMAT = 2  # of the cache file; another number means: check again
_NAMED = 5  # bad files that the warning names


@dataclass(frozen=True)
class Index:
    """What was found. `bad` maps each unreadable file to the reason; `checked` files had to be opened this time.

    `smallest` and `largest` are the least and greatest (height, width) among the sound images, by area; None without
    any.
    """

    count: int
    checked: int
    bad: dict[Path, str]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/dgfast`, or `~/.cache/dgfast`."""
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dgfast"


def check_images(
    paths: Iterable[Path],
    cache_dir: Path,
    *,
    root: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Index:
    """Decodes every image that has not been decoded before, and logs one warning line if some cannot be.

    A file counts as decoded before when its path, size and modification time are those of the cache, so a change to one
    file costs one decode. The cache is one JSON file per `root` in `cache_dir`, replaced in one step.

    Args:
        paths: the images; a file that does not exist is a bad one.
        cache_dir: created if need be; when it cannot be written the check still works, with a warning.
        root: the data set's folder; None: the folder that all images have in common.
        workers: decoding threads (Pillow decodes outside the interpreter lock); None: one per core.
        progress: show a bar on stderr while decoding.
    """
    absolute = {path: os.path.abspath(path) for path in paths}
    if not absolute:
        return Index(0, 0, {}, None, None)
    base = os.path.abspath(root or os.path.commonpath([os.path.dirname(path) for path in absolute.values()]))
    names = {path: os.path.relpath(where, base) for path, where in absolute.items()}
    cache_file = cache_dir / f"index-{hashlib.sha256(os.fsencode(base)).hexdigest()[:20]}.json"

    known = _load(cache_file, base)
    stamps = {path: _stamp(path) for path in names}
    # An entry is [fingerprint, height, width] of a sound image or [fingerprint, reason] of a bad one.
    todo = [path for path, name in names.items() if known.get(name, [None])[0] != stamps[path]]
    if todo:
        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            results = tqdm(pool.map(_check, todo), "checking images", len(todo), disable=not progress, leave=False)
            for path, result in zip(todo, results, strict=True):
                known[names[path]] = [stamps[path], *result]
        _save(cache_file, base, known)

    bad: dict[Path, str] = {}
    sizes = set()
    for path, name in names.items():
        _, *result = known[name]
        if len(result) == 1:
            bad[path] = result[0]
        else:
            sizes.add(tuple(result))
    if bad:
        named = "; ".join(f"{names[path]} ({reason})" for path, reason in list(bad.items())[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        counts = f"{len(bad)} of {len(names)} images cannot be read and are left out"
        _log.warning("%s: %s: %s%s", base, counts, named, more)
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return Index(len(names), len(todo), bad, by_area[0] if by_area else None, by_area[-1] if by_area else None)


def _check(path: Path) -> tuple[int, int] | tuple[str]:
    """(height, width) of a sound image, or (reason,)."""
    try:
        image = read_image(path)
    except UnreadableImage as error:
        return (str(error),)
    return image.height, image.width


def _stamp(path: Path) -> str:
    """Fingerprint of a file's state without reading it: size in bytes and modification time."""
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
        pass  # no cache, or one that something else has damaged: check again
    return {}


def _save(cache_file: Path, root: str, files: dict[str, list]) -> None:
    temporary = None
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache_file.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            json.dump({"format": _FORMAT, "root": root, "files": files}, file)
        os.replace(temporary, cache_file)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        _log.warning("the index of %s cannot be kept in %s (%s): images will be checked again", root, cache_file, error)
