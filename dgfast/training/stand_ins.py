"""Other tensors in place of a network's weights, while it is called: detached ones, or ones in autocast's format.

Autocast casts every weight by itself: once a pass where the weight takes no gradient, once a context elsewhere. Within
`cast_weights` all weights of a network are cast by one operation, for every pass there is, and their gradients are
cast back by another. The bits of every cast are autocast's own.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

# Layers that hand their weights to an operation that autocast computes in its own format. Norms stay in fp32; layers
# derived from these may do anything with their weights.
_CAST = (nn.Conv2d, nn.Linear)


class Parts:
    """What is looked up in a network at every iteration.

    Args:
        module: the network.

    Attributes:
        inside: all its modules but itself, lest it keep itself alive in `_known`.
        norms: those that are BatchNorms.
        weights: its parameters.
        constants: what stands in for them in a frozen view: the same memory, without gradient; within `cast_weights`
            copies in autocast's format of those that autocast would cast.
    """

    def __init__(self, module: nn.Module):
        self.inside = [layer for layer in module.modules() if layer is not module]
        self.norms = [layer for layer in self.inside if isinstance(layer, _BatchNorm)]
        places = [
            (layer, name, weight)
            for layer in module.modules()
            for name, weight in layer._parameters.items()
            if weight is not None
        ]
        self.weights = [weight for _, _, weight in places]
        self.constants = self._detached = [weight.detach() for weight in self.weights]
        self._addresses = [weight.data_ptr() for weight in self.weights]
        self._tables = [(layer._parameters, name) for layer, name, _ in places]
        self._cast = [i for i, (layer, _, _) in enumerate(places) if type(layer) in _CAST]
        self._copies: list[Tensor] = []

    def outdated(self) -> bool:
        """Whether the weights have got other memory since, as they do with another format.

        The memory that they had cannot have gone to others: the detached ones hold it.
        """
        return [weight.data_ptr() for weight in self.weights] != self._addresses

    @property
    def present(self) -> list[Any]:
        """What the network computes with now, one tensor for each of `weights`."""
        return [table[name] for table, name in self._tables]

    @contextmanager
    def standing_in(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Within the context, the network computes with other tensors.

        Args:
            tensors: one for each of `weights`.
        """
        before = self.present
        self._put(tensors)
        try:
            yield
        finally:
            self._put(before)

    def _put(self, tensors: Sequence[Any]) -> None:
        # Past nn.Module.__setattr__, whose checks take longer than the small kernels of a GPU.
        for (table, name), tensor in zip(self._tables, tensors, strict=True):
            table[name] = tensor

    @contextmanager
    def cast_constants(self, dtype: torch.dtype) -> Iterator[None]:
        """Within the context, frozen views compute with copies in another format.

        Args:
            dtype: the format.
        """
        originals = [self._detached[i] for i in self._cast]
        if not self._copies or self._copies[0].dtype != dtype or self._copies[0].device != originals[0].device:
            self._copies = [torch.empty_like(weight, dtype=dtype) for weight in originals]
        # Always anew: nothing tells reliably whether an optimiser has been here since.
        torch._foreach_copy_(self._copies, originals)
        self.constants = self._with(self._detached, self._copies)
        try:
            yield
        finally:
            self.constants = self._detached

    @contextmanager
    def cast(self, dtype: torch.dtype) -> Iterator[None]:
        """Within the context, the network computes with copies in another format, and learns through them.

        Args:
            dtype: the format.
        """
        copies = _Cast.apply(dtype, *[self.weights[i] for i in self._cast])
        with self.standing_in(self._with(self.weights, copies)):
            yield

    def _with(self, tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> list[Tensor]:
        merged = list(tensors)
        for i, copy in zip(self._cast, copies, strict=True):
            merged[i] = copy
        return merged


class _Cast(Function):
    """All weights to copies in another format by one operation, and their gradients back by another."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        # The backward pass takes up the newest of all nodes that are ready, and this one is older than all that need
        # it. Called the newest, it runs as soon as it can, and what awaits the gradients need not wait for the rest.
        ctx._set_sequence_nr(2**62)
        return _copied(weights, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        cast = iter(_copied([g for g in gradients if g is not None], torch.float32))
        return None, *(None if g is None else next(cast) for g in gradients)


def _copied(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    torch._foreach_copy_(copies, tuple(tensors))
    return copies


_known: WeakKeyDictionary[nn.Module, Parts] = WeakKeyDictionary()


def parts_of(module: nn.Module) -> Parts:
    """The parts of a network, found once: its modules and parameters must not be replaced by others.

    Its memory may be: the next call notices.

    Args:
        module: any network that is no layer itself.
    """
    parts = _known.get(module)
    if parts is None or parts.outdated():
        parts = _known[module] = Parts(module)
    return parts


@contextmanager
def cast_weights(dtype: torch.dtype, learning: Sequence[nn.Module], frozen: Sequence[nn.Module]) -> Iterator[None]:
    """Within the context, networks compute with copies of their weights in autocast's format, made at its beginning.

    No weight may change before the last pass: an optimiser may step behind it, as the weights themselves stay.

    Args:
        dtype: autocast's format.
        learning: networks whose weights take gradients through the copies, however many backward passes there are.
        frozen: networks of which there are frozen views.
    """
    with ExitStack() as within:
        for network in frozen:
            within.enter_context(parts_of(network).cast_constants(dtype))
        for network in learning:
            within.enter_context(parts_of(network).cast(dtype))
        yield
