"""The cost model of docs/scale.md: its counts are the code's, its tables the page's, and it is near what was seen."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import scale
from dgfast.config import PRESETS, Config
from dgfast.models import DGNet
from dgfast.models.dgnet import make_teacher
from dgfast.training.optimizers import appearance_optimizer, discriminator_optimizer, generator_optimizer

ROOT = Path(__file__).parents[1]


def networks(preset="market1501", classes=751, **changes):
    model = dataclasses.replace(PRESETS[preset].model, **changes)
    with torch.device("meta"):
        return DGNet(model, classes), make_teacher(model, classes)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_the_page_has_the_models_tables():
    """`python -m bench.scale` prints them."""
    page = (ROOT / "docs" / "scale.md").read_text()
    assert [name for name, rows in scale.tables().items() if rows not in page] == []
    assert f"{scale.checkpoint_bytes() / 1e6:.0f} MB" in page


def test_counts_are_those_of_the_networks():
    made, teacher = networks()
    by_name = {"E_s": made.structure, "E_a": made.appearance, "G": made.decoder, "D": made.discriminator}
    assert {name: parameters(module) for name, module in (by_name | {"teacher": teacher}).items()} == scale.PARAMETERS
    images = torch.empty(1, 3, 256, 128, device="meta")
    for network in (made.appearance.eval(), teacher.eval()):
        with FlopCounterMode(display=False) as counter:
            network(images)
        assert counter.get_total_flops() / 1e9 == pytest.approx(scale.GFLOP_A_FEATURE, rel=1e-2)
    small, _ = networks("quickstart", 120, modulation="stripes")
    assert scale.PAIRS[0].gradient == 4 * sum(map(parameters, (small.structure, small.appearance, small.decoder)))


def test_a_checkpoint_is_as_large_as_what_is_saved():
    made, teacher = networks()
    optim = Config().optim
    state = [*made.state_dict().values(), *teacher.state_dict().values()]
    for optimizer in (generator_optimizer(made, optim), discriminator_optimizer(made, optim)):
        state += 2 * [p for group in optimizer.param_groups for p in group["params"]]
    state += [p for group in appearance_optimizer(made, optim).param_groups for p in group["params"]]
    assert scale.checkpoint_bytes() == pytest.approx(sum(x.numel() * x.itemsize for x in state), rel=1e-3)


def test_the_model_is_near_what_was_measured():
    for images, (seconds, gib) in scale.RERANKED.items():
        assert scale.rerank_cpu(images) == pytest.approx(seconds, rel=0.5)
        assert scale.rerank_gib(images) == pytest.approx(gib, rel=0.2)
    for pair in scale.PAIRS:
        assert scale.two_processes(pair) == pytest.approx(pair.both, rel=0.2)


def test_measured_figures_are_those_of_the_benchmarks():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for images, (seconds, gib) in scale.RERANKED.items():
        (row,) = [row for row in page.splitlines() if row.startswith(f"| {images:,} ")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert (float(cells[1]), float(cells[3])) == (seconds, gib)


def test_more_gpus_never_make_a_step_faster_nor_a_gpu_slower_than_its_links():
    steps = [scale.step(gpus, 8) for gpus in (1, 2, 8, 64, 512)]
    assert all(one.seconds <= other.seconds for one, other in zip(steps, steps[1:], strict=False))
    assert steps[0].seconds == steps[0].compute and all(one.exposed <= one.travel for one in steps)
    # Nothing hides a transfer longer than its backward pass, and nothing the last bucket.
    assert scale.exposed(2.0, 0.5, 1e9) == 1.5
    assert scale.exposed(1.0, 9.0, 2 * scale.BUCKET) == 0.5
    assert scale.exposed(1.0, 9.0, 1.0) == 1.0
