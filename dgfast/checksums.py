"""A checksum within each file of weights: SHA-256 of the whole file, with zeros in its own place.

A checkpoint, which is a zip archive, has it as the archive's comment; a .safetensors file has it among its metadata.
Both stay what they are for every other program. Being inside, it is written in the same step as the rest, and is
copied and moved with it. Neither `torch.load` nor safetensors would notice a bit that a disk or a memory has flipped.
"""

import hashlib
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

MARK = b"dgfast-sha256:"
DIGITS = 64
PLACE = MARK + b"0" * DIGITS  # what a file holds where `seal` is to write
_COMMENT_LENGTH = 2  # bytes at the end of a zip archive without a comment, which say how long the comment is


class Damaged(Exception):
    """A file whose content is not what was written."""


def add_comment(path: Path) -> None:
    """Give a zip archive a comment with the place of a checksum, to be filled by `seal`.

    Args:
        path: an archive without a comment.
    Raises:
        OSError: it cannot be written.
    """
    with path.open("r+b") as file:
        file.seek(-_COMMENT_LENGTH, 2)
        file.write(len(PLACE).to_bytes(_COMMENT_LENGTH, "little") + PLACE)


def seal(path: Path) -> None:
    """Write the checksum into its place.

    Args:
        path: a .safetensors file or a zip archive that holds `PLACE`.
    Raises:
        OSError: it cannot be written.
    """
    with path.open("r+b") as file:
        place = _find(file)
        if place is None:
            raise ValueError(f"{path} has no place for a checksum")
        digest = _digest(file, place)
        file.seek(place)
        file.write(digest)


def verify(path: Path) -> bool:
    """Read a file from its first byte to its last and compare it with its checksum.

    Args:
        path: a .safetensors file, or what torch.save wrote.
    Returns:
        whether it has a checksum. Files of earlier versions and of other programs have none.
    Raises:
        Damaged: the file is not what was written.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        place = _find(file)
        if place is None:
            return False
        file.seek(place)
        if file.read(DIGITS) != _digest(file, place):
            raise Damaged("its checksum does not fit its content")
        return True


def verify_archive(path: Path) -> None:
    """Compare a zip archive that `add_comment` has not been called for with the archive's own checksums.

    They cover less than ours: the entries, but not what lies between them.

    Args:
        path: what an earlier version's torch.save wrote.
    Raises:
        Damaged: the archive is not what was written.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            if bad or archive.comment:  # a comment can only be a checksum that is no longer one
                raise Damaged(f"the entry {bad} does not fit its checksum" if bad else "its checksum is damaged")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise Damaged(f"its archive is damaged: {error}") from error


def _find(file: BinaryIO) -> int | None:
    """Where the digits of the checksum are: at the very end, or in the header of a .safetensors file."""
    size = file.seek(0, 2)
    start = max(0, size - len(PLACE))
    file.seek(start)
    if file.read(len(MARK)) == MARK:
        return start + len(MARK)
    file.seek(0)
    header_size = int.from_bytes(file.read(8), "little")  # the first eight bytes say so
    found = re.search(re.escape(MARK), file.read(min(header_size, size, 2**27)))
    return None if found is None else 8 + found.end()


def _digest(file: BinaryIO, place: int) -> bytes:
    """The checksum as `DIGITS` hexadecimal digits; those in the file count as zeros."""
    digest = hashlib.sha256()
    file.seek(0)
    digest.update(file.read(place))
    digest.update(b"0" * DIGITS)
    file.seek(place + DIGITS)
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest().encode()
