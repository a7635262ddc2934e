"""Reading one image file, with one kind of failure whatever the decoder raises."""

from pathlib import Path

from PIL import Image


class UnreadableImage(Exception):
    """The file is no image that can be decoded to its end; the message is the reason, without the path."""


def read_image(path: Path) -> Image.Image:
    """The whole image, decoded, as RGB.

    Raises:
        UnreadableImage: the file is missing, empty, truncated or no image.
    """
    try:
        if path.stat().st_size == 0:
            raise OSError("the file is empty")
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise many types: OSError, SyntaxError, ValueError, ...
        raise UnreadableImage(str(error).replace(str(path), path.name) or type(error).__name__) from error
