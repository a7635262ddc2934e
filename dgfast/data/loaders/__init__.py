"""From image files to batches on the device: with DALI, or with torch's DataLoader and Pillow; `choose` says which.

What both share is in `base` and `encoded`; damaged and unusual files mean the same to either.
"""

from .base import PairLoader
from .choose import choose_loader, evaluation_batches, pair_loader

__all__ = ["PairLoader", "choose_loader", "evaluation_batches", "pair_loader"]
