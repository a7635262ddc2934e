"""Fused operations, one file each; they know nothing of the rest of dgfast."""

from .adain import adain, layer_norm

__all__ = ["adain", "layer_norm"]
