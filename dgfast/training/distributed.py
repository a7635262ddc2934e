"""Several processes: who am I, equal weights at the start, averaged gradients in every step."""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dgfast.errors import UserError

T = TypeVar("T")


class Workers:
    """This process among those that `torchrun` started (or alone, started without it).

    Attributes:
        rank, world_size: its number and their number; device: what it computes on.
    """

    def __init__(self) -> None:
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
            dist.init_process_group(backend, timeout=timedelta(minutes=60))

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def close(self) -> None:
        """Leave the group."""
        if self.world_size > 1:
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for all."""
        if self.world_size > 1:
            dist.all_reduce(torch.zeros(1))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([float(flag)])
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in one transfer."""
        tensors = list(tensors)
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        flat /= self.world_size
        offset = 0
        for t in tensors:
            t.copy_(flat[offset : offset + t.numel()].view_as(t))
            offset += t.numel()

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Mean of the gradients over all processes: with a loss that is a mean, the gradient of the global batch."""
        self.average(p.grad for p in parameters if p.grad is not None)

    def average_statistics(self, *modules: nn.Module) -> None:
        """Mean of BatchNorm's running statistics over all processes, so that one process can save for all."""
        self.average(b for m in modules for b in m.buffers() if b.is_floating_point())

    def same_weights(self, *modules: nn.Module) -> None:
        """Give all processes the first one's weights and statistics."""
        if self.world_size > 1:
            for module in modules:
                for tensor in module.state_dict().values():
                    dist.broadcast(tensor, 0)

    def gather(self, rows: Tensor) -> Tensor:
        """Rows [n_r, D] of each process, in the order of the ranks -> [sum n_r, D] on the CPU, in every process."""
        if self.world_size == 1:
            return rows.cpu()
        parts: list[Tensor | None] = [None] * self.world_size
        dist.all_gather_object(parts, rows.cpu())
        return torch.cat(parts)

    def share(self, value: T) -> T:
        """The first process's value, in every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]
