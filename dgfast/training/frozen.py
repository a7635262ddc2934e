"""Frozen views of networks: gradient flows through them to the images, their weights take none, their statistics
stay."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from .stand_ins import Parts, parts_of


def frozen(
    module: nn.Module, batch_statistics: bool = False, call: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """A view of a network in eval mode with detached weights: it follows the optimiser's updates.

    Args:
        module: any network that is no layer itself; after each call its own mode is as before.
        batch_statistics: True: BatchNorm normalises by the batch it sees, the reference's setting for E_a' and the
            teacher, and leaves the running statistics alone. False: it normalises by the running statistics.
        call: a method of the network to be called in its place.
    Returns:
        a callable with the signature of the network, or of `call`.
    """
    called = call or module

    def view(*args: Any) -> Any:
        parts = parts_of(module)
        with evaluating(module, batch_statistics), parts.standing_in(parts.constants):
            return called(*args)

    return view


@contextmanager
def evaluating(module: nn.Module, batch_statistics: bool) -> Iterator[None]:
    """Eval mode within the context.

    Args:
        module: any network that is no layer itself.
        batch_statistics: whether BatchNorm normalises by the batch, updating nothing, or by its running statistics.
    """
    parts = parts_of(module)
    # Past nn.Module.__setattr__, whose checks take longer than the small kernels of a GPU.
    settings = [vars(layer) for layer in (module, *parts.inside)]
    modes = [values["training"] for values in settings]
    for values in settings:
        values["training"] = False
    if batch_statistics:
        for norm in parts.norms:
            vars(norm)["training"] = True
    try:
        with _untracked(parts):
            yield
    finally:
        for values, mode in zip(settings, modes, strict=True):
            values["training"] = mode


@contextmanager
def counted_together(module: nn.Module) -> Iterator[None]:
    """Within the context, one BatchNorm of a network counts its batches for all; at the end they have the same counts.

    A count is a number on the device, and so each one by itself is a launch a pass.

    Args:
        module: any network that is no layer itself; its BatchNorms meet the same number of batches.
    """
    counting = [norm for norm in parts_of(module).norms if norm.training]
    counts = [norm.num_batches_tracked for norm in counting if norm.num_batches_tracked is not None]
    if len(counts) < 2 or len(counts) < len(counting):
        yield
        return
    before = counts[0].clone()
    # Past nn.Module.__setattr__, as above.
    for norm in counting[1:]:
        norm._buffers["num_batches_tracked"] = None
    try:
        yield
    finally:
        for norm, count in zip(counting, counts, strict=True):
            norm._buffers["num_batches_tracked"] = count
    # As a list, since torch would ask the device for the value of a single number.
    torch._foreach_add_(counts[1:], [counts[0] - before] * len(counts[1:]))


def untracked(module: nn.Module) -> AbstractContextManager[None]:
    """Within the context, BatchNorm in training mode leaves its running statistics alone.

    Args:
        module: any network that is no layer itself.
    """
    return _untracked(parts_of(module))


@contextmanager
def _untracked(parts: Parts) -> Iterator[None]:
    settings = [vars(norm) for norm in parts.norms if norm.training]
    for values in settings:
        values["track_running_stats"] = False
    try:
        yield
    finally:
        for values in settings:
            values["track_running_stats"] = True
