"""What both loaders of training batches share: arguments, replacing unreadable files, counting what was delivered."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self, get_args

import torch
from torch import Tensor

from dgfast.config import CacheName
from dgfast.data.batches import PairBatch, class_indices, pair_batch
from dgfast.data.loaders.encoded import EncodedImages, log_unreadable, memory_limit
from dgfast.data.pairs import PairSampler, Streams, views_of
from dgfast.data.records import Record


class PairLoader(ABC):
    """An endless iterator of training batches, in the order of their iterations.

    What a batch holds depends on its iteration alone, so a run is resumed exactly by starting at the first iteration
    that it has not trained on, with either loader.

    A file that cannot be read any more is replaced by the next image of the same identity that can. It is named in the
    log once. The batch's `label` and `index` stay those of the sample.

    Args:
        records: the training images; `sampler` was made from their identities, in this order.
        sampler: which images make up a batch, and their views.
        workers: DALI's threads on the CPU, or torchvision's processes.
        prefetch: batches prepared ahead, at least 1 (torchvision: by each of its processes).
        start_iteration: the first iteration to deliver.
        cache: "ram" reads all files once, before the first batch, and keeps their bytes, if they take no more than half
            of the memory that is available; "none" reads them from disk for every batch.
        device: where batches are delivered.
    Raises:
        ValueError: the sampler's number of images differs, or there is no such cache.
    """

    unreadable: dict[Path, str]
    """The files that other images have replaced, with the reason."""

    def __init__(
        self,
        records: Sequence[Record],
        sampler: PairSampler,
        *,
        workers: int,
        prefetch: int = 2,
        start_iteration: int = 0,
        cache: CacheName = "none",
        device: torch.device | str = "cpu",
    ):
        if len(records) != sampler.epoch_length:
            raise ValueError(f"{len(records)} records; expected the sampler's {sampler.epoch_length}")
        if cache not in get_args(CacheName):
            raise ValueError(f"cache {cache!r}; expected one of {get_args(CacheName)}")
        self.unreadable = {}
        self._paths = [r.path for r in records]
        self._images = EncodedImages(self._paths, sampler.image_size, sampler.same_identity)
        self._classes = class_indices(records)
        self._sampler = sampler
        self._workers = workers
        self._prefetch = prefetch
        self._iteration = start_iteration  # the next one to deliver, whatever has been prepared ahead
        self._to_be_cached = cache == "ram"
        self._device = torch.device(device)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> PairBatch:
        """The batch of the next iteration.

        Raises:
            UserError: not one image of an identity can be read.
        """
        if self._to_be_cached:
            self._images.keep_in_memory(memory_limit(self._sampler.world_size), threads=max(1, self._workers))
            self._to_be_cached = False
        images, erased, streams = self._next()
        log_unreadable(self._images.unreadable, self.unreadable)
        self._iteration += 1
        return pair_batch(images, erased, streams, self._classes)

    @abstractmethod
    def _next(self) -> tuple[Tensor, Tensor, Streams]:
        """The pictures of iteration `_iteration`, the same with their rectangles erased, and the samples.

        Both are [4 N, 3, H, W] float32 in channels_last, normalised, on `_device`, in the order of `pairs.views_of`.
        """

    def images_of(self, iteration: int) -> list[Path]:
        """The files of an iteration's pictures, each once; without regard to those that were replaced.

        Args:
            iteration: any.
        """
        views = views_of(self._sampler.batch(iteration))
        return list(dict.fromkeys(self._paths[index] for index, _ in views))

    @abstractmethod
    def close(self) -> None:
        """End threads and processes; may be called again. The next batch starts new ones."""
