"""Batches decoded and resized by Pillow, as torchvision's transforms do on PIL images: for training and for evaluation.

An image is resized to H x W (bicubic with antialiasing) and only then mirrored: the bicubic filter is symmetric, so
this equals mirroring first up to rounding.
"""

import functools
import itertools
import math
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dgfast.data.batches import PairBatch, class_indices, erase, normalise, pair_batch
from dgfast.data.loaders.encoded import EncodedImages, memory_limit, report, resized, unreadable_error
from dgfast.data.loaders.image import UnreadableImage, read_bytes
from dgfast.data.pairs import PairSampler, Sample, View, views_of
from dgfast.data.records import Record
from dgfast.errors import UserError


class TorchvisionPairLoader:
    """An endless iterator of `PairBatch` (see `batches.PairLoader`), starting at `start_iteration`.

    A file that cannot be read although the index found it sound is replaced by the next image of the same identity that
    can; it is logged once, by name, and counted in `unreadable`. `label` and `index` stay those of the sample.

    Args:
        records: the training images; `sampler` was made from their identities, in this order.
        sampler: which images make up a batch, and their views.
        workers: processes that prepare batches; 0 prepares them in the calling process.
        prefetch: batches that each worker prepares ahead, at least 1.
        start_iteration: the first iteration to deliver.
        cache: "ram" reads all files once, at the first batch, and keeps their bytes, which the workers share, if they
            take no more than half of the memory that is available.
        device: where batches are delivered. Images travel there as uint8, from pinned memory for a CUDA device, and are
            normalised there.

    Raises:
        ValueError: the sampler's number of images differs.
        UserError: not one image of an identity can be read (while iterating).
    """

    def __init__(
        self,
        records: Sequence[Record],
        sampler: PairSampler,
        *,
        workers: int,
        prefetch: int = 2,
        start_iteration: int = 0,
        cache: Literal["ram", "none"] = "none",
        device: torch.device | str = "cpu",
    ):
        if len(records) != sampler.epoch_length:
            raise ValueError(f"{len(records)} records; expected the sampler's {sampler.epoch_length}")
        if cache not in ("ram", "none"):
            raise ValueError(f"cache {cache!r}; expected 'ram' or 'none'")
        self.unreadable: dict[Path, str] = {}
        self._images = EncodedImages([r.path for r in records], sampler.image_size, sampler.same_identity)
        self._batches = _Batches(self._images, sampler)
        self._classes = class_indices(records)
        self._sampler = sampler
        self._cache = cache
        self._workers = workers
        self._prefetch = prefetch
        self._device = torch.device(device)
        self._position = start_iteration * sampler.global_batch
        self._prepared: Iterator[_RawBatch | UserError] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> PairBatch:
        if self._prepared is None:
            self._prepared = self._prepare()
        raw = next(self._prepared)
        if isinstance(raw, UserError):
            raise raw
        report(raw.unreadable, self.unreadable)
        self._position += self._sampler.global_batch
        images = _delivered(raw.images, self._device)
        erased = erase(images, [view.erase for _, view in views_of(raw.streams)])
        return pair_batch(images, erased, raw.streams, self._classes)

    def state_dict(self) -> dict[str, int]:
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Ends the workers; iterating again starts new ones at the next batch."""
        self._prepared = None  # the DataLoader's iterator stops and joins its workers when it is released

    def _prepare(self) -> "Iterator[_RawBatch | UserError]":
        if self._cache == "ram":
            self._images.keep_in_memory(memory_limit(self._sampler.world_size), threads=max(1, self._workers))
        positions = _Positions(self._position, self._sampler.global_batch)
        return iter(_data_loader(self._batches, self._workers, self._prefetch, sampler=positions))


def evaluation_batches(
    records: Sequence[Record],
    image_size: tuple[int, int],
    batch: int,
    *,
    workers: int,
    prefetch: int = 2,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, int]]:
    """All images in order, resized (bicubic) and normalised, in batches of which the last may be smaller.

    Yields:
        (images, start): `[N, 3, H, W]` float32 in channels_last on `device`; the first one is `records[start]`.

    Raises:
        UserError: a file cannot be read: leaving it out would change the figures.
    """
    batches = _EvaluationBatches([record.path for record in records], image_size, batch)
    for number, raw in enumerate(_data_loader(batches, workers, prefetch)):
        if isinstance(raw, UserError):
            raise raw
        yield _delivered(raw, torch.device(device)), number * batch


def _data_loader(batches: Dataset, workers: int, prefetch: int, sampler: "_Positions | None" = None) -> DataLoader:
    return DataLoader(
        batches,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=functools.partial(_start_worker, os.getpid()),
        generator=torch.Generator(),  # else starting the loader would advance the caller's random state
    )


def _delivered(images: Tensor, device: torch.device) -> Tensor:
    """`[N, H, W, 3]` uint8 -> `[N, 3, H, W]`, normalised, on the device."""
    if device.type == "cuda":
        images = images.pin_memory()
    return normalise(images.to(device, non_blocking=True))


@dataclass
class _RawBatch:
    """What a worker hands over. `images` `[4 N, H, W, 3]` uint8, in the order of `pairs.views_of`."""

    images: Tensor
    streams: tuple[list[Sample], list[Sample]]
    unreadable: dict[Path, str]


class _Batches(Dataset):
    """Position -> the batch. A UserError is returned: raised in a worker it would arrive as a traceback."""

    def __init__(self, images: EncodedImages, sampler: PairSampler):
        self._images = images
        self._sampler = sampler

    def __getitem__(self, position: int) -> _RawBatch | UserError:
        streams = self._sampler.batch_at(position)
        pixels = np.empty((4 * self._sampler.batch_size, *self._sampler.image_size, 3), np.uint8)
        try:
            for out, (index, view) in zip(pixels, views_of(streams), strict=True):
                _augment(self._decode(index), view, self._sampler.pad, out)
        except UserError as error:
            return error
        return _RawBatch(torch.from_numpy(pixels), streams, dict(self._images.unreadable))

    def _decode(self, index: int) -> np.ndarray:
        while True:
            found, encoded = self._images.read(index)
            try:
                return np.asarray(resized(encoded, self._sampler.image_size))
            except UnreadableImage as error:
                self._images.give_up(found, str(error))


class _EvaluationBatches(Dataset):
    """Batch number -> `[N, H, W, 3]` uint8."""

    def __init__(self, paths: list[Path], image_size: tuple[int, int], batch: int):
        self._paths = paths
        self._image_size = tuple(image_size)
        self._batch = batch

    def __len__(self) -> int:
        return math.ceil(len(self._paths) / self._batch)

    def __getitem__(self, number: int) -> Tensor | UserError:
        paths = self._paths[number * self._batch : (number + 1) * self._batch]
        images = np.empty((len(paths), *self._image_size, 3), np.uint8)
        for out, path in zip(images, paths, strict=True):
            try:
                out[:] = resized(read_bytes(path), self._image_size)
            except UnreadableImage as error:
                return unreadable_error(path, str(error))
        return torch.from_numpy(images)


class _Positions:
    """`first`, `first + step`, ... without end: what a DataLoader takes as its sampler."""

    def __init__(self, first: int, step: int):
        self._first = first
        self._step = step

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._first, self._step)


def _augment(image: np.ndarray, view: View, pad: int, out: np.ndarray) -> None:
    """Writes the view of `image` into `out`, `[H, W, 3]` uint8: mirror, edge padding and crop in one choice."""
    height, width, _ = image.shape
    rows = np.clip(np.arange(view.top - pad, view.top - pad + height), 0, height - 1)
    columns = np.clip(np.arange(view.left - pad, view.left - pad + width), 0, width - 1)
    if view.mirror:
        columns = width - 1 - columns
    # mode="clip" (the indices are within bounds) lets numpy write straight into `out`.
    np.take(image[rows], columns, axis=1, out=out, mode="clip")


def _start_worker(consumer: int, _: int) -> None:
    """Ctrl-C is for the consumer, which then ends its workers. (The DataLoader gives each one torch thread.)"""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != consumer:  # killed before this process came up: only from now on does torch notice
        os._exit(1)
