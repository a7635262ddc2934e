"""tools/perfect_masks.py: masks are those of the pictures, rows are means, and the table holds what it says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgfast.commands.quality import truth_parameters
from dgfast.errors import UserError
from dgfast.models import DGNet
from dgfast.models.dgnet import save_model
from dgfast.pedestrians import generate
from dgfast.run_directory import write_config
from tests import tiny
from tools import perfect_masks


def test_masks_are_those_of_the_clothes_pictures(tmp_path):
    parameters = truth_parameters((64, 32), 3, seed=5, identities=6)
    generate(
        tmp_path / "people", identities=6, test_identities=3, seed=5, difficulty=parameters.difficulty,
        size=parameters.size, swap_truth=3, workers=1, progress=False,
    )  # fmt: skip
    world = perfect_masks.make_world(5, parameters.difficulty)
    for index, found in enumerate(perfect_masks.own_masks(parameters)):
        path = Path(perfect_masks.swap_of(world, parameters, index).appearance.path)
        written = Image.open(tmp_path / "people" / "masks" / path.parent.name / f"{path.stem}.png")
        assert found.any() and np.array_equal(np.asarray(written) > 127, found)


def test_table_of_the_bundled_model(capsys):
    perfect_masks.main(["--swaps", "6", "--seeds", "77", "90"])
    lines = capsys.readouterr().out.splitlines()
    error = {line[:56].strip(): [float(value) for value in line[56:].split()] for line in lines[1:]}
    assert len(error) == 6 and all(corrected <= as_it_is + 0.002 for as_it_is, corrected in error.values())
    best = error.pop("rows of the truth")
    assert all(best < other for other in error.values())
    clothes, middle = (error[f"rows of the clothes' picture, mean of its {part}"] for part in ("clothes", "middle"))
    assert clothes < middle


def test_mean_colours_are_put_right():
    rng = np.random.default_rng(5)
    truths = rng.random((2, 8, 6, 3)) / 2 + 0.25
    masks = rng.random((2, 8, 6)) < 0.5
    shifted = truths + np.array([0.1, -0.2, 0.05])
    as_it_is, corrected = perfect_masks._errors(shifted, truths, masks)
    assert as_it_is == pytest.approx(0.35 / 3) and corrected == pytest.approx(0, abs=1e-9)


def test_a_model_without_a_palette_is_refused(tmp_path):
    write_config(tiny.config(tmp_path, tmp_path), tmp_path)
    save_model(DGNet(tiny.MODEL, 3), tiny.MODEL, 3, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="expected a model of --modulation attention"):
        perfect_masks.main(["--run", str(tmp_path)])
