"""Data sets and their batches: which images there are (datasets), which of them make up a batch (pairs), and how they
become tensors (batches, loaders)."""

from .batches import IMAGENET_MEAN, IMAGENET_STD, PairBatch, PairLoader, StreamBatch, denormalise
from .datasets import load_reid
from .loaders import choose_loader, evaluation_batches, pair_loader
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
