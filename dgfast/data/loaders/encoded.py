"""The encoded images of a training set as bytes that every decoder turns into the same picture, damaged files replaced.

DALI and Pillow decode ordinary JPEG and PNG files to the same pixels (both use libjpeg-turbo), but a damaged file ends
a DALI pipeline for good, and they read unusual files (CMYK, 16 bits, EXIF orientation, ...) each in its own way. So no
decoder sees a file before its structure has been checked, and what is unusual or huge is decoded and resized here, by
Pillow, and handed on as plain pixels (PPM).
"""

import logging
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dgfast.data.loaders.image import UnreadableImage, decode_image, read_bytes
from dgfast.errors import UserError

_log = logging.getLogger("dgfast")

LARGEST = 2**22  # pixels of an image that the loaders' decoders are given whole; they would keep its memory
_ORIENTATION = 0x0112  # EXIF tag; 1: upright
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"tIME"}  # none of which changes a pixel
_AT_ONCE = 256  # files


class EncodedImages:
    """The images of a training set, by index. What cannot be read is replaced by another image of the same identity.

    Args:
        paths: the files.
        image_size: (height, width) in pixels that unusual and huge images are resized to.
        alternatives: index -> the images that may stand for it, itself first.

    Attributes:
        unreadable: the files that could not be read so far, with the reason.
        by_pillow: images whose bytes DALI could not decode; Pillow does, at every read.
    """

    def __init__(
        self, paths: Sequence[Path], image_size: tuple[int, int], alternatives: Callable[[int], Sequence[int]]
    ):
        self.unreadable: dict[Path, str] = {}
        self._paths = paths
        self._image_size = image_size
        self._alternatives = alternatives
        self.by_pillow: set[int] = set()
        self._memory: tuple[np.ndarray, list[int]] | None = None

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> tuple[int, np.ndarray]:
        """(which image it is, its bytes `[n]` uint8): image `index`, or the first of its alternatives that can be read.

        Raises:
            UserError: none can.
        """
        for candidate in self._alternatives(index):
            path = self._paths[candidate]
            if path in self.unreadable:
                continue
            try:
                return candidate, np.frombuffer(self._bytes(candidate), np.uint8)
            except UnreadableImage as error:
                self.unreadable[path] = str(error)
        raise UserError(
            f"{self._paths[index]}: neither it nor another image of the same identity can be read any more "
            f"({self.unreadable[self._paths[index]]}); check the disk and start again, the index leaves bad files out"
        )

    def give_up(self, index: int, reason: str) -> None:
        """Pillow could not decode these bytes: from now on another image stands for this one."""
        self.unreadable[self._paths[index]] = reason

    def keep_in_memory(self, limit: int, threads: int) -> None:
        """Reads every image, once, into one block of memory; if that takes more than `limit` bytes, all stay on disk.

        One block, because processes forked later share its pages: of an object per image they would each get copies,
        since counting references writes into the object.
        """
        if self._memory is not None:
            return
        block, ends = bytearray(), [0]
        with ThreadPoolExecutor(threads) as pool, tqdm(desc="reading images", total=len(self), leave=False) as bar:
            for first in range(0, len(self), _AT_ONCE):  # no thread reads far ahead of what has been found to fit
                some = range(first, min(first + _AT_ONCE, len(self)))
                for encoded in pool.map(self._bytes_or_none, some):
                    block += encoded
                    ends.append(len(block))
                bar.update(len(some))
                if len(block) > limit:
                    _log.info("the images take more than %.1f GB: they are read from disk again and again", limit / 1e9)
                    return
        self._memory = np.frombuffer(block, np.uint8), ends

    def _bytes(self, index: int) -> bytes | memoryview | np.ndarray:
        if self._memory is not None:
            block, ends = self._memory
            encoded = block[ends[index] : ends[index + 1]]
        else:
            encoded = portable(read_bytes(self._paths[index]), self._image_size)
        return pixels_of(encoded, self._image_size) if index in self.by_pillow else encoded

    def _bytes_or_none(self, index: int) -> bytes:
        try:
            return portable(read_bytes(self._paths[index]), self._image_size)
        except UnreadableImage as error:
            self.unreadable[self._paths[index]] = str(error)
            return b""


def report(found: Mapping[Path, str], known: dict[Path, str]) -> None:
    """Names in the log the unreadable files that are not `known` yet, and adds them."""
    for path, reason in list(found.items()):  # a list: the thread that reads ahead may be adding to it
        if path not in known:
            known[path] = reason
            _log.warning(
                "%s can no longer be read (%s); another of its identity takes its place (such files so far: %d)",
                *(path, reason, len(known)),
            )


def unreadable_error(path: Path, reason: str) -> UserError:
    """What an evaluation says of a file that turned bad: leaving it out would change the figures."""
    return UserError(
        f"{path} can no longer be read ({reason}); the evaluation needs every image: "
        "check the disk and start again, the index leaves bad files out"
    )


def memory_limit(processes: int, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that one of so many processes may spend on a data set: together half of what is available."""
    try:
        (line,) = (line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024 // 2 // processes
    except (OSError, ValueError):
        return 2**30 // processes  # a system that does not say


def portable(encoded: bytes, image_size: tuple[int, int]) -> bytes:
    """The same bytes where they are an ordinary, whole JPEG or PNG file, else the picture as `pixels_of` gives it.

    Raises:
        UnreadableImage: Pillow cannot decode it either.
    """
    return encoded if _is_ordinary(encoded) else pixels_of(encoded, image_size)


def pixels_of(encoded: bytes | memoryview, image_size: tuple[int, int]) -> bytes:
    """Any image file, decoded and resized (bicubic) to (height, width) by Pillow, as a PPM file.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    height, width = image_size
    image = resized(encoded, image_size)
    return b"P6\n%d %d\n255\n" % (width, height) + image.tobytes()


def resized(encoded: bytes | memoryview, image_size: tuple[int, int]) -> Image.Image:
    """Any image file, decoded and resized (bicubic, antialiased) to (height, width) by Pillow.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    return decode_image(encoded).resize(image_size[::-1], Image.Resampling.BICUBIC)


def _is_ordinary(encoded: bytes) -> bool:
    """Whether the file is whole, as far as its structure tells, and of a kind that all decoders read alike."""
    try:
        if encoded.startswith(b"\xff\xd8"):
            return _is_ordinary_jpeg(encoded)
        return encoded.startswith(_PNG) and _is_ordinary_png(encoded)
    except (struct.error, IndexError):  # it ends within a header
        return False


def _is_ordinary_jpeg(encoded: bytes) -> bool:
    """Baseline, extended or progressive Huffman coding, 8 bits, grey or YCbCr, upright, up to its end-of-image marker.

    ITU T.81, annex B. A file that was cut off, or whose end is zeros as after a power cut, has no such marker.
    """
    if not encoded.endswith(b"\xff\xd9"):
        return False
    frame = False
    at = 2
    while True:
        prefix, marker, length = struct.unpack_from(">BBH", encoded, at)
        if prefix != 0xFF or marker in (0x00, 0xFF) or length < 2:
            return False
        body = encoded[at + 4 : at + 2 + length]
        if marker == 0xDA:  # start of scan
            return frame and at + 2 + length < len(encoded) - 2
        if marker in (0xC0, 0xC1, 0xC2):  # start of frame
            bits, height, width, components = struct.unpack_from(">BHHB", body)
            if bits != 8 or components not in (1, 3) or not 0 < height * width <= LARGEST:
                return False
            if components == 3 and bytes(body[6::3][:3]) == b"RGB":
                return False
            frame = True
        elif 0xC3 <= marker <= 0xCF and marker != 0xC4:  # lossless, hierarchical, arithmetic coding
            return False
        elif marker == 0xEE and body.startswith(b"Adobe") and body[11] != 1:  # colours other than YCbCr
            return False
        elif marker == 0xE1 and body.startswith(b"Exif") and not _is_upright(body):
            return False
        at += 2 + length


def _is_upright(exif: bytes) -> bool:
    tags = Image.Exif()
    try:
        tags.load(exif)
        return tags.get(_ORIENTATION, 1) == 1
    except Exception:  # whatever Pillow raises here it may raise on the file, too: that is for Pillow to find out
        return False


def _is_ordinary_png(encoded: bytes) -> bool:
    """8-bit grey or RGB, not interlaced, without transparency or colour profile, every checksum right (W3C PNG, section
    5)."""
    at, kinds = len(_PNG), []
    while at < len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        end = at + 8 + length
        if struct.unpack_from(">I", encoded, end)[0] != zlib.crc32(memoryview(encoded)[at + 4 : end]):
            return False
        if kind == b"IHDR":
            width, height, bits, colours = struct.unpack_from(">IIBB", encoded, at + 8)
            interlaced = encoded[at + 20]
            if bits != 8 or colours not in (0, 2) or interlaced or not 0 < height * width <= LARGEST:
                return False
        kinds.append(kind)
        at = end + 4
    return kinds[:1] == [b"IHDR"] and kinds[-1:] == [b"IEND"] and set(kinds) <= _PNG_CHUNKS
