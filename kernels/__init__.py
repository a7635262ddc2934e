"""Fused operations, one file each, installed as dgfast.kernels; they know nothing of the rest of dgfast."""

from ._dispatch import fallbacks
from .adaptive_norm import adain
from .border import reflect
from .l1_kl import l1_kl_loss
from .layer_norm import layer_norm

__all__ = ["adain", "fallbacks", "l1_kl_loss", "layer_norm", "reflect"]
