"""From image files to batches on the device: with DALI or with torchvision's DataLoader and Pillow, as choose says.

Both read files through encoded, so that damaged and unusual images mean the same to either.
"""

from .choose import LoaderName, choose_loader, evaluation_batches, pair_loader

__all__ = ["LoaderName", "choose_loader", "evaluation_batches", "pair_loader"]
