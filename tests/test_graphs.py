"""Iterations as CUDA graphs, with a stand-in that holds operators and all their arguments, as a graph does."""

import dataclasses

import pytest
import torch

from dgfast.data.batches import PairBatch, StreamBatch
from dgfast.models import DGNet
from dgfast.models.dgnet import make_teacher
from dgfast.training import graphs
from dgfast.training.distributed import Workers
from dgfast.training.precision import MixedPrecision
from dgfast.training.stages import DGNetStage
from tests import tiny
from tests.captured import Tapes

CLASSES = 5
START, MILESTONE, END = 12, 19, 26  # of the warm-up, of the learning rates, of the tests' runs


def batch(seed: int) -> PairBatch:
    g = torch.Generator().manual_seed(seed)

    def stream() -> StreamBatch:
        images = [torch.randn(2, 3, *tiny.SIZE, generator=g) for _ in range(4)]
        return StreamBatch(*images, torch.randint(0, CLASSES, (2,), generator=g), torch.arange(2))

    return PairBatch(stream(), stream())


def stage(recorder, precision="fp32", model=tiny.MODEL, **overrides):
    overrides = {"warmup_start": START, "warmup_rate": 0.2, "milestones": (MILESTONE,), **overrides}
    torch.manual_seed(0)
    config = tiny.config(None, None, batch_size=2, **overrides)
    networks, teacher = DGNet(model, CLASSES), make_teacher(model, CLASSES).eval().requires_grad_(False)
    formats = MixedPrecision(precision, torch.device("cpu"), False)
    return DGNetStage(networks, teacher, config, Workers(), formats, recorder)


def run(made: DGNetStage, first: int, end: int) -> list[dict[str, torch.Tensor]]:
    """Iterations as the loop runs them: each has a batch and a seed of its own."""
    found = []
    for iteration in range(first, end):
        torch.manual_seed(iteration)
        found.append(made.step(batch(iteration), iteration))
    return found


def assert_same(found, expected):
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), (i, name)


def tensors(made: DGNetStage) -> dict[str, torch.Tensor]:
    values = dict(made.networks.state_dict())
    for name, optimizer in made.optimizers.items():
        for number, state in optimizer.state_dict()["state"].items():
            values |= {f"{name} {number} {key}": value for key, value in state.items()}
    return values


STRIPES = dataclasses.replace(tiny.MODEL, modulation="stripes", background="kept")
WAYS = {
    "plain": {},
    "stripes, background kept, jitter": {"model": STRIPES, "structure_jitter": 0.7},
    "bf16": {"precision": "bf16"},
    "per stream, clipped, hard labels": {
        "batch_norm": "per-stream", "clip_gradient": 0.1, "label_style": "hard", "teacher_confidence": 0.25,
    },
    "activations again, no R1": {"checkpoint_activations": True, "r1_weight": 0.0, "fine_weight": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_replays_are_the_iterations_that_they_stand_for(way, monkeypatch):
    """To the bit, while weights grow, rates fall and the coin changes sides; a replay knows nothing but its memory."""
    tapes = Tapes()
    captured, plain = (stage(lambda tapes=tapes: tapes, **WAYS[way]) for tapes in (tapes, Tapes()))
    found = run(captured, 0, END)
    monkeypatch.setattr(graphs, "WARM_UP", END)
    expected = run(plain, 0, END)
    assert_same(found, expected)
    for name, value in tensors(plain).items():
        assert torch.equal(tensors(captured)[name], value), name
    assert len(tapes.tapes) == 4  # before the warm-up and after, both sides of the coin
    assert tapes.replays + tapes.asides == END and tapes.replays >= 8
    assert len(tapes.tapes[0].calls) < len(tapes.tapes[-1].calls)
