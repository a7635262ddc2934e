"""Image files that somebody names: a folder, a list, a pattern or single files; and those of them that can be read."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from dgfast.data.datasets.check import check_images, default_cache_dir
from dgfast.data.datasets.layouts import IMAGE_SUFFIXES
from dgfast.errors import UserError


def find_images(sources: Sequence[str | Path], *, most: int | None = None, progress: bool = True) -> list[Path]:
    """The sound image files of all sources, in their order; in a folder or pattern by name. Each file comes once.

    Bad files are named in one warning and left out.

    Args:
        sources: folders (with all below them, hidden files aside), .txt lists (a path a line, from the list's folder),
            patterns such as "crops/*.jpg", or image files.
        most: files that the caller can do with; None: any number.
        progress: show a bar on stderr while files are checked.
    Returns:
        at least one file.
    Raises:
        UserError: a source does not exist or holds no image, there are more than `most`, or no file can be read.
    """
    if not sources:
        raise UserError("no images are named; expected a folder, a .txt list, a pattern or an image")
    found = list(dict.fromkeys(path for source in sources for path in _images_of(source)))
    if most is not None and len(found) > most:
        named = f"{sources[0]}" + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")
        raise UserError(f"{named}: found {len(found)} images; expected at most {most}: name fewer")
    root = Path(os.path.commonpath([path.parent.absolute() for path in found]))
    checked = check_images(found, root, default_cache_dir(), progress=progress)
    sound = [path for path in found if path not in checked.bad]
    if not sound:
        first, reason = next(iter(checked.bad.items()))
        raise UserError(f"none of {len(found)} files can be read ({first}: {reason}); expected image files")
    return sound


def _images_of(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        inside = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        images = sorted(
            p for p in inside if _is_image(p) and not any(x.startswith(".") for x in p.relative_to(path).parts)
        )
        if not images:
            raise UserError(f"{source} holds no images; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
        return images
    if path.is_file():
        return _listed(path) if path.suffix.lower() == ".txt" else [path]
    if glob.has_magic(str(source)):
        if images := sorted(Path(p) for p in glob.glob(str(source), recursive=True) if _is_image(Path(p))):
            return images
        raise UserError(f"no image fits the pattern {str(source)!r}; expected one such as 'crops/*.jpg', in quotes")
    raise UserError(f"{source} does not exist; expected a folder, a .txt list, a pattern or an image: check the path")


def _listed(path: Path) -> list[Path]:
    """The files of a list, of which the first that does not exist is named."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as a list ({error}); expected a text file with a path a line"
        ) from error
    images = [path.parent / line for line in lines if line]
    if not images:
        raise UserError(f"{path} is empty; expected a path a line")
    if missing := next((image for image in images if not image.is_file()), None):
        raise UserError(f"{path} names {missing}, which does not exist; expected paths as seen from the list's folder")
    return images


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
