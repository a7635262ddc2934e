"""Frozen views of networks: gradient flows through them to the images, their weights take none, their statistics
stay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm


class _Parts(NamedTuple):
    """What is looked up in a network at every iteration."""

    inside: list[nn.Module]  # all its modules but itself, lest it keep itself alive in `_known`
    norms: list[_BatchNorm]
    weights: list[nn.Parameter]
    detached: dict[str, Tensor]  # the weights' memory under their names, without gradient


_known: WeakKeyDictionary[nn.Module, _Parts] = WeakKeyDictionary()


def _parts(module: nn.Module) -> _Parts:
    """The parts of a network, found once: its modules and parameters must not be replaced by others.

    Its memory may be: the next call notices.
    """
    parts = _known.get(module)
    if parts is None or any(
        w.data_ptr() != d.data_ptr() or w.dtype != d.dtype
        for w, d in zip(parts.weights, parts.detached.values(), strict=True)
    ):
        inside = [layer for layer in module.modules() if layer is not module]
        named = dict(module.named_parameters())
        parts = _known[module] = _Parts(
            inside,
            [layer for layer in inside if isinstance(layer, _BatchNorm)],
            list(named.values()),
            {name: weight.detach() for name, weight in named.items()},
        )
    return parts


def frozen(module: nn.Module, batch_statistics: bool = False) -> Callable[..., Any]:
    """A view of a network in eval mode with detached weights: no copy is made, and it follows the optimiser's updates.

    Args:
        module: any network that is no layer itself; after each call its own mode is as before.
        batch_statistics: True: BatchNorm normalises by the batch it sees, the reference's setting for E_a' and the
            teacher, and leaves the running statistics alone. False: it normalises by the running statistics.
    Returns:
        a callable with the network's own signature.
    """

    def call(*args: Any) -> Any:
        parts = _parts(module)
        with evaluating(module, batch_statistics):
            if not any(weight.requires_grad for weight in parts.weights):
                return module(*args)
            return functional_call(module, parts.detached, args)

    return call


@contextmanager
def evaluating(module: nn.Module, batch_statistics: bool) -> Iterator[None]:
    """Eval mode within the context.

    Args:
        module: any network that is no layer itself.
        batch_statistics: whether BatchNorm normalises by the batch, updating nothing, or by its running statistics.
    """
    parts = _parts(module)
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
    norms = [norm for norm in _parts(module).norms if norm.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
