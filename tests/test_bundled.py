"""The model that comes with dgfast: it is there, small, and dresses people."""

import json

import numpy as np
import torch

import dgfast
from dgfast.commands import quality
from dgfast.config import PRESETS, to_json
from dgfast.run_directory import BUNDLED, MODEL, read_config, read_verification
from dgfast.synthesis import dress


def test_it_is_small_and_the_showcases():
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) <= 10 * 2**20
    expected = {MODEL, "config.json", "README.md", "table.txt", "verification.json"}
    assert {file.name for file in BUNDLED.iterdir()} == expected
    assert to_json(read_config(BUNDLED).model) == to_json(PRESETS["showcase"].model)
    kept = read_verification(BUNDLED)
    assert kept["kind"] == "both" and kept["thresholds"].keys() == {"0.01", "0.001", "0.0001"} and kept["eer"] < 0.1


def test_it_dresses_people():
    networks = dgfast.load()
    assert all(p.dtype == torch.float32 for p in networks.parameters()) and not networks.training
    rng = np.random.default_rng(0)
    bodies, clothes = rng.integers(0, 256, (2, 2, 128, 64, 3), np.uint8)
    found = dress(networks, bodies, clothes)
    assert found.shape == bodies.shape and found.dtype == np.uint8
    assert not np.array_equal(found, dress(networks, bodies, clothes[::-1].copy()))


def test_its_clothes_are_nearer_to_the_truth_than_their_own_mean_colour(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quality.main(["--swaps", "8"])
    scores = json.loads((tmp_path / "quality.json").read_text())["scores"]
    error = {name: scores[name]["regions"]["clothes"]["l1"] for name in ("ours", "mean", "stripes", "body")}
    assert error["ours"] < error["mean"] < error["stripes"] < error["body"]
    assert (tmp_path / "quality.png").stat().st_size > 0
