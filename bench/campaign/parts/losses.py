"""Part 2: the combined loss and the border."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from dgfast.kernels import reflect
from torch import Tensor

from tests.interpreted import l1_kl_cases

from ..record import Record
from .common import DEVICE


def losses(record: Record) -> None:
    """The cases of tests/interpreted/l1_kl_cases.py with tensors of the device, and the border differentiated twice."""
    made = l1_kl_cases.made
    calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = [
        (l1_kl_cases.test_strides, ()),
        (l1_kl_cases.test_divergence_of_extreme_logits, ()),
        (l1_kl_cases.test_logits_of_any_strides, ()),
        (l1_kl_cases.test_fp16_gradients_survive_a_small_weight, ()),
        *((l1_kl_cases.test_a_step, (*way, last)) for way in l1_kl_cases.TOLERANCES for last in (False, True)),
        *((l1_kl_cases.test_ready_labels, (mass,)) for mass in (1.0, 0.4)),
        *((l1_kl_cases.test_divergence, (classes, views)) for classes in (1, 513, 10_000) for views in (1, 2)),
    ]
    if record.dry_run:
        calls = [calls[0], calls[4], calls[10]]
        record.left_out("most cases of the loss; tests/test_l1_kl.py runs them in the interpreter")
    else:
        calls += [(l1_kl_cases.test_offset_data, ()), (l1_kl_cases.test_equal_calls_give_equal_bits, ())]
    with mock.patch.object(l1_kl_cases, "made", lambda *a, **k: made(*a, **k).to(DEVICE)):
        for case, arguments in calls:
            words = ", ".join(map(str, arguments))
            try:
                case(*arguments)
            except AssertionError as error:
                record.holds(f"{case.__name__}({words})", False, str(error)[:300])
            else:
                record.holds(f"{case.__name__}({words})", True)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        record.check(f"border twice differentiated, {dtype}", _border_error(dtype), tolerance)


def _border_error(dtype: torch.dtype) -> float:
    """Largest error of a second derivative through a border, as a share of its largest value."""
    x = torch.randn(2, 5, 9, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.randn(2, 5, 15, 13, generator=torch.Generator().manual_seed(1)).to(dtype)

    def second(pad: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
        x = x.requires_grad_()
        (first,) = torch.autograd.grad((pad(x) ** 3 * weight).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), x)[0]

    placed = x.to(DEVICE, memory_format=torch.channels_last)
    found = second(lambda t: reflect(t, 3), placed.clone(), weight.to(DEVICE)).double().cpu()
    expected = second(lambda t: F.pad(t, (3,) * 4, mode="reflect"), x.double(), weight.double())
    return float((found - expected).abs().max() / expected.abs().max())
