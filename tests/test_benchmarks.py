"""The benchmarks measure what they say on a GPU: without one, through stand-ins."""

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from bench import bench_adain, bench_l1_kl, bench_step, timing


class Streams:
    """Stands in for CUDA's streams and graphs."""

    def __init__(self, monkeypatch):
        self.current, self.capturing = "default", False
        monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(name="own", wait_stream=lambda other: None))
        waits = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: waits)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: self.on(stream))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: self.on(stream, capturing=True))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    @contextmanager
    def on(self, stream, capturing=False):
        before = self.current, self.capturing
        self.current, self.capturing = stream.name, capturing
        yield
        self.current, self.capturing = before


def test_what_is_captured_began_on_the_stream_of_the_capture(monkeypatch):
    """A backward pass runs on the stream of its forward pass, which must be the captured one."""
    streams, seen = Streams(monkeypatch), []

    def run(x):
        seen.append(("forward", streams.current))
        return x * 2

    x = torch.ones(3, requires_grad=True)
    data = bench_adain.Tensors((x,), torch.ones(3))

    def steps():
        step = bench_adain.step(run, data, "backward")
        return [lambda: seen.append(("step", streams.current, streams.capturing)) or step()]

    timing.captured(steps)()
    assert {event[1] for event in seen} == {"own"}
    assert [event[2] for event in seen if event[0] == "step"] == [False, True]


def test_sets_exceed_the_cache():
    assert timing.sets_beyond_l2(2**40) == 1
    assert timing.sets_beyond_l2(3 * 2**20) * 3 * 2**20 >= timing.BEYOND_L2


def test_any_number_of_cases_can_be_compiled(monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for width in range(1, 12):
        call = bench_adain.Call("a case", (2, width, 4, 4), slope=0.2 if width % 2 else 1.0, pad=width % 3)
        run = bench_adain.operation(call, "compile")
        (x,) = bench_adain.tensors(call, torch.float32, seed=0).inputs
        torch.testing.assert_close(run(x), bench_adain.operation(call, "eager")(x))
    torch.compiler.reset()


def test_both_steps_compute_in_the_same_fp32(monkeypatch):
    seen = []
    monkeypatch.setattr(
        bench_step.naive_step,
        "iteration",
        lambda *_, **__: seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)),
    )
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    bench_step.run("naive", "fp32", 1, (64, 48), steps=1)
    assert seen == [(False, False)] * 2


def test_the_hosts_work_is_that_of_all_layers():
    """However narrow: as many calls of operators as with the paper's networks."""
    found = bench_step.host(rounds=1)
    assert {"naive fp32, ms", "lean fp32, ms", "lean bf16, of the plain step"} < found.keys()
    narrow, wide = bench_step.NarrowResNet50(), bench_step.ResNet50()
    assert [type(layer) for layer in narrow.modules()][1:] == [type(layer) for layer in wide.modules()][1:]


@pytest.mark.parametrize("phase", ["forward", "both"])
def test_the_loss_is_timed_on_a_gpu_without_its_host(monkeypatch, phase):
    """By a graph of calls on different memory, each of which can be differentiated once."""
    made = []

    def captured(make):
        for _ in range(2):
            for step in make():
                made.append(step())
        return lambda: None

    monkeypatch.setattr(bench_l1_kl, "CUDA", True)
    monkeypatch.setattr(bench_l1_kl, "captured", captured)
    monkeypatch.setattr(bench_l1_kl, "sets_beyond_l2", lambda least: 3)
    benchmark = SimpleNamespace(pedantic=lambda run, **_: run(), enabled=False)
    bench_l1_kl.test_loss(benchmark, None, 1, torch.float32, "eager", phase)
    assert len(made) == 6
    assert made[0][0].ndim == (0 if phase == "forward" else 4)
