"""Reading one image file, with one kind of failure whatever the decoder raises, and one meaning of every file format.

Every image comes upright (as its EXIF orientation says), as RGB of 8 bits. Of 16-bit grey the high byte is kept,
because Pillow's own conversion clips nearly all of it to white. Transparency is dropped.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

Encoded = bytes | np.ndarray
"""The content of a file: bytes or [n] uint8."""


class UnreadableImage(Exception):
    """The file is no image that can be decoded to its end; the message is the reason, without the path."""


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Args:
        path: the file.
    Returns:
        at least one byte.
    Raises:
        UnreadableImage: it is missing, empty or cannot be read.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(str(error).replace(str(path), path.name)) from error
    if not encoded:
        raise UnreadableImage("the file is empty")
    return encoded


def decode_image(encoded: Encoded) -> Image.Image:
    """An image, decoded to its end.

    Args:
        encoded: the content of its file.
    Returns:
        the image, upright, as RGB.
    Raises:
        UnreadableImage: it is truncated or no image.
    """
    try:
        with Image.open(io.BytesIO(bytes(encoded))) as image:
            return _rgb(ImageOps.exif_transpose(image))
    except MemoryError:  # says nothing about the image, which must not be taken for a bad one
        raise
    except Exception as error:  # Pillow's decoders raise many types: OSError, SyntaxError, ValueError, ...
        reason = "cannot identify the format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UnreadableImage(reason or type(error).__name__) from error


def read_image(path: Path) -> Image.Image:
    """The image in a file, decoded to its end.

    Args:
        path: the file.
    Returns:
        the image, upright, as RGB.
    Raises:
        UnreadableImage: the file is missing, empty, truncated or no image.
    """
    return decode_image(read_bytes(path))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    return image.convert("RGB")
