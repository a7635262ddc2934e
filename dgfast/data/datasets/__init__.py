"""Data sets on disk: how each kind is laid out (`layouts`), which images can be decoded (`check`), both (`load`)."""

from .check import default_cache_dir
from .load import load_reid

__all__ = ["default_cache_dir", "load_reid"]
