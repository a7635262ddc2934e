"""Data sets and their batches.

`records` says what an image of a data set is, `datasets` which images there are, `pairs` which of them make up a batch,
`batches` what a batch is, and `loaders` how files become batches.
"""

from .batches import IMAGENET_MEAN, IMAGENET_STD, PairBatch, StreamBatch, denormalise
from .datasets import load_reid
from .loaders import PairLoader, choose_loader, evaluation_batches, pair_loader
from .pairs import PairSampler, Sample, View
from .records import Record, ReidData

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PairBatch",
    "PairLoader",
    "PairSampler",
    "Record",
    "ReidData",
    "Sample",
    "StreamBatch",
    "View",
    "choose_loader",
    "denormalise",
    "evaluation_batches",
    "load_reid",
    "pair_loader",
]
