"""The colour-histogram baseline: invariances it promises, and that it tells clothes apart."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgfast.data.records import Record
from dgfast.errors import UserError
from dgfast.retrieval.histogram import histogram_features


def record(path: Path, pixels: np.ndarray) -> Record:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return Record(path, 1, 1)


def person(upper, lower) -> np.ndarray:
    rng = np.random.default_rng(0)
    pixels = np.full((128, 64, 3), 120.0)
    pixels[24:64, 16:48], pixels[64:120, 16:48] = upper, lower
    return pixels + rng.normal(0, 3, pixels.shape)


def test_shape_type_and_length(tmp_path):
    features = histogram_features([record(tmp_path / "a.png", person((200, 30, 30), (30, 30, 90)))], (128, 64))
    assert features.shape == (1, 3072) and features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)


def test_tint_matters_less_than_clothes(tmp_path):
    red, green = person((180, 40, 40), (40, 40, 90)), person((40, 150, 60), (40, 40, 90))
    tinted = np.clip(red * (1.25, 1.0, 0.8), 0, 255)
    swapped = person((40, 40, 90), (180, 40, 40))
    names = ("red", "tinted", "green", "swapped")
    pictures = zip(names, (red, tinted, green, swapped), strict=True)
    features = histogram_features([record(tmp_path / f"{name}.png", p) for name, p in pictures], (128, 64))
    same, other, upside_down = (features[0] @ features[1:].T).tolist()
    assert same > 0.9
    assert other < 0.8 * same
    assert upside_down < 0.8 * same


def test_resizes_to_the_image_size(tmp_path):
    picture = person((180, 40, 40), (40, 40, 90))
    small, large = record(tmp_path / "s.png", picture), record(tmp_path / "l.png", picture.repeat(2, 0).repeat(2, 1))
    a, b = histogram_features([small, large], (128, 64))
    assert a @ b > 0.9


def test_mistakes_are_named(tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"cannot read .*bad\.jpg"):
        histogram_features([Record(bad, 1, 1)], (128, 64))
    with pytest.raises(UserError, match="image size 4 x 2"):
        histogram_features([], (4, 2))
