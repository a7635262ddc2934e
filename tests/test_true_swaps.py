"""tools/true_swaps.py: the drawings are the swaps that they stand for, and a run learns from them."""

import json

import numpy as np
import pytest

from dgfast.config import DataConfig
from dgfast.data import load_reid
from dgfast.data.batches import denormalise
from dgfast.data.loaders.image import read_image
from dgfast.errors import UserError
from dgfast.pedestrians import generate
from tests import tiny
from tools import true_swaps


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn") / "people"
    generate(
        root, identities=6, test_identities=3, images_per_camera=0.1, cameras_per_identity=(2, 2), distractors=1,
        size=tiny.SIZE, workers=1, progress=False,
    )  # fmt: skip
    return root


def test_a_body_in_its_own_clothes_is_its_picture(drawn):
    data = load_reid(drawn, progress=False)
    height, width = tiny.SIZE
    settings = DataConfig(image_height=height, image_width=width, padding=0, mirror_probability=0)
    drawings = true_swaps.Drawings(data, settings)
    own = denormalise(drawings.of([0, 3], [0, 3])).permute(0, 2, 3, 1).numpy().astype(float)
    for found, place in zip(own, (0, 3), strict=True):
        picture = np.asarray(read_image(data.train[place].path)).astype(float)
        assert abs(found - picture).mean() < 8, "but for JPEG they are the same"  # of 0 .. 255
    others = drawings.of([0, 0], [0, next(i for i, r in enumerate(data.train) if r.person != data.train[0].person)])
    assert (others[0] - others[1]).abs().mean() > 0.02


def test_a_run_learns_from_them(drawn, market, tmp_path):
    weights = []
    for name, start in (("true", true_swaps.main), ("generated", true_swaps.train.main)):
        config = tiny.config(drawn, tmp_path, iterations=3, teacher_iterations=1, warmup_start=0, name=name)
        start(tiny.flags(config))
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
        last = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["stage"] == "dgnet" and last["g/primary"] > 0
    assert weights[0] != weights[1]
    with pytest.raises(UserError, match="holds no synthetic.json"):
        true_swaps.main(tiny.flags(tiny.config(market, tmp_path, name="photographs")))
