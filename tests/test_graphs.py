"""Iterations as CUDA graphs, with a stand-in that holds operators and all their arguments, as a graph does."""

import copy
import dataclasses
import gc
import warnings
import weakref
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dgfast.commands import train
from dgfast.data.batches import PairBatch, StreamBatch
from dgfast.errors import Interrupted, UserError
from dgfast.models import DGNet
from dgfast.models.dgnet import make_teacher
from dgfast.training import graphs, trainer
from dgfast.training.distributed import Workers
from dgfast.training.graphs import CudaGraphs
from dgfast.training.precision import MixedPrecision
from dgfast.training.stages import DGNetStage
from dgfast.training.step import weights_at
from tests import tiny
from tests.captured import Refusing, Tapes
from tests.counting import Cost

CLASSES = 5
START, MILESTONE, END = 5, 10, 12  # of the warm-up, of the learning rates, of the tests' runs
SEED = 42  # whose coin falls on either side in iterations 0 and 1, 2 and 3, and so on: then so few iterations serve


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """Then both sides of the coin are captured and replayed before START, again before MILESTONE, and replayed before
    END."""
    monkeypatch.setattr(graphs, "WARM_UP", 1)


def batch(seed: int) -> PairBatch:
    g = torch.Generator().manual_seed(seed)

    def stream() -> StreamBatch:
        images = [torch.randn(2, 3, *tiny.SIZE, generator=g) for _ in range(4)]
        return StreamBatch(*images, torch.randint(0, CLASSES, (2,), generator=g), torch.arange(2))

    return PairBatch(stream(), stream())


def stage(recorder, precision="fp32", model=tiny.MODEL, **overrides):
    overrides = {"warmup_start": START, "warmup_rate": 0.2, "milestones": (MILESTONE,), "seed": SEED, **overrides}
    torch.manual_seed(0)
    config = tiny.config(None, None, batch_size=2, **overrides)
    networks, teacher = DGNet(model, CLASSES), make_teacher(model, CLASSES).eval().requires_grad_(False)
    networks.structure.recompute = networks.decoder.recompute = config.run.checkpoint_activations
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


def kept(modulation: str):
    return dataclasses.replace(tiny.MODEL, modulation=modulation, background="kept")


# Each option in one of them: what is captured wrongly shows whatever else is on.
WAYS = {
    "plain": {},
    "stripes, jitter, per stream, clipped, hard labels": {
        "model": kept("stripes"), "structure_jitter": 0.7, "batch_norm": "per-stream", "clip_gradient": 0.1,
        "label_style": "hard", "teacher_confidence": 0.25,
    },
    "palettes, jitter": {"model": kept("attention"), "structure_jitter": 0.7},
    "bf16, activations again, no R1": {
        "precision": "bf16", "checkpoint_activations": True, "r1_weight": 0.0, "fine_weight": 0.0,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_replays_are_the_iterations_that_they_stand_for(way):
    """While weights grow, rates fall and the coin changes sides; a replay knows nothing but its memory. States are
    equal to the bit; sums of losses and weights are formed in fp64."""
    tapes = Tapes()
    captured, plain = stage(lambda: tapes, **WAYS[way]), stage(Tapes, **WAYS[way])
    plain.captured = None
    for found, expected in zip(run(captured, 0, END), run(plain, 0, END), strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value.float(), rtol=1e-6, atol=0, msg=name)
    assert_same([tensors(captured)], [tensors(plain)])
    assert len(tapes.tapes) == 4  # before the warm-up and after, both sides of the coin
    assert tapes.replays + tapes.asides == END and tapes.replays >= 8
    assert len(tapes.tapes[0].calls) < len(tapes.tapes[-1].calls)


def test_a_tape_holds_what_the_host_knew():
    """The stand-in is as strict as a graph: numbers stay those of the capture, tensors are read anew, and a capture
    changes nothing."""
    x, place, number = torch.ones(2), torch.tensor(2.0), [3.0]
    replay = Tapes().capture(lambda: x.mul_(place * number[0]).add_(torch.rand(2)))
    assert x.tolist() == [1, 1]
    number[0] = 5.0
    place.fill_(7)
    torch.manual_seed(1)
    replay()
    torch.manual_seed(1)
    assert torch.equal(x, torch.full((2,), 21.0) + torch.rand(2))
    for work in (lambda: x.sum().item(), lambda: x[x > 0], lambda: torch.tensor(1.0) + x):
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            Tapes().capture(work)


def test_iterations_run_as_they_are_until_both_sides_of_the_coin_have(monkeypatch):
    """Had one side been captured before, the other's memory would be taken beside that of the graphs."""
    monkeypatch.undo()
    tapes = Tapes()
    made = graphs.Captured(torch.nn.Linear(1, 1), lambda: tapes)
    weights = weights_at(tiny.config(None, None).loss, 5)

    def captured(batch, structure_learns):
        return made(lambda batch, *_: {"loss": batch.a.image.sum()}, batch, weights, structure_learns)["loss"]

    for structure_learns in (True, True, True, True, False, False, False):
        captured(batch(0), structure_learns)
    assert (tapes.asides, tapes.replays) == (7, 0) and graphs.WARM_UP == 3
    for structure_learns in (False, True, False, True):
        expected = batch(7).a.image.sum()
        assert torch.equal(captured(batch(7), structure_learns), expected)
    assert (tapes.asides, tapes.replays, len(tapes.tapes)) == (7, 4, 2)


def test_an_update_is_that_of_a_step_that_is_not_captured():
    """But for rounding: rates are in fp32, and SGD is torch's fused one."""
    moved = []
    for recorder in (Tapes, None):
        made = stage(recorder)
        found = run(made, END, END + 1)[0]
        moved.append((found, tensors(made)))
    (found, state), (expected, expected_state) = moved
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=0)
    for name, value in expected_state.items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_uninterrupted_one():
    whole, first, second = (stage(Tapes) for _ in range(3))
    run(whole, START, END)
    run(first, START, START + 4)
    run(second, 0, 1)  # what it held before counts for nothing
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, START + 4, END)
    assert_same([tensors(second)], [tensors(whole)])


def test_a_captured_run_goes_on_without_graphs_and_back():
    captured, plain = stage(Tapes), stage(None)
    run(captured, START, START + 2)
    plain.load_state_dict(copy.deepcopy(captured.state_dict()))
    assert_same([tensors(plain)], [tensors(captured)])
    run(plain, START + 2, START + 4)
    captured.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert_same([tensors(captured)], [tensors(plain)])
    rates = {
        float(group["lr"]) for made in (captured, plain) for o in made.optimizers.values() for group in o.param_groups
    }
    assert len(rates) == 2 * len({group["lr"] for o in plain.optimizers.values() for group in o.param_groups})
    run(captured, START + 4, START + 6)


def replaying(recorder=Tapes, **settings) -> tuple[DGNetStage, int]:
    """A stage whose graphs have been captured, and its next iteration."""
    made = stage(recorder, **settings)
    iteration = END
    while made.captured.graphs < 2:
        run(made, iteration, iteration + 1)
        iteration += 1
    return made, iteration


def test_losses_outlive_the_next_replay():
    made, iteration = replaying()
    first = run(made, iteration, iteration + 1)[0]
    kept = {name: value.clone() for name, value in first.items()}
    run(made, iteration + 1, iteration + 3)
    assert_same([first], [kept])


def test_graphs_end_with_their_stage():
    """Their memory is wanted for what comes after it, and nobody waits for the collector of garbage."""
    made, _ = replaying()
    graphs_of_it = weakref.ref(made.captured)
    gc.disable()
    try:
        del made
        assert graphs_of_it() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("capturing", [False, True])
def test_optimisers_can_be_captured_and_do_not_complain_before(monkeypatch, capturing):
    made = stage(Tapes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for optimizer in made.optimizers.values():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.ones_like(parameter)
            with Refusing():
                optimizer.step()


def test_another_size_of_batch_is_captured_anew():
    tapes = []

    def recorder():
        tapes.append(Tapes())
        return tapes[-1]

    made, iteration = replaying(recorder)
    half = batch(0).split(2)[0]
    made.step(half, iteration)
    assert [t.asides for t in tapes] == [tapes[0].asides, 1]


def test_operators_can_be_counted():
    """As `dgfast profile` counts them: that iteration is not replayed."""
    made, iteration = replaying()
    with Cost() as cost:
        run(made, iteration, iteration + 1)
    assert cost.calls > 3000


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_on_a_gpu_no_iteration_waits_for_the_host(way, monkeypatch):
    """Tensors without memory claim to be a GPU's, and take its way; nothing can know their values."""
    counted = Counter()

    class Watching(Tapes):
        def aside(self, work):
            with Refusing(), Cost() as cost:
                super().aside(work)
            counted.update(operator for _, _, operator in cost.calls_by)

    with FakeTensorMode():
        made = stage(Watching, **WAYS[way])
        monkeypatch.setattr(FakeTensor, "is_cuda", True)
        weights = weights_at(made.config.loss, END)  # all of them count; before the warm-up a part of it is done
        for structure_learns in (True, False):
            made.captured(made._iterate, batch(0), weights, structure_learns)
    assert {"l1_kl", "inject", "inject_backward", "_fused_adam_", "_fused_sgd_"} <= counted.keys()


class Cuda:
    """Stands in for torch's streams and graphs, and notes what happens."""

    def __init__(self, monkeypatch):
        self.events, self.current, self.trouble = [], "main", None
        cuda = self

        class Stream:
            def __init__(self, name="side"):
                self.name = name

            def wait_stream(self, other):
                cuda.events.append(f"{self.name} waits for {other.name}")

        class Graph:
            def replay(self):
                cuda.events.append(f"replay on {cuda.current}")

        @contextmanager
        def stream(side):
            before, cuda.current = cuda.current, side.name
            yield
            cuda.current = before

        @contextmanager
        def graph(graph, pool, side, capture_error_mode):
            cuda.events.append(f"capture on {side.name} in {pool}, {capture_error_mode}")
            try:
                yield
            finally:
                if cuda.trouble:
                    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream(cuda.current))
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", graph)

    def work(self):
        self.events.append(f"work on {self.current}")
        if self.trouble:
            raise self.trouble


def test_work_is_captured_on_the_stream_that_it_was_warmed_up_on(monkeypatch):
    cuda = Cuda(monkeypatch)
    recorder = CudaGraphs(torch.device("cuda:0"))
    recorder.aside(cuda.work)
    for _ in range(2):
        recorder.capture(cuda.work)()
    captured = ["capture on side in pool, thread_local", "work on main", "replay on main"]
    assert cuda.events == ["side waits for main", "work on side", "main waits for side", *captured, *captured]


def test_what_cannot_be_captured_is_one_line(monkeypatch):
    cuda = Cuda(monkeypatch)
    recorder = CudaGraphs(torch.device("cuda:0"))
    cuda.trouble = RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")
    with pytest.raises(UserError, match=r"\(CUDA error: operation not permitted .*\); expected .*--no-cuda-graphs"):
        recorder.capture(cuda.work)
    cuda.trouble = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(torch.OutOfMemoryError):
        recorder.capture(cuda.work)


def test_where_nothing_can_be_captured_the_reason_is_named(tmp_path):
    def reason(device="cuda", processes=1, precision="fp32", **settings):
        workers = SimpleNamespace(device=torch.device(device), alone=processes == 1)
        formats = SimpleNamespace(scaler=SimpleNamespace(is_enabled=lambda: precision == "fp16"))
        return graphs.obstacle(tiny.config(tmp_path, tmp_path, **settings), workers, formats)

    assert reason() is None and reason(precision="bf16", checkpoint_activations=True) is None
    assert reason(device="cpu") == "there is no GPU"
    assert reason(processes=2) == "there are several processes"
    assert reason(precision="fp16") == "fp16's loss scale is decided on by the host"
    assert reason(accumulate=2) == "--accumulate is 2"
    assert reason(compile="default") == "--compile is default"


def test_a_run_on_a_cpu_says_so_and_is_the_same(market, tmp_path, capsys):
    weights = []
    for name, asked in (("plain", False), ("asked", True)):
        config = tiny.config(market, tmp_path, iterations=2, teacher_iterations=1, name=name, cuda_graphs=asked)
        train.main(tiny.flags(config))
        lines = [line for line in capsys.readouterr().err.splitlines() if "graphs" in line]
        assert lines == ["without CUDA graphs, which --cuda-graphs asks for: there is no GPU"] * asked
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_run_with_graphs_stops_and_goes_on(market, tmp_path, monkeypatch):
    """Through the whole loop, with sample grids and checkpoints between replays, to the same bits."""
    made = []

    def recorder(device):
        made.append(Tapes())
        return made[-1]

    monkeypatch.setattr(trainer, "obstacle", lambda *_: None)
    monkeypatch.setattr(trainer, "CudaGraphs", recorder)
    settings = {"iterations": END, "teacher_iterations": 1, "warmup_start": START, "milestones": (MILESTONE,)}
    settings |= {"seed": SEED, "cuda_graphs": True}
    for name, stop in (("whole", None), ("stopped", 8)):
        flags = tiny.flags(tiny.config(market, tmp_path, name=name, stop_after=stop, **settings))
        if stop is None:
            train.main(flags)
            assert sum(tapes.replays for tapes in made) >= 5
        else:
            with pytest.raises(Interrupted):
                train.main(flags)
            train.main(["--resume", str(tmp_path / name), "--stop-after", "100"])
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
