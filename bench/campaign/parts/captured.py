"""Part 11: iterations captured as CUDA graphs."""

import copy
import functools
import itertools
import re
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F

from bench.bench_step import made_up
from dgfast.data.batches import PairBatch
from dgfast.training import graphs
from dgfast.training.graphs import CudaGraphs, Recorder
from dgfast.training.stages import DGNetStage
from tests.captured import Tapes

from ..record import Record
from .common import (
    DEVICE,
    ON_GPU,
    Size,
    flat,
    loss_error,
    milliseconds,
    size_of,
    stage_of,
    structure_learns_at,
    wait_for_device,
)

_DRIVER = re.compile(r"cu(da)?(LaunchKernel|GraphLaunch|Memcpy|Memset).*")


def captured(record: Record) -> None:
    """Replays against iterations that the host launches: time, calls, memory; losses, E_a's update, random draws.

    Graphs are captured early in the warm-up. They are compared later in it, when weights have grown, and behind the
    first milestone, when learning rates have fallen.
    """
    size = size_of(record, samples=8)
    batch = made_up(size.samples, size.image, DEVICE)
    recorder = functools.partial(CudaGraphs, DEVICE) if ON_GPU else Tapes
    plain = _timed_stage(record, "launched", size, batch, None)
    with mock.patch.object(graphs, "WARM_UP", 1 if record.dry_run else graphs.WARM_UP):
        made = _timed_stage(record, "captured", size, batch, recorder)
    config = plain.config
    for at, name in ((config.loss.warmup_start + 3000, "grown weights"), (config.optim.milestones[0], "fallen rates")):
        for learns in (True, False):
            iteration = next(i for i in itertools.count(at) if structure_learns_at(config.run.seed, i) == learns)
            plain.load_state_dict(copy.deepcopy(made.state_dict()))
            before = flat(plain.networks.appearance)
            expected, seen = plain.step(batch, iteration), made.step(batch, iteration)
            moved, expected_move = (flat(stage.networks.appearance) - before for stage in (made, plain))
            side = f"{name}, E_s {'learns' if learns else 'judges'}"
            record.check(f"{side}: losses", loss_error(seen, expected), 1e-3)
            off = (moved - expected_move).norm() / expected_move.norm()
            record.check(f"{side}: E_a's update", float(off), 2e-2)
    _check_draws(record, recorder())


def _timed_stage(
    record: Record, way: str, size: Size, batch: PairBatch, recorder: Callable[[], Recorder] | None
) -> DGNetStage:
    """A stage whose iterations have been captured if they are to be; their time, calls of the driver and memory."""
    beside = torch.cuda.memory_allocated() if ON_GPU else 0
    # Statistics of a small batch would turn rounding into anything (`whole_step`), so updates are compared without.
    # A CPU has no units for bf16 and would take twice as long; tests/test_graphs.py captures it there, too.
    stage = stage_of(size, "fp32" if record.dry_run else "bf16", recorder=recorder, batch_norm="frozen")
    seed, iterations = stage.config.run.seed, itertools.count(stage.config.loss.warmup_start + 500)
    sides: set[bool] = set()
    while len(sides) < 2 or (stage.captured is not None and stage.captured.graphs < 2):
        iteration = next(iterations)
        stage.step(batch, iteration)
        sides.add(structure_learns_at(seed, iteration))
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    number = 1 if record.dry_run else 20
    record.figure(f"ms, {way}", milliseconds(lambda: stage.step(batch, next(iterations)), number))
    if not ON_GPU:
        record.left_out(f"calls of the driver and memory, {way}: they need a GPU")
        return stage
    # What is reserved, since between replays the allocator counts none of the graphs' memory as used.
    record.figure(f"peak GiB, {way}", (torch.cuda.max_memory_reserved() - beside) / 2**30)
    with torch.profiler.profile(acc_events=True) as profile:
        stage.step(batch, next(iterations))
        wait_for_device()
    calls = sum(event.count for event in profile.key_averages() if _DRIVER.fullmatch(event.key))
    record.figure(f"launches, {way}", calls)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(4):
            seen = stage.step(batch, next(iterations))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    record.holds(f"iterations wait for nothing, {way}", bool(seen["g/total"].isfinite()), "not finite")
    return stage


def _check_draws(record: Record, recorder: Recorder) -> None:
    """A replay must draw what its seed says, or a resumed run would not be an uninterrupted one."""
    place = torch.zeros(2, 1000, device=DEVICE)

    def draw() -> None:
        place[0] = torch.rand(1000, device=DEVICE)
        place[1] = F.dropout(torch.ones(1000, device=DEVICE), 0.5)

    recorder.aside(draw)
    replay = recorder.capture(draw)
    for seed in (1, 2):
        torch.manual_seed(seed)
        replay()
        found = place.clone()
        torch.manual_seed(seed)
        draw()
        record.holds(f"a replay draws what seed {seed} says", torch.equal(found, place))
