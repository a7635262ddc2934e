"""What a piece of work costs, without a clock: floating-point operations and ATen calls, by network; its filters."""

import bisect
import functools
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Cost(TorchDispatchMode):
    """Counts within its context, backward passes included.

    A call belongs to the network whose forward pass is running, or whose forward pass made the node that now runs
    backwards.

    Args:
        networks: by name, those that calls are told apart by.

    Attributes:
        phase: what the caller names the work that follows.
        calls: operators that reached the dispatcher, views among them; a kernel of dgfast is one.
        views: those of them that return other tensors of the same memory.
        calls_by: the same by (phase, network, operator).
        flops: multiplications and additions of convolutions and matrix products, as torch.utils.flop_counter has them.
        flops_by: the same by (phase, network, operator).
    """

    def __init__(self, networks: Mapping[str, nn.Module] | None = None):
        super().__init__()
        self.phase = ""
        self.views = 0
        self.calls_by: Counter[tuple[str, str, str]] = Counter()
        self.flops_by: Counter[tuple[str, str, str]] = Counter()
        self._networks = dict(networks or {})
        self._hooks = []
        self._running = [""]
        # From autograd's sequence number _since[i] on, nodes of the graph belong to the network named _network[i].
        self._since, self._network = [0], [""]

    @property
    def calls(self) -> int:
        """All calls."""
        return self.calls_by.total()

    @property
    def flops(self) -> int:
        """All multiplications and additions."""
        return self.flops_by.total()

    def __enter__(self):
        for name, network in self._networks.items():
            for part in (network, getattr(network, "backbone", None)):  # which is also called by itself
                if part is not None:
                    self._hooks.append(part.register_forward_pre_hook(lambda *_, name=name: self._running.append(name)))
                    self._hooks.append(part.register_forward_hook(lambda *_: self._leave()))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        while self._hooks:
            self._hooks.pop().remove()

    def _leave(self) -> None:
        self._running.pop()

    def _at_work(self) -> str:
        node = torch._C._current_autograd_node()
        if node is None:
            return self._running[-1]
        return self._network[bisect.bisect_right(self._since, node._sequence_nr()) - 1]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        counted, name, is_view, flops = _facts(func)
        if not counted:
            return out
        network = self._at_work()
        if network != self._network[-1]:
            self._since.append(torch.autograd._get_sequence_nr() - 1)
            self._network.append(network)
        key = (self.phase, network, name)
        self.calls_by[key] += 1
        self.views += is_view
        if flops is not None:
            self.flops_by[key] += flops(*args, **kwargs, out_val=out)
        return out

    def table(self, operators: int = 5) -> str:
        """Write one line for each phase and network: GFLOP, calls, the operators that are called most.

        Args:
            operators: how many of these.
        """
        lines = []
        for part in dict.fromkeys(key[:2] for key in self.calls_by):
            flops = sum(value for key, value in self.flops_by.items() if key[:2] == part)
            calls = Counter({key[2]: value for key, value in self.calls_by.items() if key[:2] == part})
            most = ", ".join(f"{name} {value}" for name, value in calls.most_common(operators))
            lines.append(f"{part[0]:12s} {part[1]:14s} {flops / 1e9:8.1f} GFLOP {calls.total():6d} calls   {most}")
        return "\n".join([*lines, f"{'total':27s} {self.flops / 1e9:8.1f} GFLOP {self.calls:6d} calls"])


@functools.cache  # a schema takes longer to read than most operators take to call
def _facts(func: torch._ops.OpOverload) -> tuple[bool, str, bool, Callable[..., int] | None]:
    """Of an operator: whether it is counted, its name, whether it is a view, the formula of its operations."""
    operator = func._overloadpacket
    is_view = operator.__name__ == "_unsafe_view" or any(
        value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns
    )
    return func.namespace in ("aten", "dgfast"), operator.__name__, is_view, flop_registry.get(operator)


class Filters(TorchDispatchMode):
    """Notes the filter of every convolution within its context, backward passes included.

    Attributes:
        sizes: (rows, columns) of each.
        weight_gradients: number of gradients of filters.
    """

    def __init__(self):
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []
        self.weight_gradients = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operator = func._overloadpacket
        if operator is torch.ops.aten.convolution:
            self.sizes.append(tuple(args[1].shape[2:]))
        elif operator is torch.ops.aten.convolution_backward:
            self.sizes.append(tuple(args[2].shape[2:]))
            self.weight_gradients += args[10][1]
        return func(*args, **(kwargs or {}))
