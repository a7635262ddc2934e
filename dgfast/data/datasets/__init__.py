"""Data sets on disk: how each kind is laid out (layouts), which of its images can be decoded (check), both together
(load)."""

from .check import Index, check_images, default_cache_dir
from .load import load_reid

__all__ = ["Index", "check_images", "default_cache_dir", "load_reid"]
