"""Number formats: which one a device gets, autocast around the forward passes, the loss scale of fp16."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from dgfast.config import Precision
from dgfast.errors import UserError

from .stand_ins import cast_weights

_FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
        return torch.autocast(self.device.type, _FORMATS[self.name])

    def cast_weights(
        self, learning: Sequence[nn.Module] = (), frozen: Sequence[nn.Module] = ()
    ) -> AbstractContextManager[None]:
        """Around several forward passes between which no weight changes: their weights are cast once for all of them.

        Args:
            learning: networks whose weights take gradients.
            frozen: networks of which there are frozen views; one can be both.
        """
        return nullcontext() if self.name == "fp32" else cast_weights(_FORMATS[self.name], learning, frozen)

    @contextmanager
    def autocast_penalty(self, discriminator: nn.Module) -> Iterator[None]:
        """Around D's update, whose gradient penalty squares gradients: fp16's range is too small for that, bf16's is
        not.

        Args:
            discriminator: D; its weights are cast once for both of its passes.
        """
        if self.name == "fp16":
            yield
        else:
            with self.autocast(), self.cast_weights([discriminator]):
                yield
