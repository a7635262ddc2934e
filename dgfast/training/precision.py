"""Number formats: which one a device gets, autocast around the forward passes, the loss scale of fp16."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.amp.grad_scaler import GradScaler

from dgfast.config import Precision
from dgfast.errors import UserError


def allow_tf32(allowed: bool) -> None:
    """Say whether this process lets fp32 products on a GPU round to TF32; torch alone would let convolutions do so.

    Args:
        allowed: of matrix products and convolutions alike.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


class MixedPrecision:
    """Autocast and loss scaling of one run.

    Args:
        name: fp32, bf16, fp16, or auto: bf16 where a GPU computes in it, else fp32.
        device: where the networks are.
        tf32: let fp32 matrix products on a GPU round to TF32.
    Raises:
        UserError: bf16 on a GPU that has none.
    """

    def __init__(self, name: Precision, device: torch.device, tf32: bool):
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        if name == "auto":
            name = "bf16" if bf16 else "fp32"
        if name == "bf16" and device.type == "cuda" and not bf16:
            raise UserError(f"{torch.cuda.get_device_name(device)} has no bf16; use --precision fp16 or fp32")
        self.name = name
        self.device = device
        allow_tf32(tf32)
        self.scaler = GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager:
        """Around forward passes; fp32 needs none."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.name == "bf16" else torch.float16)

    def autocast_penalty(self) -> AbstractContextManager:
        """Around D's update, whose gradient penalty squares gradients: fp16's range is too small for that, bf16's is
        not."""
        return nullcontext() if self.name == "fp16" else self.autocast()
