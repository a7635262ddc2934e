"""Run directories of earlier versions open and resume.

tests/goldens/run_of_version_0.1.tar.xz was made by version 0.1, before its modules moved: `tiny.config` with five
iterations, stopped after the third. The JSON file beside it holds the norms of the weights with which version 0.1
itself then ended the run.
"""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dgfast import run_directory
from dgfast.commands import train
from tests import tiny

GOLDENS = Path(__file__).parent / "goldens"
EXPECTED = json.loads((GOLDENS / "run_of_version_0.1.json").read_text())


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The old run, moved to a place of its own and brought to its end by its own settings."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(GOLDENS / "run_of_version_0.1.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    tiny.market(folder / "market")
    run = folder / "run"
    assert run_directory.read_config(run).run.stop_after == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the run names its data by a relative path
        train.main(["--resume", "run", "--stop-after", "None"])
    return run


def test_an_old_run_goes_on_where_it_was_stopped(resumed):
    lines = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert [(e["stage"], e["iteration"]) for e in lines] == [("teacher", i) for i in range(4)] + [
        ("dgnet", i) for i in range(5)
    ]
    assert (resumed / "table.txt").exists() and run_directory.read_config(resumed).run.stop_after is None


def test_an_old_run_ends_with_the_weights_that_the_old_version_gave_it(resumed):
    """Within rounding, which other versions need not share: operations have since been put in another order.

    The eager norms sum over pixels in the memory's own order (kernels/_eager.py), and D's weight gradients under the
    penalty are added up otherwise (models/penalised_convolution.py). A bias in front of a norm moves by rounding errors
    alone, which Adam magnifies, hence the absolute tolerance. Within one version a resumed run gives the same bits
    (tests/test_training.py).
    """
    weights = load_file(resumed / "model.safetensors")
    assert weights.keys() == EXPECTED["tensors"].keys()
    same = (processor(), torch.__version__) == (EXPECTED["processor"], EXPECTED["torch"])
    tolerance = {"rel": 1e-5, "abs": 5e-4} if same else {"rel": 1e-3, "abs": 1e-3}
    for name, expected in EXPECTED["tensors"].items():
        assert float(weights[name].double().norm()) == pytest.approx(expected["norm"], **tolerance), name
