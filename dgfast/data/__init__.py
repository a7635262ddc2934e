"""Images: what a data set has (datasets), which of them make up a batch (pairs), how they turn into tensors (loading).

Names are loaded when first used: the processes that draw synthetic pedestrians import this package and need no torch.
"""

import importlib
from typing import Any

_MODULE_OF = {
    "load_reid": "datasets",
    "IMAGENET_MEAN": "loading",
    "IMAGENET_STD": "loading",
    "PairBatch": "loading",
    "PairLoader": "loading",
    "StreamBatch": "loading",
    "denormalise": "loading",
    "PairSampler": "pairs",
    "Sample": "pairs",
    "View": "pairs",
    "Record": "records",
    "ReidData": "records",
    "choose": "loaders",
    "evaluation_batches": "loaders",
    "pair_loader": "loaders",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
