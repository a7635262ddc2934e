"""Synthetic pedestrians: procedurally drawn people before six cameras, for trying everything without a data set.

Nothing here needs torch or another part of dgfast than its errors and files, so that the processes which draw start
quickly.
"""

from .dataset import VERSION, Summary, generate
from .photographs import first_photographs
from .plan import Parameters
from .truth import SwapTruths, render_truths

__all__ = ["VERSION", "Parameters", "Summary", "SwapTruths", "first_photographs", "generate", "render_truths"]
