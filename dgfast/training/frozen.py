"""Frozen views of networks: gradient flows through them to the images, their weights take none, their statistics
stay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .stand_ins import parts_of


def frozen(module: nn.Module, batch_statistics: bool = False) -> Callable[..., Any]:
    """A view of a network in eval mode with detached weights: it follows the optimiser's updates.

    Args:
        module: any network that is no layer itself; after each call its own mode is as before.
        batch_statistics: True: BatchNorm normalises by the batch it sees, the reference's setting for E_a' and the
            teacher, and leaves the running statistics alone. False: it normalises by the running statistics.
    Returns:
        a callable with the network's own signature.
    """

    def call(*args: Any) -> Any:
        parts = parts_of(module)
        with evaluating(module, batch_statistics), parts.standing_in(parts.constants):
            return module(*args)

    return call


@contextmanager
def evaluating(module: nn.Module, batch_statistics: bool) -> Iterator[None]:
    """Eval mode within the context.

    Args:
        module: any network that is no layer itself.
        batch_statistics: whether BatchNorm normalises by the batch, updating nothing, or by its running statistics.
    """
    parts = parts_of(module)
    modes = [(layer, layer.training) for layer in (module, *parts.inside)]
    for layer, _ in modes:
        layer.training = False
    if batch_statistics:
        for norm in parts.norms:
            norm.training = True
    try:
        with untracked(module):
            yield
    finally:
        for layer, mode in modes:
            layer.training = mode


@contextmanager
def untracked(module: nn.Module) -> Iterator[None]:
    """Within the context, BatchNorm in training mode leaves its running statistics alone.

    Args:
        module: any network that is no layer itself.
    """
    norms = [norm for norm in parts_of(module).norms if norm.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
