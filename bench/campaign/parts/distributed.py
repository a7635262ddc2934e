"""Part 10: one process that behaves like one of many."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.bench_step import WARM, made_up
from dgfast.training.distributed import Workers

from ..record import Record
from .common import DEVICE, ON_GPU, flat, loss_error, size_of, stage_of


class _Forced(Workers):
    """One process that takes every way that one of several takes."""

    @property
    def alone(self) -> bool:
        return False


def distributed(record: Record) -> None:
    """Gradients through DistributedDataParallel's buckets, statistics through SyncBatchNorm: the same update."""
    size = size_of(record)
    batch = made_up(size.samples, size.image, DEVICE)

    def update(workers: Workers | None, synced: bool) -> tuple[dict[str, Tensor], Tensor]:
        # Statistics of a small batch would turn rounding into anything (`whole_step`), so updates are compared without.
        statistics = "joint" if synced else "frozen"
        convert = nn.SyncBatchNorm.convert_sync_batchnorm if synced and ON_GPU else None
        stage = stage_of(size, workers=workers, change=convert, batch_norm=statistics)
        before = flat(stage.networks.appearance)
        return stage.step(batch, WARM), flat(stage.networks.appearance) - before

    if ON_GPU:
        record.left_out("exchange of BatchNorm's statistics: in a world of one torch's SyncBatchNorm computes alone")
    else:
        record.left_out("SyncBatchNorm and nccl, which need GPUs; gradients travel by gloo")
    plain = [update(None, synced) for synced in (False, True)]
    dist.init_process_group("cpu:gloo,cuda:nccl" if ON_GPU else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        workers = _Forced()
        seen, moved = update(workers, False)
        record.check("DistributedDataParallel: losses", loss_error(seen, plain[0][0]), 1e-4)
        record.check("DistributedDataParallel: E_a's update", float((moved - plain[0][1]).norm() / moved.norm()), 2e-2)
        seen, moved = update(workers, True)
        record.check("SyncBatchNorm: losses", loss_error(seen, plain[1][0]), 1e-3)
        record.holds("SyncBatchNorm: E_a's update is finite", bool(moved.isfinite().all()))
        values = [torch.arange(5.0, device=DEVICE), torch.ones(3, device=DEVICE)]
        workers.average(values)
        kept = [list(map(float, value)) for value in values]
        record.holds("averages travel on the device", kept == [[0, 1, 2, 3, 4], [1, 1, 1]], str(kept))
        record.holds("rows are gathered", torch.equal(workers.gather(torch.eye(2)), torch.eye(2)))
    finally:
        dist.destroy_process_group()
