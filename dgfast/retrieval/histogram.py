"""A ranking without learning, by colour histograms: what a trained network has to beat.

The colours are corrected so that each image has the same grey as its mean, which undoes a camera's tint ("grey world").
The histograms are those of six horizontal stripes, because clothes are worn above one another. On the built-in
pedestrians this is far better than chance and far worse than a small network.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from dgfast.data.loaders.image import UnreadableImage, read_image
from dgfast.data.records import Record
from dgfast.errors import UserError

STRIPES = 6
BINS = 8  # per colour channel
GREY = 110.0  # what each channel's mean becomes, 0..255
# Share of the picture that is cut off before counting, because it shows background.
TOP, BOTTOM, SIDES = 1 / 16, 1 / 32, 3 / 16


def histogram_features(records: Sequence[Record], image_size: tuple[int, int]) -> np.ndarray:
    """Features for `cosine_distances`: square roots of the stripes' colour histograms.

    The square root makes the dot product of two histograms their Bhattacharyya coefficient.

    Args:
        records: N images.
        image_size: height and width that every image is resized to, pixels.
    Returns:
        [N, 6 * 8**3] float32, unit length.
    Raises:
        UserError: an image cannot be read, or `image_size` leaves no pixel to a stripe.
    """
    height, width = image_size
    top, bottom, side = round(height * TOP), height - round(height * BOTTOM), round(width * SIDES)
    if bottom - top < STRIPES or width - 2 * side < 1:
        raise UserError(f"histogram: image size {height} x {width}; expected at least 8 x 2 pixels (height x width)")
    features = np.empty((len(records), STRIPES * BINS**3), np.float32)
    for feature, record in zip(features, tqdm(records, desc="colour histograms", unit="image"), strict=True):
        try:
            pixels = np.asarray(read_image(record.path).resize((width, height), Image.Resampling.BILINEAR))
        except UnreadableImage as error:
            raise UserError(
                f"histogram: cannot read {record.path} ({error}); expected an image file; replace or remove it"
            ) from error
        feature[:] = _histogram(pixels[top:bottom, side : width - side])
    return features


def _histogram(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 -> [6 * 8**3] float, unit length."""
    mean = np.maximum(pixels.mean(axis=(0, 1)), 1e-6)  # a black channel stays black
    levels = np.minimum(pixels * (GREY / mean) * (BINS / 256), BINS - 1).astype(np.int64)
    bins = (levels[..., 0] * BINS + levels[..., 1]) * BINS + levels[..., 2]
    stripes = np.array_split(bins, STRIPES)
    shares = [np.bincount(stripe.ravel(), minlength=BINS**3) / stripe.size for stripe in stripes]
    return np.sqrt(np.concatenate(shares) / STRIPES)
