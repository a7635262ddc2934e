"""Frozen views of networks: gradient flows through them to the images, their weights take none, their statistics
stay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm


def frozen(module: nn.Module, batch_statistics: bool = False) -> Callable[..., Any]:
    """A view of a network in eval mode with detached weights: no copy is made, and it follows the optimiser's updates.

    Args:
        module: any network; after each call its own mode is as before.
        batch_statistics: True: BatchNorm normalises by the batch it sees, the reference's setting for E_a' and the
            teacher, and leaves the running statistics alone. False: it normalises by the running statistics.
    Returns:
        a callable with the network's own signature.
    """

    weights = {name: value.detach() for name, value in module.named_parameters()}

    def call(*args: Any) -> Any:
        with evaluating(module, batch_statistics):
            return functional_call(module, weights, args)

    return call


@contextmanager
def evaluating(module: nn.Module, batch_statistics: bool) -> Iterator[None]:
    """Eval mode within the context.

    Args:
        module: any network.
        batch_statistics: whether BatchNorm normalises by the batch, updating nothing, or by its running statistics.
    """
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    if batch_statistics:
        for norm in _norms(module):
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
        module: any network.
    """
    norms = [norm for norm in _norms(module) if norm.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _norms(module: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
