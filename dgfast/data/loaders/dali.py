"""Batches decoded, resized, mirrored, padded, cropped, normalised and erased by NVIDIA DALI, on a GPU or on the CPU.

One pipeline serves both. With a GPU, encoded bytes go to the device, where nvJPEG decodes them; without one the same
operators run in DALI's threads. DALI makes no random choice: it is told the samples and views that `pairs` gives.

There are no processes: DALI's threads work outside the interpreter lock, and one Python thread reads files ahead.

Mirroring, resizing, padding by the edge and cropping are one resampling of a shifted region of the source, reversed
where it is mirrored: outside the image DALI repeats the border. docs/loading.md says how much the result differs from
Pillow's pictures.
"""

import gc
import io
import itertools
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# DALI reads this when it first allocates: host buffers of at least so many bytes come from its pool. Memory of malloc
# would be returned to the system after each batch, and fresh pages for the next one take a tenth of all CPU time.
os.environ.setdefault("DALI_MALLOC_POOL_THRESHOLD", str(2**16))

from nvidia.dali import Pipeline, fn, types  # noqa: E402
from nvidia.dali.pipeline import DataNode  # noqa: E402

from dgfast.data.batches import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from dgfast.data.loaders.base import PairLoader  # noqa: E402
from dgfast.data.loaders.encoded import EncodedImages, portable, unreadable_error  # noqa: E402
from dgfast.data.loaders.image import UnreadableImage, read_bytes  # noqa: E402
from dgfast.data.pairs import PairSampler, Streams, View, views_of  # noqa: E402
from dgfast.data.records import Record  # noqa: E402
from dgfast.errors import UserError  # noqa: E402

# The garbage collector of a forked process must not touch a pipeline of its parent: the destructor would wait for ever
# for threads that the child does not have. Frozen objects are never collected.
os.register_at_fork(after_in_child=gc.freeze)

_WHOLE = (0.0, 0.0, 1.0, 1.0)  # region of an image: top, left, bottom, right, as shares of its height and width
_NOWHERE = (0.0, 0.0, 0.0, 0.0)  # rectangle: top, left, height, width, in pixels of the output
_EVALUATION_PREFETCH = 2  # batches that are prepared ahead


class DaliPairLoader(PairLoader):
    """A `PairLoader` on DALI; `workers` are its threads on the CPU, of which there is at least one.

    Images that only DALI cannot decode are decoded by Pillow.

    Images are views of DALI's own buffers, without a copy, and belong to whoever holds them. On a GPU they are ordered
    on the stream that is torch's current one at the time of `next`: nothing waits for the device.
    """

    _running: "_Running | None" = None

    def _next(self) -> tuple[Tensor, Tensor, Streams]:
        while True:
            if self._running is None:
                self._running = self._start()
            try:
                batch, images, erased = next(self._running)
                return images, erased, batch.streams
            except UserError:
                self.close()
                raise
            except Exception as error:  # the type of DALI's exceptions says nothing about their cause
                self._leave_to_pillow_what_failed(self._running, error)

    def close(self) -> None:
        """End the threads; may be called again. The next batch starts new ones."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _start(self) -> "_Running":
        return _Running(
            _pairs(self._sampler, self._images, self._iteration),
            4 * self._sampler.batch_size,
            self._sampler.image_size,
            max(1, self._workers),
            self._prefetch,
            self._device,
        )

    def _leave_to_pillow_what_failed(self, running: "_Running", error: Exception) -> None:
        """After an error, which ends a pipeline for good: find the images behind it, and make way for a new pipeline.

        Raises:
            Exception: `error` itself, if it has another cause.
        """
        suspects = {index: encoded for batch in running.scheduled for index, encoded in batch.images()}
        self.close()
        failed = [
            index
            for index, encoded in suspects.items()
            if index not in self._images.by_pillow and not _can_decode(encoded, self._device)
        ]
        if not failed:
            raise error
        self._images.by_pillow.update(failed)


def evaluation_batches(
    records: Sequence[Record],
    image_size: tuple[int, int],
    batch: int,
    *,
    workers: int,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, int]]:
    """What `choose.evaluation_batches` promises, by DALI, with threads on the CPU.

    Args:
        records: the images.
        image_size: (height, width), pixels.
        batch: images of a batch, N.
        workers: threads; at least one is used.
        device: where batches are delivered.
    Yields:
        (images, start): [N, 3, H, W] float32, and the place of the first image in `records`.
    Raises:
        UserError: a file cannot be read.
    """
    if not records:
        return
    device = torch.device(device)
    batches = _whole_images(records, image_size, batch)
    running = _Running(batches, min(batch, len(records)), image_size, max(1, workers), _EVALUATION_PREFETCH, device)
    start = 0
    try:
        for _, images, _ in running:
            yield images, start
            start += len(images)
    except UserError:
        raise
    except Exception:
        for place, encoded in (image for waiting in running.scheduled for image in waiting.images()):
            if not _can_decode(encoded, device):
                raise unreadable_error(records[place].path, "DALI cannot decode it") from None
        raise
    finally:
        running.close()


def check(device: torch.device | str) -> None:
    """Decode one small image: whatever this raises is why DALI does not work here.

    Args:
        device: where to decode it.
    Raises:
        Exception: of many types.
    """
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (124, 116, 104)).save(file, "JPEG")
    _decode(np.frombuffer(file.getvalue(), np.uint8), torch.device(device))


def region_of(view: View, image_size: tuple[int, int], pad: int) -> tuple[float, float, float, float]:
    """The part of the source that a view shows.

    Args:
        view: how the image is augmented.
        image_size: (height, width) of the output in pixels.
        pad: border before the crop, in pixels of the output.
    Returns:
        (top, left, bottom, right), as shares of the source's height and width; left and right change places where the
        view is mirrored, and what lies outside 0 .. 1 is padding.
    """
    height, width = image_size
    top, left = (view.top - pad) / height, (view.left - pad) / width
    return (top, 1 - left, top + 1, -left) if view.mirror else (top, left, top + 1, left + 1)


@dataclass
class _Batch:
    """What DALI is given for M pictures, and what they are."""

    encoded: list[np.ndarray]
    """M files, each [n] uint8."""
    regions: np.ndarray
    """[M, 4] float32: see `region_of`."""
    rectangles: np.ndarray
    """[M, 4] float32: top, left, height and width of what is erased, in pixels; zeros: nothing."""
    indices: list[int]
    """Places of the M images in the records."""
    streams: Streams = ([], [])
    """The samples, of a training batch."""

    def images(self) -> Iterator[tuple[int, np.ndarray]]:
        """(place in the records, file) of each picture."""
        return zip(self.indices, self.encoded, strict=True)


def _pairs(sampler: PairSampler, images: EncodedImages, first: int) -> Iterator[_Batch]:
    for iteration in itertools.count(first):
        streams = sampler.batch(iteration)
        views = views_of(streams)
        found = [images.read(index) for index, _ in views]
        yield _Batch(
            [encoded for _, encoded in found],
            np.array([region_of(view, sampler.image_size, sampler.pad) for _, view in views], np.float32),
            np.array([view.erase or _NOWHERE for _, view in views], np.float32),
            [index for index, _ in found],
            streams,
        )


def _whole_images(records: Sequence[Record], image_size: tuple[int, int], batch: int) -> Iterator[_Batch]:
    for start in range(0, len(records), batch):
        indices = list(range(start, min(start + batch, len(records))))
        encoded = []
        for record in (records[index] for index in indices):
            try:
                encoded.append(np.frombuffer(portable(read_bytes(record.path), image_size), np.uint8))
            except UnreadableImage as error:
                raise unreadable_error(record.path, str(error)) from error
        regions, rectangles = (np.tile(np.array(box, np.float32), (len(indices), 1)) for box in (_WHOLE, _NOWHERE))
        yield _Batch(encoded, regions, rectangles, indices)


class _Running:
    """A pipeline at work: an iterator of (batch, images, erased images), in the order of `batches`.

    Images are [M, 3, H, W] float32 in channels_last, normalised, on the device.

    Args:
        batches: what to load.
        largest: greatest number of pictures of a batch.
        image_size: (height, width) of the output in pixels.
        threads: of DALI on the CPU, at least 1.
        prefetch: batches prepared ahead, at least 1.
        device: where images are decoded and delivered.
    """

    def __init__(
        self,
        batches: Iterator[_Batch],
        largest: int,
        image_size: tuple[int, int],
        threads: int,
        prefetch: int,
        device: torch.device,
    ):
        self.scheduled: deque[_Batch] = deque()  # what the pipeline has been given and has not delivered yet
        self._given: tuple[Tensor, ...] = ()
        self._lent: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()
        self._batches = _one_ahead(batches)
        self._device = device
        self._pipeline = Pipeline(
            batch_size=largest,
            num_threads=threads,
            device_id=_number_of(device),
            prefetch_queue_depth=prefetch,
            exec_dynamic=True,  # so that outputs stay as they are for as long as somebody holds them
        )
        with self._pipeline:
            encoded, region, rectangle = fn.external_source(
                _noted(self._batches, self.scheduled),
                num_outputs=3,
                dtype=[types.DALIDataType.UINT8, types.DALIDataType.FLOAT, types.DALIDataType.FLOAT],
                ndim=[1, 1, 1],
            )
            pixels: Any = fn.resize(
                _decoded(encoded, device),
                size=image_size,
                roi_start=region[:2],
                roi_end=region[2:],
                roi_relative=True,
                interp_type=types.DALIInterpType.INTERP_CUBIC,
                antialias=True,
                # Rounded and clamped as Pillow does, because cubic interpolation overshoots.
                dtype=types.DALIDataType.UINT8,
            )
            images = fn.crop_mirror_normalize(
                pixels,
                dtype=types.DALIDataType.FLOAT,
                output_layout="HWC",
                mean=[255 * value for value in IMAGENET_MEAN],
                std=[255 * value for value in IMAGENET_STD],
            )
            erased = fn.erase(images, anchor=rectangle[:2], shape=rectangle[2:], axis_names="HW", fill_value=0.0)
            self._pipeline.set_outputs(images, erased)
        self._pipeline.build()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[_Batch, Tensor, Tensor]:
        stream = None
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device)
            self._take_back(stream)
        self._given = tuple(torch.from_dlpack(output.as_tensor()) for output in self._pipeline.run(stream))
        images, erased = (x.permute(0, 3, 1, 2) for x in self._given)  # HWC seen as CHW is channels_last
        return self.scheduled.popleft(), images, erased

    def _take_back(self, stream: torch.cuda.Stream) -> None:
        """Keep the last batch until the device has finished all work that it has been given so far.

        That work may read the batch, and DALI does not know of torch's kernels: it uses the memory again as soon as no
        tensor on the host refers to it.
        """
        if self._given:
            done = torch.cuda.Event()
            done.record(stream)
            self._lent.append((done, self._given))
            self._given = ()
        while self._lent and self._lent[0][0].query():
            self._lent.popleft()

    def close(self) -> None:
        """End the threads, once the device no longer reads what was delivered."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        self._given = ()
        self._lent.clear()
        del self._pipeline
        self._batches.close()


def _noted(
    batches: Iterator[_Batch], scheduled: deque[_Batch]
) -> Iterator[tuple[list[np.ndarray], np.ndarray, np.ndarray]]:
    """What DALI takes: files, regions and rectangles. Each batch is added to `scheduled` when DALI takes it."""
    for batch in batches:
        scheduled.append(batch)
        yield batch.encoded, batch.regions, batch.rectangles


def _one_ahead(batches: Iterator[_Batch]) -> Generator[_Batch, None, None]:
    """The same batches, each made in a thread while DALI works on the one before it."""
    thread = ThreadPoolExecutor(1, "dgfast-reader")
    try:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch
    finally:
        # The thread is not joined. Garbage collection ends a reader that was dropped, and it may happen at any point of
        # the program, also while the locks are held that joining needs.
        thread.shutdown(wait=False, cancel_futures=True)


def _decoded(encoded: DataNode, device: torch.device) -> DataNode:
    return fn.decoders.image(
        encoded,
        device="mixed" if device.type == "cuda" else "cpu",
        output_type=types.DALIImageType.RGB,
        adjust_orientation=False,  # images that are not upright come as plain pixels, turned by Pillow
        jpeg_fancy_upsampling=True,  # on a GPU, too, colours are interpolated as libjpeg-turbo does
    )


def _can_decode(encoded: np.ndarray, device: torch.device) -> bool:
    try:
        _decode(encoded, device)
    except Exception:
        return False
    return True


def _decode(encoded: np.ndarray, device: torch.device) -> None:
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=_number_of(device), prefetch_queue_depth=1)
    with pipeline:
        source = fn.external_source(lambda: [encoded], dtype=types.DALIDataType.UINT8, ndim=1)
        pipeline.set_outputs(_decoded(source, device))
    pipeline.build()
    pipeline.run()


def _number_of(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index
