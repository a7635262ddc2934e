"""Part 4: a step waits for nothing."""

import torch

from bench.bench_step import WARM, made_up

from ..record import Record
from .common import DEVICE, ON_GPU, size_of, stage_of, structure_learns_at, wait_for_device


def no_waiting(record: Record) -> None:
    """torch refuses whatever waits for the device while iterations run."""
    size = size_of(record, samples=8)
    stage, batch = stage_of(size, "bf16"), made_up(size.samples, size.image, DEVICE)
    seed = stage.config.run.seed
    first = next(i for i in range(WARM, WARM + 99) if len({structure_learns_at(seed, j) for j in range(i, i + 2)}) == 2)
    for iteration in range(first, first + 2):
        stage.step(batch, iteration)  # compiles, tunes and allocates
    wait_for_device()
    if not ON_GPU:
        record.left_out("torch's check that nothing waits for the device, which needs one")
    try:
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("error")
        for iteration in range(first, first + 2):
            seen = stage.step(batch, iteration)
    finally:
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("default")
    record.holds("both kinds of iterations ran without waiting", bool(seen["g/total"].isfinite()), "not finite")
