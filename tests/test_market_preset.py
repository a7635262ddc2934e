"""The market1501 preset as it is: ResNet-50, 256 x 128, all losses, on a Market-layout folder of a few synthetic
people."""

import json
from pathlib import Path

import pytest

from dgfast.commands import train
from dgfast.pedestrians import generate


@pytest.mark.slow
def test_market1501_preset_runs_for_real(tmp_path):
    root = tmp_path / "Market-1501"
    # As few images as serve: at this size each picture that G makes for the grids costs as much as a tenth of a step.
    generate(
        root, identities=4, seed=3, images_per_camera=0.1, cameras_per_identity=(2, 2), workers=1, masks=False,
        distractors=1, progress=False,
    )  # fmt: skip
    # From random weights and one update of BatchNorm's statistics, the paper's rates (meant for ImageNet weights) would
    # make features overflow: the rates of E_a are smaller here.
    train.main(
        (
            f"--preset market1501 --data-root {root} --backbone-weights none --backbone-lr 1e-5 --head-lr 1e-4"
            " --batch-size 2 --iterations 1 --warmup-start 0 --teacher-iterations 1 --teacher-batch-size 4"
            f" --log-every 1 --loader-workers 0 --out {tmp_path} --name run"
        ).split()
    )
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["backbone"] == "resnet50"
    assert (config["data"]["image_height"], config["data"]["image_width"]) == (256, 128)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["stage"] == "dgnet" and last["iteration"] == 0 and last["g/primary"] > 0
    assert set(json.loads((run / "report.json").read_text())["scores"]) >= {"baseline", "prim", "fine", "both"}
    assert all((run / Path(name)).exists() for name in ("swaps.png", "samples/00000001.png", "model.safetensors"))
