"""Pictures as they stand in the page itself: JPEG, in a data URI."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dgfast.data.loaders.image import UnreadableImage, read_image
from dgfast.data.records import Record
from dgfast.errors import UserError

TALLEST = 160  # of a photograph, pixels: twice what the page shows, for screens with small pixels
WIDEST = 1280  # of a sheet of pictures, pixels
QUALITY = 82  # of JPEG; with 4:4:4 colours, since clothes are what the page is about


@dataclass(frozen=True)
class Picture:
    """A picture in the page."""

    uri: str
    """The JPEG in a data URI."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""


def embed(image: Image.Image) -> Picture:
    """A picture as the page holds it.

    Args:
        image: of any size; a wider one than `WIDEST` is made smaller.
    """
    image = image.convert("RGB")
    if image.width > WIDEST:
        size = WIDEST, max(1, round(image.height * WIDEST / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}", *image.size)


def embed_pixels(pixels: np.ndarray) -> Picture:
    """The same of an array.

    Args:
        pixels: [H, W, 3] uint8, RGB.
    """
    return embed(Image.fromarray(pixels))


def photograph(record: Record, image_size: tuple[int, int]) -> Picture:
    """The photograph of a record in the shape in which the networks see it, at most `TALLEST` pixels high.

    Args:
        record: the image.
        image_size: (height, width) of the networks' images, pixels.
    Raises:
        UserError: its file cannot be read.
    """
    height, width = image_size
    shrink = min(1.0, TALLEST / height)
    try:
        image = read_image(record.path)
    except UnreadableImage as error:
        raise UserError(f"cannot read {record.path} ({error}); expected an image file; replace or remove it") from error
    return embed(image.resize((round(width * shrink), round(height * shrink)), Image.Resampling.BICUBIC))
