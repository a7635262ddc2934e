"""One update of some networks: for each part of the batch loss and backward pass, then the optimisers."""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

from .distributed import Workers
from .precision import MixedPrecision
from .step import Losses


class Update:
    """The update of the networks that learn from one objective.

    Args:
        objective: module that gives losses by name, scalars, of which "total" is minimised; its parameters are those
            that learn, and all of them get a gradient each time.
        optimizers: of those parameters.
        workers: the processes.
        precision: the run's number formats.
        parts: number of parts of a batch, at least 1.
        clip: largest norm of the gradient; 0 for any.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        workers: Workers,
        precision: MixedPrecision,
        parts: int,
        clip: float,
    ):
        self.parameters = list(objective.parameters())
        self.objective = workers.data_parallel(objective, accumulates=parts > 1)
        self.optimizers, self.workers, self.precision = optimizers, workers, precision
        self.parts, self.clip = parts, clip

    def __call__(self, parts: Iterable[tuple[Any, ...]]) -> Losses:
        """One update. Its gradient is the mean over all parts and all processes.

        Args:
            parts: the objective's arguments for each part of the batch; taken one after another, so that a generator
                can make what a part needs when it is its turn.
        Returns:
            the losses before the update, means over the parts, detached.
        """
        for parameter in self.parameters:
            parameter.grad = None
        found: list[Losses] = []
        for number, arguments in enumerate(parts, start=1):
            # Gradients add up in this process; in the last part's backward pass they are averaged over all processes.
            with self.workers.gradient_sync(self.objective, number == self.parts):
                losses = self.objective(*arguments)
                total = losses["total"] if self.parts == 1 else losses["total"] / self.parts
                with record_function("backward"):
                    self.precision.scaler.scale(total).backward()
            found.append({name: loss.detach() for name, loss in losses.items()})
        with record_function("optimizer"):
            if self.clip:
                self._clip_gradient()
            for optimizer in self.optimizers:
                self.precision.scaler.step(optimizer)
        if self.parts == 1:
            return found[0]
        return {name: reduce(add, [part[name] for part in found]) / self.parts for name in found[0]}

    def _clip_gradient(self) -> None:
        for optimizer in self.optimizers:
            self.precision.scaler.unscale_(optimizer)
        # While fp16's loss scale settles, the gradients of one optimiser may not be finite, and its step is skipped.
        # The norm is then infinite, and clipping by it makes the other optimisers' gradients 0 instead of NaN.
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]).nan_to_num(
            torch.inf, torch.inf
        )
        nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
