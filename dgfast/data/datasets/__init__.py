"""Data sets on disk: how each kind is laid out (`layouts`), which images can be decoded (`check`), both (`load`); what
tells one training set from another (`fingerprint`)."""

from .check import default_cache_dir
from .fingerprint import describe
from .load import load_reid

__all__ = ["default_cache_dir", "describe", "load_reid"]
