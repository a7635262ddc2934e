"""Synthetic pedestrians: procedurally drawn people before six cameras, for trying everything without a data set.

Nothing here needs torch or another part of dgfast than its errors and files, so that the processes which draw start
quickly.
"""

from .dataset import VERSION, Summary, generate

__all__ = ["VERSION", "Summary", "generate"]
