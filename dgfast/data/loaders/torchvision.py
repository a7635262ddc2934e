"""Batches decoded and resized by Pillow, as torchvision's transforms do on PIL images: for training and for evaluation.

An image is resized to H x W (bicubic with antialiasing) and only then mirrored: the bicubic filter is symmetric, so
this equals mirroring first up to rounding.
"""

import functools
import itertools
import math
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dgfast.data.batches import erase, normalise
from dgfast.data.loaders.base import PairLoader
from dgfast.data.loaders.encoded import EncodedImages, resized, unreadable_error
from dgfast.data.loaders.image import UnreadableImage, read_bytes
from dgfast.data.pairs import PairSampler, Streams, View, views_of
from dgfast.data.records import Record
from dgfast.errors import UserError

_EVALUATION_PREFETCH = 2  # batches that each worker prepares ahead


class TorchvisionPairLoader(PairLoader):
    """A `PairLoader` on Pillow and torch's DataLoader; `workers` are processes, 0 prepares batches in the calling one.

    Processes share the bytes that `cache="ram"` keeps. Images travel to the device as uint8, from pinned memory if it
    is a GPU, and are normalised and erased there.
    """

    _prepared: "Iterator[_RawBatch | UserError] | None" = None

    def _next(self) -> tuple[Tensor, Tensor, Streams]:
        if self._prepared is None:
            batches = _Batches(self._images, self._sampler)
            iterations = itertools.count(self._iteration)
            self._prepared = iter(_data_loader(batches, self._workers, self._prefetch, sampler=iterations))
        raw = next(self._prepared)
        if isinstance(raw, UserError):
            raise raw
        self._images.unreadable.update(raw.unreadable)
        images = _delivered(raw.images, self._device)
        return images, erase(images, [view.erase for _, view in views_of(raw.streams)]), raw.streams

    def close(self) -> None:
        """End the processes; may be called again. The next batch starts new ones."""
        self._prepared = None  # the DataLoader's iterator stops its workers and waits for them when it is released


def evaluation_batches(
    records: Sequence[Record],
    image_size: tuple[int, int],
    batch: int,
    *,
    workers: int,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, int]]:
    """What `choose.evaluation_batches` promises, by Pillow, in processes of a DataLoader.

    Args:
        records: the images.
        image_size: (height, width), pixels.
        batch: images of a batch, N.
        workers: processes; 0: in this one.
        device: where batches are delivered.
    Yields:
        (images, start): [N, 3, H, W] float32, and the place of the first image in `records`.
    Raises:
        UserError: a file cannot be read.
    """
    batches = _EvaluationBatches([record.path for record in records], image_size, batch)
    for number, raw in enumerate(_data_loader(batches, workers, _EVALUATION_PREFETCH)):
        if isinstance(raw, UserError):
            raise raw
        yield _delivered(raw, torch.device(device)), number * batch


def _data_loader(batches: Dataset, workers: int, prefetch: int, sampler: Iterable[int] | None = None) -> DataLoader:
    return DataLoader(
        batches,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=functools.partial(_start_worker, os.getpid()),
        generator=torch.Generator(),  # without one of its own, the loader would advance the caller's random state
    )


def _delivered(images: Tensor, device: torch.device) -> Tensor:
    """[N, H, W, 3] uint8 on the CPU -> [N, 3, H, W] float32, normalised, on the device."""
    if device.type == "cuda":
        images = images.pin_memory()
    return normalise(images.to(device, non_blocking=True))


@dataclass
class _RawBatch:
    """What a worker hands over."""

    images: Tensor
    """[4 N, H, W, 3] uint8, in the order of `pairs.views_of`."""
    streams: Streams
    """The samples."""
    unreadable: dict[Path, str]
    """The files that this worker could not read so far, with the reason."""


class _Batches(Dataset):
    """Iteration -> the batch. A UserError is returned: raised in a worker it would arrive as a traceback."""

    def __init__(self, images: EncodedImages, sampler: PairSampler):
        self._images = images
        self._sampler = sampler

    def __getitem__(self, iteration: int) -> _RawBatch | UserError:
        streams = self._sampler.batch(iteration)
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
    """Number of the batch -> [N, H, W, 3] uint8."""

    def __init__(self, paths: list[Path], image_size: tuple[int, int], batch: int):
        self._paths = paths
        self._image_size = image_size
        self._batch = batch

    def __len__(self) -> int:
        return math.ceil(len(self._paths) / self._batch)

    def __getitem__(self, number: int) -> Tensor | UserError:
        paths = self._paths[number * self._batch : (number + 1) * self._batch]
        images = np.empty((len(paths), *self._image_size, 3), np.uint8)
        for out, path in zip(images, paths, strict=True):
            try:
                out[:] = np.asarray(resized(read_bytes(path), self._image_size))
            except UnreadableImage as error:
                return unreadable_error(path, str(error))
        return torch.from_numpy(images)


def _augment(image: np.ndarray, view: View, pad: int, out: np.ndarray) -> None:
    """Write the view of `image` into `out`, [H, W, 3] uint8: mirroring, edge padding and crop are one choice of rows
    and columns."""
    height, width, _ = image.shape
    rows = np.clip(np.arange(view.top - pad, view.top - pad + height), 0, height - 1)
    columns = np.clip(np.arange(view.left - pad, view.left - pad + width), 0, width - 1)
    if view.mirror:
        columns = width - 1 - columns
    # All indices are within bounds; with mode="clip" numpy writes straight into `out`.
    np.take(image[rows], columns, axis=1, out=out, mode="clip")


def _start_worker(consumer: int, _: int) -> None:
    """Let the consumer alone answer Ctrl-C; it ends its workers itself. The DataLoader gives each worker one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != consumer:  # it was killed before this worker came up, which torch notices only from now on
        os._exit(1)
