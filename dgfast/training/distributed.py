"""Several processes: which one this is, equal weights at the start, averaged gradients, decisions taken together."""

import importlib
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Self, TypeVar
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dgfast.errors import UserError

T = TypeVar("T")


class Votes:
    """Flags that count as set when any process sets them.

    All processes cast the same number of votes, in the same order.

    Args:
        alone: whether there is no other process.
    """

    def __init__(self, alone: bool):
        self.alone = alone
        self._open: list[tuple[Tensor, dist.Work | None]] = []

    def cast(self, *flags: bool, at_once: bool) -> list[bool]:
        """Cast this process's flags, and count votes.

        Args:
            flags: any number of them, the same number at each call.
            at_once: True: count this vote too, which waits for the slowest process. False: it counts at the next call,
                by when it has long been with everybody. Alone, every vote counts at once.
        Returns:
            for each flag whether any process has set it, in any of the votes that had not been counted yet.
        """
        mine = torch.tensor(flags, dtype=torch.uint8)
        work = None if self.alone else dist.all_reduce(mine, dist.ReduceOp.MAX, async_op=True)
        self._open.append((mine, work))
        counted = self._open if at_once or self.alone else self._open[:-1]
        self._open = self._open[len(counted) :]
        set_by_any = torch.zeros_like(mine)
        for found, coming in counted:
            if coming is not None:
                coming.wait()
            set_by_any |= found
        return [bool(flag) for flag in set_by_any]


class Workers:
    """This process among those that `torchrun` started, or alone; a context that leaves the group at its end.

    Raises:
        UserError: this machine has fewer GPUs than processes.
    """

    rank: int
    """Number of this process, from 0."""
    world_size: int
    """Number of processes."""
    device: torch.device
    """What this process computes on: a GPU of its own, or the CPU."""

    def __init__(self) -> None:
        self._parallel: WeakSet[DistributedDataParallel] = WeakSet()
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if torch.cuda.is_available():
            if local_rank >= torch.cuda.device_count():
                raise UserError(
                    f"process {local_rank} of this machine has no GPU of its own: {torch.cuda.device_count()} found;"
                    " start at most one process a GPU (--nproc_per_node)"
                )
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")
        if self.world_size > 1:
            # Small values (stop signals, scores) travel by gloo, gradients on GPUs by nccl.
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            # DistributedDataParallel imports it later. Imported while there is a group, it never lets go of that group.
            importlib.import_module("torch._dynamo")
            dist.init_process_group(backend, timeout=timedelta(minutes=60))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.alone:
            return
        # gloo's threads end with the last reference to the group, and each holds the tensors of its last transfer until
        # it has found time to drop them. One that does so while Python shuts down would abort the whole process.
        for parallel in self._parallel:
            del parallel.reducer, parallel.logger, parallel.process_group
        dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.world_size == 1

    def barrier(self) -> None:
        """Wait for all processes."""
        if not self.alone:
            dist.all_reduce(torch.zeros(1))

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The first process runs the body; the others begin theirs when it has done so without error."""
        if not self.first:
            self.barrier()
        yield
        if self.first:
            self.barrier()

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over all processes, in one transfer.

        Args:
            tensors: of floats; the same shapes in every process.
        """
        tensors = list(tensors)
        if self.alone or not tensors:
            return
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        flat /= self.world_size
        offset = 0
        for t in tensors:
            t.copy_(flat[offset : offset + t.numel()].view_as(t))
            offset += t.numel()

    def data_parallel(self, objective: nn.Module, accumulates: bool) -> nn.Module:
        """Have an objective's gradients averaged over all processes, while its backward pass still makes others.

        With a loss that is a mean this is the gradient of the global batch.

        Args:
            objective: a module whose parameters all get a gradient from its loss, each time.
            accumulates: whether some backward passes add to the gradients before they are averaged; see
                `gradient_sync`.
        Returns:
            a module to be called in place of the objective, until these workers' context ends; the objective itself
            where there is one process.
        """
        if self.alone:
            return objective
        # Weights of 1x1 lie in memory alike in every format, but torch compares strides. Where they differ, it copies
        # the gradient first, which changes no result.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        # Buffers are not broadcast: BatchNorm's running statistics may differ between processes until
        # `average_statistics`. With a static graph, torch averages the whole first backward pass at its end; it must
        # not do that with a pass that only adds to the gradients.
        parallel = DistributedDataParallel(
            objective, broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=not accumulates
        )
        self._parallel.add(parallel)
        return parallel

    def gradient_sync(self, objective: nn.Module, sync: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass: whether its gradients meet those of the other processes.

        Args:
            objective: what `data_parallel` gave.
            sync: True: all gradients added up so far are averaged over the processes; False: the pass only adds to the
                gradients of this process.
        """
        return nullcontext() if sync or not isinstance(objective, DistributedDataParallel) else objective.no_sync()

    def average_statistics(self, modules: Iterable[nn.Module]) -> None:
        """Average BatchNorm's running statistics over all processes, so that one process can save for all.

        Args:
            modules: networks.
        """
        self.average(b for m in modules for b in m.buffers() if b.is_floating_point())

    def same_weights(self, modules: Iterable[nn.Module]) -> None:
        """Give all processes the first one's weights and statistics.

        Args:
            modules: networks, of the same shapes in every process.
        """
        if not self.alone:
            for module in modules:
                for tensor in module.state_dict().values():
                    dist.broadcast(tensor, 0)

    def gather(self, rows: Tensor) -> Tensor:
        """Collect the rows of all processes.

        Args:
            rows: [n, D], this process's; of the same shape and dtype in every process.
        Returns:
            [n times the number of processes, D] on the CPU, in the order of the ranks, in every process.
        """
        mine = rows.cpu().contiguous()
        if self.alone:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(parts, mine)
        return torch.cat(parts)

    def share(self, value: T) -> T:
        """Give every process the first one's value.

        Args:
            value: anything that can be pickled; only the first process's is looked at.
        Returns:
            the first process's value.
        """
        if self.alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]
