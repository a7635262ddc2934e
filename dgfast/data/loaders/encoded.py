"""The encoded images of a training set as bytes that every decoder turns into the same picture, damaged files replaced.

DALI and Pillow decode ordinary JPEG and PNG files to the same pixels (both use libjpeg-turbo). But a damaged file ends
a DALI pipeline for good, and unusual files (CMYK, 16 bits, EXIF orientation, ...) mean different pictures to the two.

So no decoder sees a file before its structure has been checked. What is unusual or huge is decoded and resized here, by
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

from dgfast.data.loaders.image import Encoded, UnreadableImage, decode_image, read_bytes
from dgfast.errors import UserError
from dgfast.free_memory import free_memory

_log = logging.getLogger("dgfast")

_LARGEST = 2**22  # pixels; larger images are resized here, because DALI would keep buffers of their size
_ORIENTATION = 0x0112  # EXIF tag; 1: upright
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"tIME"}  # none of which changes a pixel
_AT_ONCE = 256  # files read between two looks at the memory that they take


class EncodedImages:
    """The images of a training set, by index. What cannot be read is replaced by another image of the same identity.

    Args:
        paths: the files.
        image_size: (height, width) in pixels that unusual and huge images are resized to.
        alternatives: index -> the images that may take its place, itself first.
    """

    unreadable: dict[Path, str]
    """The files that could not be read so far, with the reason."""
    by_pillow: set[int]
    """Images whose bytes DALI could not decode: Pillow decodes them at every read."""

    def __init__(
        self, paths: Sequence[Path], image_size: tuple[int, int], alternatives: Callable[[int], Sequence[int]]
    ):
        self.unreadable = {}
        self.by_pillow = set()
        self._paths = paths
        self._image_size = image_size
        self._alternatives = alternatives
        self._memory: tuple[np.ndarray, list[int]] | None = None

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> tuple[int, np.ndarray]:
        """An image's file, or that of the first of its alternatives that can be read.

        Args:
            index: of the image.
        Returns:
            the index of the image that was read, and its bytes: [n] uint8.
        Raises:
            UserError: no alternative can be read.
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
            f"({self.unreadable[self._paths[index]]}); check the disk and start again: bad files are then left out"
        )

    def give_up(self, index: int, reason: str) -> None:
        """From now on, let another image take the place of one whose bytes could not be decoded.

        Args:
            index: of the image.
            reason: why not.
        """
        self.unreadable[self._paths[index]] = reason

    def keep_in_memory(self, limit: int, threads: int) -> None:
        """Read every image once and keep its bytes; if they are too many, all images stay on disk.

        The bytes lie in one block, because processes that are forked later share its pages. Of one object per image
        each process would get a copy, because Python writes its count of references into the object.

        Args:
            limit: greatest number of bytes.
            threads: that read.
        """
        block, ends = bytearray(), [0]
        with ThreadPoolExecutor(threads) as pool, tqdm(desc="reading images", total=len(self), leave=False) as bar:
            for first in range(0, len(self), _AT_ONCE):
                some = range(first, min(first + _AT_ONCE, len(self)))
                for encoded in pool.map(self._bytes_or_none, some):
                    block += encoded
                    ends.append(len(block))
                bar.update(len(some))
                if len(block) > limit:
                    _log.info("the images take more than %.1f GB: they are read from disk again and again", limit / 1e9)
                    return
        self._memory = np.frombuffer(block, np.uint8), ends

    def _bytes(self, index: int) -> Encoded:
        encoded: Encoded
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


def log_unreadable(found: Mapping[Path, str], known: dict[Path, str]) -> None:
    """Name new unreadable files of a training set in the log.

    Args:
        found: the files, with the reason.
        known: those that have been named before; the new ones are added.
    """
    for path, reason in list(found.items()):  # a copy, because the thread that reads ahead may be adding to `found`
        if path not in known:
            known[path] = reason
            _log.warning(
                "%s can no longer be read (%s); another of its identity takes its place (such files so far: %d)",
                *(path, reason, len(known)),
            )


def unreadable_error(path: Path, reason: str) -> UserError:
    """The error of a file that has no vector: an evaluation would have other scores without it.

    Args:
        path: the file.
        reason: why it cannot be read.
    """
    return UserError(
        f"{path} cannot be read ({reason}); expected an image: leave it out, or check the disk. In a data set it could"
        " be read before; start again, and bad files are left out"
    )


def memory_limit(processes: int) -> int:
    """How many bytes a process may keep of a data set, so that all together keep at most half of what is available.

    Args:
        processes: how many there are.
    """
    return free_memory() // 2 // processes


def portable(encoded: bytes, image_size: tuple[int, int]) -> bytes:
    """A file that every decoder turns into the same picture.

    Args:
        encoded: any image file.
        image_size: (height, width) in pixels that all but ordinary images are resized to.
    Returns:
        `encoded` itself where it is an ordinary, whole JPEG or PNG file, else `pixels_of` it.
    Raises:
        UnreadableImage: it is no ordinary file, and Pillow cannot decode it.
    """
    return encoded if _is_ordinary(encoded) else pixels_of(encoded, image_size)


def pixels_of(encoded: Encoded, image_size: tuple[int, int]) -> bytes:
    """The picture of an image file, decoded and resized by Pillow, as a PPM file.

    Args:
        encoded: any image file.
        image_size: (height, width) in pixels.
    Returns:
        the PPM file.
    Raises:
        UnreadableImage: it cannot be decoded.
    """
    height, width = image_size
    image = resized(encoded, image_size)
    return b"P6\n%d %d\n255\n" % (width, height) + image.tobytes()


def resized(encoded: Encoded, image_size: tuple[int, int]) -> Image.Image:
    """The picture of an image file, decoded and resized (bicubic, antialiased) by Pillow.

    Args:
        encoded: any image file.
        image_size: (height, width) in pixels.
    Returns:
        the picture, RGB.
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
            if bits != 8 or components not in (1, 3) or not 0 < height * width <= _LARGEST:
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
    except Exception:  # of many types; taken for unusual, the file is decoded by Pillow, which says if it is damaged
        return False


def _is_ordinary_png(encoded: bytes) -> bool:
    """8-bit grey or RGB, not interlaced, without transparency or colour profile, every checksum right.

    W3C, "Portable Network Graphics", section 5.
    """
    at, kinds = len(_PNG), []
    while at < len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        end = at + 8 + length
        if struct.unpack_from(">I", encoded, end)[0] != zlib.crc32(memoryview(encoded)[at + 4 : end]):
            return False
        if kind == b"IHDR":
            width, height, bits, colours = struct.unpack_from(">IIBB", encoded, at + 8)
            interlaced = encoded[at + 20]
            if bits != 8 or colours not in (0, 2) or interlaced or not 0 < height * width <= _LARGEST:
                return False
        kinds.append(kind)
        at = end + 4
    return kinds[:1] == [b"IHDR"] and kinds[-1:] == [b"IEND"] and set(kinds) <= _PNG_CHUNKS
