"""Synthetic pedestrians: procedurally drawn people before six cameras, for trying everything without a data set."""

from .dataset import Summary, generate

__all__ = ["Summary", "generate"]
