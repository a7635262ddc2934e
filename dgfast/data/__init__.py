"""Images: which ones there are (datasets), which make up a batch (pairs), how they turn into tensors (loading)."""

from dgfast.data.datasets import load_reid
from dgfast.data.loading import IMAGENET_MEAN, IMAGENET_STD, PairBatch, PairLoader, StreamBatch, denormalise
from dgfast.data.pairs import PairSampler, Sample, View
from dgfast.data.records import Record, ReidData
from dgfast.data.torchvision_loader import TorchvisionPairLoader, evaluation_batches

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
    "TorchvisionPairLoader",
    "View",
    "denormalise",
    "evaluation_batches",
    "load_reid",
]
