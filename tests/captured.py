"""A stand-in for CUDA graphs on the CPU: what is captured is a list of operators with all their arguments.

As a graph does, it holds every number that the host knew while it was captured, and every tensor by its memory; Python
does not run again in a replay. An operator that would tell the host a value cannot be captured.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that bring to the host a value, or a size that depends on values; the last two make tensors of the host's
# numbers, which would be sent to the device once and for all.
WAITING = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "bincount", "histc",
    "repeat_interleave", "allclose", "lift_fresh", "lift_fresh_copy",
}  # fmt: skip


class Refusing(TorchDispatchMode):
    """Raises an error where work waits for a value of the device, or sends it one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(t.dtype == torch.bool for t in _tensors(args[1]))
        if name in WAITING or by_mask:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        return func(*args, **(kwargs or {}))


class Tape(Refusing):
    """Runs operators, and notes them.

    Attributes:
        calls: (operator, arguments, keywords, tensors that it has made) in their order.
    """

    def __init__(self):
        super().__init__()
        self.calls = []
        self._born = {}  # storages made while capturing, by address; kept, so that no address comes twice
        self._before = {}  # of all others that were written: the tensor as bytes, and its values before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        written = [
            value
            for argument, value in [*zip(func._schema.arguments, args, strict=False)]
            + [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if func.overloadpacket.__name__ == "native_batch_norm":  # writes running statistics without saying so
            written += args[3:5]
        for tensor in _tensors(written):
            self._remember(tensor)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func.namespace in ("aten", "dgfast"):
            known = {_address(t) for t in _tensors((args, kwargs))}
            made = [t for t in _tensors(out) if _address(t) not in known]
            for tensor in made:
                self._born[_address(tensor)] = tensor
            self.calls.append((func, args, kwargs, out, made))
        return out

    def _remember(self, tensor: Tensor) -> None:
        address = _address(tensor)
        if address not in self._born and address not in self._before:
            values = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            self._before[address] = values, values.clone()

    def undo(self) -> None:
        """Give back their values to all tensors that there were before."""
        for tensor, values in self._before.values():
            tensor.copy_(values)

    @torch.no_grad()
    def replay(self) -> None:
        """Run all operators again, into the same memory."""
        for func, args, kwargs, out, made in self.calls:
            again = func(*args, **kwargs)
            places = {id(t) for t in made}
            for old, new in zip(_tensors(out), _tensors(again), strict=True):
                if id(old) in places:
                    old.detach().copy_(new)


class Tapes:
    """A recorder as `dgfast.training.graphs` asks for.

    Attributes:
        asides: number of iterations that ran as they are.
        tapes: those captured.
        replays: number of replays.
    """

    def __init__(self):
        self.asides = self.replays = 0
        self.tapes: list[Tape] = []

    def aside(self, work):
        self.asides += 1
        return work()

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        state = torch.get_rng_state()
        with Tape() as tape:
            work()
        tape.undo()
        torch.set_rng_state(state)
        self.tapes.append(tape)

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay


def _tensors(values) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
