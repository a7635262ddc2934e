"""Batches decoded, resized, mirrored, padded, cropped, normalised and erased by NVIDIA DALI, on a GPU or on the CPU.

One pipeline serves both: with a GPU, encoded bytes go to the card, where nvJPEG decodes them; without one the same
operators run in DALI's threads. DALI draws nothing: `pairs` says what a batch is, and DALI is told. There are no
processes: DALI's threads work outside the interpreter lock, and one Python thread reads files ahead.

Mirroring, resizing, padding by the edge and cropping are one resampling of a shifted region of the source, reversed
where it
is mirrored: outside the image DALI repeats the border. docs/loading.md says how far this is from Pillow's pictures.
"""

import gc
import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Read by DALI when it first allocates: large host buffers come from its pool. From malloc they go back to the system
# after each batch, and touching fresh pages for the next one costs a tenth of all CPU time.
os.environ.setdefault("DALI_MALLOC_POOL_THRESHOLD", str(2**16))

from nvidia.dali import Pipeline, fn, types  # noqa: E402

from dgfast.data.batches import IMAGENET_MEAN, IMAGENET_STD, PairBatch, class_indices, pair_batch  # noqa: E402
from dgfast.data.loaders.encoded import EncodedImages, memory_limit, portable, report, unreadable_error  # noqa: E402
from dgfast.data.loaders.image import UnreadableImage, read_bytes  # noqa: E402
from dgfast.data.pairs import PairSampler, Sample, View, views_of  # noqa: E402
from dgfast.data.records import Record  # noqa: E402
from dgfast.errors import UserError  # noqa: E402

# A pipeline that is garbage when a process forks must not be collected in the child, where its threads do not exist:
# its destructor would wait for them for ever.
os.register_at_fork(after_in_child=gc.freeze)

WHOLE = (0.0, 0.0, 1.0, 1.0)  # region of an image: top, left, bottom, right, as shares of its height and width
NOWHERE = (0.0, 0.0, 0.0, 0.0)  # rectangle: top, left, height, width, in pixels of the output


class DaliPairLoader:
    """An endless iterator of `PairBatch` (see `batches.PairLoader`), starting at `start_iteration`.

    A file that cannot be read although the index found it sound is replaced by the next image of the same identity that
    can; it is logged once, by name, and counted in `unreadable`. `label` and `index` stay those of the sample. One that
    only DALI cannot decode is decoded by Pillow.

    Images are views of DALI's own buffers, without a copy, and belong to whoever holds them. On a GPU they are ordered
    on torch's current stream at the time of `next`: nothing waits for the card.

    Args:
        records: the training images; `sampler` was made from their identities, in this order.
        sampler: which images make up a batch, and their views.
        workers: DALI's threads on the CPU, at least one.
        prefetch: batches prepared ahead, at least 1.
        start_iteration: the first iteration to deliver.
        cache: "ram" reads all files once, at the first batch, and keeps their bytes, if they take no more than half of
            the memory that is available.
        device: where images are decoded and delivered.
        dtype: of the images: float32, float16 or bfloat16.

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
        dtype: torch.dtype = torch.float32,
    ):
        if len(records) != sampler.epoch_length:
            raise ValueError(f"{len(records)} records; expected the sampler's {sampler.epoch_length}")
        if cache not in ("ram", "none"):
            raise ValueError(f"cache {cache!r}; expected 'ram' or 'none'")
        self.unreadable: dict[Path, str] = {}
        self._images = EncodedImages([r.path for r in records], sampler.image_size, sampler.same_identity)
        self._classes = class_indices(records)
        self._sampler = sampler
        self._cache = cache
        self._workers = max(1, workers)
        self._prefetch = prefetch
        self._device = torch.device(device)
        self._dtype = dtype
        self._position = start_iteration * sampler.global_batch
        self._running: _Running | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> PairBatch:
        while True:
            if self._running is None:
                self._running = self._start()
            try:
                batch, (images, erased) = next(self._running)
                break
            except UserError:
                self.close()
                raise
            except Exception as error:  # which of its many types DALI raises says nothing about the cause
                self._leave_out_what_failed(error)
        report(self._images.unreadable, self.unreadable)
        self._position += self._sampler.global_batch
        return pair_batch(images, erased, batch.streams, self._classes)

    def state_dict(self) -> dict[str, int]:
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Ends the threads; iterating again starts new ones at the next batch."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _start(self) -> "_Running":
        if self._cache == "ram":
            self._images.keep_in_memory(memory_limit(self._sampler.world_size), self._workers)
        return _Running(
            _pairs(self._sampler, self._images, self._position),
            4 * self._sampler.batch_size,
            self._sampler.image_size,
            self._workers,
            self._prefetch,
            self._device,
            self._dtype,
        )

    def _leave_out_what_failed(self, error: Exception) -> None:
        """After an error, which ends a pipeline for good: finds the images behind it, and makes way for a new pipeline.

        Raises:
            Exception: `error` itself, if it has another cause.
        """
        suspects = {index: encoded for batch in self._running.scheduled for index, encoded in batch.images()}
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
    prefetch: int = 2,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, int]]:
    """All images in order, resized (bicubic) and normalised, in batches of which the last may be smaller.

    Yields:
        (images, start): `[N, 3, H, W]` float32 in channels_last on `device`; the first one is `records[start]`.

    Raises:
        UserError: a file cannot be read: leaving it out would change the figures.
    """
    if not records:
        return
    device = torch.device(device)
    batches = _whole_images(records, image_size, batch)
    running = _Running(batches, min(batch, len(records)), image_size, max(1, workers), prefetch, device)
    start = 0
    try:
        for _, (images, _) in running:
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
    """Decodes one small image on the device: whatever this raises is why DALI does not work here."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (124, 116, 104)).save(file, "JPEG")
    _decode(np.frombuffer(file.getvalue(), np.uint8), torch.device(device))


def region_of(view: View, image_size: tuple[int, int], pad: int) -> tuple[float, float, float, float]:
    """The part of the source that a view shows: (top, left, bottom, right), as shares of its height and width.

    Left and right change places where it is mirrored; what lies outside 0 .. 1 is padding.
    """
    height, width = image_size
    top, left = (view.top - pad) / height, (view.left - pad) / width
    return (top, 1 - left, top + 1, -left) if view.mirror else (top, left, top + 1, left + 1)


@dataclass
class _Batch:
    """What DALI is given: encoded images, regions and rectangles `[N, 4]`; and what they are: indices, samples."""

    encoded: list[np.ndarray]
    regions: np.ndarray
    rectangles: np.ndarray
    indices: list[int]
    streams: tuple[list[Sample], list[Sample]] = ([], [])

    def images(self) -> Iterator[tuple[int, np.ndarray]]:
        return zip(self.indices, self.encoded, strict=True)


def _pairs(sampler: PairSampler, images: EncodedImages, position: int) -> Iterator[_Batch]:
    while True:
        streams = sampler.batch_at(position)
        views = views_of(streams)
        found = [images.read(index) for index, _ in views]
        yield _Batch(
            [encoded for _, encoded in found],
            np.array([region_of(view, sampler.image_size, sampler.pad) for _, view in views], np.float32),
            np.array([view.erase or NOWHERE for _, view in views], np.float32),
            [index for index, _ in found],
            streams,
        )
        position += sampler.global_batch


def _whole_images(records: Sequence[Record], image_size: tuple[int, int], batch: int) -> Iterator[_Batch]:
    for start in range(0, len(records), batch):
        indices = list(range(start, min(start + batch, len(records))))
        encoded = []
        for record in (records[index] for index in indices):
            try:
                encoded.append(np.frombuffer(portable(read_bytes(record.path), image_size), np.uint8))
            except UnreadableImage as error:
                raise unreadable_error(record.path, str(error)) from error
        regions, rectangles = (np.tile(np.float32(box), (len(indices), 1)) for box in (WHOLE, NOWHERE))
        yield _Batch(encoded, regions, rectangles, indices)


class _Running:
    """A pipeline at work on an iterator of batches: delivers them in order, each with its images and erased images.

    `scheduled` are the batches that the pipeline has been given and not delivered yet.
    """

    def __init__(
        self,
        batches: Iterator[_Batch],
        largest: int,
        image_size: tuple[int, int],
        threads: int,
        prefetch: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        self.scheduled: deque[_Batch] = deque()
        self._given: tuple[Tensor, ...] = ()
        self._lent: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()
        self._batches = _one_ahead(batches)
        self._device = device
        self._dtype = dtype
        self._pipeline = Pipeline(
            batch_size=largest,
            num_threads=threads,
            device_id=_number_of(device),
            prefetch_queue_depth=prefetch,
            exec_dynamic=True,  # outputs are the reader's to keep
        )
        with self._pipeline:
            encoded, region, rectangle = fn.external_source(
                _noted(self._batches, self.scheduled),
                num_outputs=3,
                dtype=[types.UINT8, types.FLOAT, types.FLOAT],
                ndim=[1, 1, 1],
            )
            images = _decoded(encoded, device)
            images = fn.resize(
                images,
                size=image_size,
                roi_start=region[:2],
                roi_end=region[2:],
                roi_relative=True,
                interp_type=types.INTERP_CUBIC,
                antialias=True,
                dtype=types.UINT8,  # rounded and clamped as Pillow does: the cubic overshoots
            )
            images = fn.crop_mirror_normalize(
                images,
                dtype=types.FLOAT16 if dtype == torch.float16 else types.FLOAT,
                output_layout="HWC",
                mean=[255 * value for value in IMAGENET_MEAN],
                std=[255 * value for value in IMAGENET_STD],
            )
            erased = fn.erase(images, anchor=rectangle[:2], shape=rectangle[2:], axis_names="HW", fill_value=0.0)
            self._pipeline.set_outputs(images, erased)
        self._pipeline.build()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[_Batch, tuple[Tensor, Tensor]]:
        stream = None
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device)
            self._take_back(stream)
        images, erased = self._pipeline.run(stream)
        self._given = tuple(torch.from_dlpack(x.as_tensor()) for x in (images, erased))
        # HWC seen as CHW is channels_last.
        return self.scheduled.popleft(), tuple(x.permute(0, 3, 1, 2).to(self._dtype) for x in self._given)

    def _take_back(self, stream: torch.cuda.Stream) -> None:
        """Keep the last batch until the device has done all that the reader has asked of it so far.

        DALI does not know of torch's kernels: it may use the memory again as soon as the last tensor on it is gone
        here.
        """
        if self._given:
            done = torch.cuda.Event()
            done.record(stream)
            self._lent.append((done, self._given))
            self._given = ()
        while self._lent and self._lent[0][0].query():
            self._lent.popleft()

    def close(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        self._given = ()
        self._lent.clear()
        self._pipeline = None
        self._batches.close()


def _noted(
    batches: Iterator[_Batch], scheduled: deque[_Batch]
) -> Iterator[tuple[list[np.ndarray], np.ndarray, np.ndarray]]:
    """What DALI takes, each batch added to `scheduled` at the moment when it is taken."""
    for batch in batches:
        scheduled.append(batch)
        yield batch.encoded, batch.regions, batch.rectangles


def _one_ahead(batches: Iterator[_Batch]) -> Iterator[_Batch]:
    """The same batches, each made in a thread while the one before it is at work."""
    thread = ThreadPoolExecutor(1, "dgfast-reader")
    try:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch
    finally:
        # Not waited for: a reader that was dropped is finished wherever garbage is collected, even inside the locks of
        # threading that joining takes.
        thread.shutdown(wait=False, cancel_futures=True)


def _decoded(encoded: "fn.DataNode", device: torch.device) -> "fn.DataNode":
    return fn.decoders.image(
        encoded,
        device="mixed" if device.type == "cuda" else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,  # what is not upright comes as pixels
        jpeg_fancy_upsampling=True,  # colours interpolated on a GPU as libjpeg-turbo does
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
        source = fn.external_source(lambda: [encoded], dtype=types.UINT8, ndim=1)
        pipeline.set_outputs(_decoded(source, device))
    pipeline.build()
    pipeline.run()


def _number_of(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index
