"""Reading one image file, with one kind of failure whatever the decoder raises, and one meaning of every file format.

Everywhere: as the camera was held (EXIF orientation), RGB, 8 bits. 16-bit grey keeps its high byte (Pillow's own
conversion would clip nearly all of it to white), transparency is dropped.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


class UnreadableImage(Exception):
    """The file is no image that can be decoded to its end; the message is the reason, without the path."""


def read_bytes(path: Path) -> bytes:
    """The whole file.

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


def decode_image(encoded: bytes | memoryview) -> Image.Image:
    """The whole image, decoded, upright, as RGB.

    Raises:
        UnreadableImage: truncated or no image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's decoders raise many types: OSError, SyntaxError, ValueError, ...
        reason = "cannot identify the format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UnreadableImage(reason or type(error).__name__) from error


def read_image(path: Path) -> Image.Image:
    """The whole image of a file, decoded, upright, as RGB.

    Raises:
        UnreadableImage: the file is missing, empty, truncated or no image.
    """
    return decode_image(read_bytes(path))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    return image.convert("RGB")
