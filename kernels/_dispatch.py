"""Fused or eager: the one place where an operation decides which way it takes, and where the reasons are counted."""

from collections import Counter
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # what the kernels read and write

# Whether the kernels run in Triton's interpreter, on the CPU, as the tests have it. Triton settles this when a kernel
# is defined, so it is read once, here, before any is.
INTERPRETED = triton.knobs.runtime.interpret

_counts: Counter[str] = Counter()


def fallbacks() -> dict[str, int]:
    """Count why inputs took a slower way than the kernels, or were converted before them, in this process.

    In a graph made by `torch.compile`, conversions of a layout are counted at each call. The choice of the eager path
    is made while tracing and is not counted at all.

    Returns:
        The number of times by "operation: reason"; empty if every call went straight to its kernel.
    """
    return dict(_counts)


def count(operation: str, reason: str) -> None:
    """Add one to a reason of `fallbacks`.

    Args:
        operation: its name.
        reason: what happened, in a few words.
    """
    if not torch.compiler.is_compiling():
        _counts[f"{operation}: {reason}"] += 1


def takes_triton(operation: str, impl: str, tensors: Sequence[Tensor], reason: str | None = None) -> bool:
    """Decide whether a call takes the kernels; if `impl` leaves the choice and they do not apply, count why.

    Args:
        operation: its name.
        impl: "triton", "eager", or "auto": Triton wherever the kernels apply.
        tensors: all inputs of the call.
        reason: what the operation itself has against these inputs, beyond what every kernel requires (`obstacle`).

    Returns:
        True for the kernels, False for the eager reference.

    Raises:
        ValueError: an unknown `impl`, or "triton" where the kernels do not apply.
    """
    if impl == "eager":
        return False
    if impl not in ("auto", "triton"):
        raise ValueError(f"{operation}: impl is {impl!r}, expected 'auto', 'triton' or 'eager'")
    reason = obstacle(tensors, any_device=impl == "triton" and INTERPRETED) or reason
    if reason is None:
        return True
    if impl == "triton":
        raise ValueError(f"{operation}: impl='triton' does not apply: {reason}; use impl='auto'")
    count(operation, reason)
    return False


def on_device_of(x: Tensor) -> torch.cuda.device:
    """Make the device of a tensor the current one, on which Triton launches, within the context.

    Args:
        x: a tensor that the kernel takes; one on the CPU, as the interpreter takes it, changes nothing.
    """
    return torch.cuda.device(x.device if x.is_cuda else -1)


def obstacle(tensors: Sequence[Tensor], any_device: bool) -> str | None:
    """Name what keeps every kernel from these tensors.

    Args:
        tensors: all inputs of a call, at least one.
        any_device: do not insist on a GPU, as in the interpreter.

    Returns:
        The first reason found, or None.
    """
    device = tensors[0].device
    if not any_device and not tensors[0].is_cuda:
        return f"tensor on the {device.type}"
    if any(x.device != device for x in tensors):
        return "tensors on several devices"
    for x in tensors:
        if x.dtype not in FLOATS:
            return f"dtype {x.dtype}"
    # Not asked of the fake tensors of a machine without a GPU.
    if device.type == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_properties(device).major < 8:
        return "a GPU below compute capability 8.0"
    return None
