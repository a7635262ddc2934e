"""One update of some networks: their gradients, over all parts of a batch and all processes, and a step of their
optimisers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from .distributed import Workers
from .precision import MixedPrecision

Losses = dict[str, Tensor]


class Objective(nn.Module):
    """A loss as a module whose parameters are those that learn from it: the form that data parallelism wraps."""

    def __init__(self, learners: Sequence[nn.Module]):
        super().__init__()
        self.learners = nn.ModuleList(learners)

    def forward(self, losses: Callable[[], Losses]) -> Losses:
        """What `losses` gives."""
        return losses()


class Update:
    """The update of the networks that learn from one objective.

    Args:
        learners: networks all of whose parameters get a gradient from the objective. optimizers: theirs.
        workers, precision: as everywhere. parts: number of parts of a batch. clip: largest norm of the gradient, 0 for
            any.
    """

    def __init__(
        self,
        learners: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        workers: Workers,
        precision: MixedPrecision,
        parts: int,
        clip: float,
    ):
        self.optimizers, self.workers, self.precision, self.clip = optimizers, workers, precision, clip
        self.parameters = [p for learner in learners for p in learner.parameters()]
        self.objective = workers.data_parallel(Objective(learners), accumulates=parts > 1)

    def __call__(self, parts: Sequence[Callable[[], Losses]]) -> Losses:
        """Backward passes of each part's "total", whose mean is what is minimised, and one step.

        Args:
            parts: functions that compute a part's losses, scalars by name; called one after another.
        Returns:
            the means of the parts' losses, detached.
        """
        for parameter in self.parameters:
            parameter.grad = None
        *adding, last = parts
        found = []
        for losses in adding:
            with self.workers.apart(self.objective):
                found.append(self._backward(losses, len(parts)))
        found.append(self._backward(last, len(parts)))
        with record_function("optimizer"):
            scaler = self.precision.scaler
            if self.clip:
                for optimizer in self.optimizers:
                    scaler.unscale_(optimizer)
                # A gradient that is not finite, which fp16's scale leaves behind while it settles, has its own
                # optimiser skipped; it must not make the others' gradients so: they become 0.
                norm = nn.utils.get_total_norm([p.grad for p in self.parameters]).nan_to_num(torch.inf, torch.inf)
                nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
            for optimizer in self.optimizers:
                scaler.step(optimizer)
        return found[0] if len(found) == 1 else {name: sum(f[name] for f in found) / len(found) for name in found[0]}

    def _backward(self, losses: Callable[[], Losses], parts: int) -> Losses:
        found = self.objective(losses)
        total = found["total"] if parts == 1 else found["total"] / parts
        with record_function("backward"):
            self.precision.scaler.scale(total).backward()
        return {name: loss.detach() for name, loss in found.items()}
