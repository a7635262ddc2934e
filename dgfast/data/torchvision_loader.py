"""Batches decoded and resized by Pillow, as torchvision's transforms do on PIL images: for training and for evaluation.

An image is resized to H x W (bicubic with antialiasing) and only then mirrored. The bicubic filter is symmetric, so
this equals mirroring first up to rounding; and it lets `cache="ram"` keep the resized images and still deliver the very
same samples.
"""

import itertools
import logging
import math
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dgfast.data.image import UnreadableImage, read_image
from dgfast.data.loading import PairBatch, StreamBatch, erase, normalise
from dgfast.data.pairs import PairSampler, Sample, View
from dgfast.data.records import Record
from dgfast.errors import UserError

_log = logging.getLogger("dgfast")

PREFETCH = 2  # batches prepared ahead per worker


class TorchvisionPairLoader:
    """An endless iterator of `PairBatch` (see `loading.PairLoader`), starting at `start_iteration`.

    A file that cannot be read although the index found it sound is replaced by the next image of the same identity that
    can; it is logged once, by name, and counted in `unreadable`. `label` and `index` stay those of the sample.

    Args:
        records: the training images; `sampler` was made from their identities, in this order.
        sampler: which images make up a batch, and their views.
        image_size: (height, width) in pixels, the sampler's.
        pad: border before the crop in pixels, the sampler's.
        workers: processes that prepare batches; 0 prepares them in the calling process.
        start_iteration: the first iteration to deliver.
        cache: "ram" decodes every image once, at the first batch, and keeps them resized (3 * height * width bytes
            each: 0.3 GB for 12,936 images of 128x64, 1.3 GB at 256x128). Batches are then put together in the calling
            process, `workers` being the threads that decode.
        device: where batches are delivered. Images travel there as uint8, from pinned memory for a CUDA device, and are
            normalised there.

    Raises:
        ValueError: the sampler's sizes or number of images differ.
        UserError: not one image of an identity can be read (while iterating).
    """

    def __init__(
        self,
        records: Sequence[Record],
        sampler: PairSampler,
        *,
        image_size: tuple[int, int],
        pad: int,
        workers: int,
        start_iteration: int = 0,
        cache: Literal["ram", "none"] = "none",
        device: torch.device | str = "cpu",
    ):
        if len(records) != sampler.epoch_length:
            raise ValueError(f"{len(records)} records; expected the sampler's {sampler.epoch_length}")
        if tuple(image_size) != sampler.image_size or pad != sampler.pad:
            raise ValueError(
                f"image_size {tuple(image_size)}, pad {pad}; expected the sampler's {sampler.image_size}, {sampler.pad}"
            )
        if cache not in ("ram", "none"):
            raise ValueError(f"cache {cache!r}; expected 'ram' or 'none'")
        paths = [record.path for record in records]
        class_of = {person: index for index, person in enumerate(sorted({record.person for record in records}))}
        self.unreadable: dict[Path, str] = {}
        self._batches = _Batches(paths, [class_of[record.person] for record in records], sampler, cached=cache == "ram")
        self._workers = workers
        self._device = torch.device(device)
        self._iteration = start_iteration
        self._prepared: Iterator[_RawBatch | UserError] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> PairBatch:
        if self._prepared is None:
            self._prepared = self._prepare()
        raw = next(self._prepared)
        if isinstance(raw, UserError):
            raise raw
        self._report(raw.unreadable)
        self._iteration += 1
        return self._finish(raw)

    def state_dict(self) -> dict[str, int]:
        return {"iteration": self._iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.close()
        self._iteration = int(state["iteration"])

    def close(self) -> None:
        """Ends the workers; iterating again starts new ones at the next iteration."""
        self._prepared = None  # the DataLoader's iterator stops and joins its workers when it is released

    def _prepare(self) -> "Iterator[_RawBatch | UserError]":
        if self._batches.cached:
            self._report(self._batches.fill_cache(threads=max(1, self._workers)))
            return map(self._batches.__getitem__, itertools.count(self._iteration))
        return iter(
            DataLoader(
                self._batches,
                batch_size=None,
                sampler=_From(self._iteration),
                num_workers=self._workers,
                prefetch_factor=PREFETCH if self._workers else None,
                worker_init_fn=_start_worker,
                generator=torch.Generator(),  # else starting the loader would advance the caller's random state
            )
        )

    def _finish(self, raw: "_RawBatch") -> PairBatch:
        images = raw.images
        if self._device.type == "cuda":
            images = images.pin_memory()
        image_a, positive_a, image_b, positive_b = normalise(images.to(self._device, non_blocking=True)).chunk(4)
        return PairBatch(
            self._stream(raw.samples[0], raw.labels[0], image_a, positive_a),
            self._stream(raw.samples[1], raw.labels[1], image_b, positive_b),
        )

    def _stream(self, samples: list[Sample], labels: list[int], image: Tensor, positive: Tensor) -> StreamBatch:
        return StreamBatch(
            image=image,
            erased=erase(image, [sample.image_view.erase for sample in samples]),
            positive=positive,
            positive_erased=erase(positive, [sample.positive_view.erase for sample in samples]),
            label=torch.tensor(labels).to(self._device, non_blocking=True),
            index=torch.tensor([sample.image for sample in samples]).to(self._device, non_blocking=True),
        )

    def _report(self, unreadable: dict[Path, str]) -> None:
        for path, reason in unreadable.items():
            if path not in self.unreadable:
                self.unreadable[path] = reason
                _log.warning(
                    "%s can no longer be read (%s); another of its identity takes its place (such files so far: %d)",
                    *(path, reason, len(self.unreadable)),
                )


def evaluation_batches(
    records: Sequence[Record], image_size: tuple[int, int], batch: int, workers: int
) -> Iterator[tuple[Tensor, int]]:
    """All images in order, resized (bicubic) and normalised, in batches of which the last may be smaller.

    Yields:
        (images, start): `[N, 3, H, W]` float32 in channels_last; the first one is `records[start]`.

    Raises:
        UserError: a file cannot be read: leaving it out would change the figures.
    """
    images = _EvaluationBatches([record.path for record in records], image_size, batch)
    loader = DataLoader(
        images,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else this would advance the caller's random state
    )
    for number, raw in enumerate(loader):
        if isinstance(raw, UserError):
            raise raw
        yield normalise(raw), number * batch


@dataclass
class _RawBatch:
    """What a worker hands over. `images` `[4 N, H, W, 3]` uint8: stream a's images, their positives, stream b's."""

    images: Tensor
    samples: tuple[list[Sample], list[Sample]]
    labels: tuple[list[int], list[int]]
    unreadable: dict[Path, str]


class _Batches(Dataset):
    """The batch of every iteration. A UserError is returned: raised in a worker it would arrive as a traceback."""

    def __init__(self, paths: list[Path], labels: list[int], sampler: PairSampler, cached: bool):
        self.cached = cached
        self._paths = paths
        self._labels = labels
        self._sampler = sampler
        self._cache: np.ndarray | None = None

    def __getitem__(self, iteration: int) -> _RawBatch | UserError:
        samples = self._sampler.batch(iteration)
        unreadable: dict[Path, str] = {}
        images = np.empty((4 * self._sampler.batch_size, *self._sampler.image_size, 3), np.uint8)
        views = [
            view
            for stream in samples
            for view in (*((s.image, s.image_view) for s in stream), *((s.positive, s.positive_view) for s in stream))
        ]
        try:
            for out, (index, view) in zip(images, views, strict=True):
                image = self._read(index, unreadable) if self._cache is None else self._cache[index]
                _augment(image, view, self._sampler.pad, out)
        except UserError as error:
            return error
        labels = tuple([self._labels[sample.image] for sample in stream] for stream in samples)
        return _RawBatch(torch.from_numpy(images), samples, labels, unreadable)

    def fill_cache(self, threads: int) -> dict[Path, str]:
        """Decodes every image, once; returns the files that could not be read, with the reason."""
        unreadable: dict[Path, str] = {}
        if self._cache is None:
            cache = np.empty((len(self._paths), *self._sampler.image_size, 3), np.uint8)
            with ThreadPoolExecutor(threads) as pool:
                images = pool.map(lambda index: self._read(index, unreadable), range(len(self._paths)))
                for index, image in enumerate(tqdm(images, "reading images", len(self._paths), leave=False)):
                    cache[index] = image
            self._cache = cache
        return unreadable

    def _read(self, index: int, unreadable: dict[Path, str]) -> np.ndarray:
        """Image `index`, resized, or the next of its identity that can be read; failures are added to `unreadable`."""
        for candidate in self._sampler.same_identity(index):
            path = self._paths[candidate]
            if path in unreadable:
                continue
            try:
                return _read_resized(path, self._sampler.image_size)
            except UnreadableImage as error:
                unreadable[path] = str(error)
        raise UserError(
            f"{self._paths[index]}: neither it nor another image of the same identity can be read any more "
            f"({unreadable[self._paths[index]]}); check the disk and start again, the index leaves bad files out"
        )


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
                out[:] = _read_resized(path, self._image_size)
            except UnreadableImage as error:
                return UserError(
                    f"{path} can no longer be read ({error}); the evaluation needs every image: "
                    "check the disk and start again, the index leaves bad files out"
                )
        return torch.from_numpy(images)


class _From:
    """The numbers from `first` on, without end: what a DataLoader takes as its sampler."""

    def __init__(self, first: int):
        self._first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._first)


def _read_resized(path: Path, image_size: tuple[int, int]) -> np.ndarray:
    """`[H, W, 3]` uint8 RGB."""
    height, width = image_size
    return np.asarray(read_image(path).resize((width, height), Image.Resampling.BICUBIC))


def _augment(image: np.ndarray, view: View, pad: int, out: np.ndarray) -> None:
    """Writes the view of `image` into `out`, `[H, W, 3]` uint8: mirror, edge padding and crop in one choice."""
    height, width, _ = image.shape
    rows = np.clip(np.arange(view.top - pad, view.top - pad + height), 0, height - 1)
    columns = np.clip(np.arange(view.left - pad, view.left - pad + width), 0, width - 1)
    if view.mirror:
        columns = width - 1 - columns
    # mode="clip" (the indices are within bounds) lets numpy write straight into `out`.
    np.take(image[rows], columns, axis=1, out=out, mode="clip")


def _start_worker(_: int) -> None:
    """Ctrl-C is for the consumer, which then ends its workers. (The DataLoader gives each one torch thread.)"""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
