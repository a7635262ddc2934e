"""What a training batch is, and what every loader of batches can do, whichever library decodes the images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dgfast.data.pairs import Sample
from dgfast.data.records import Record

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of values in 0 .. 1
IMAGENET_STD = (0.229, 0.224, 0.225)

Rectangle = tuple[int, int, int, int]  # top, left, height, width in pixels


@dataclass
class StreamBatch:
    """N samples of one stream. Images: `[N, 3, H, W]` in channels_last, RGB, normalised as ImageNet is.

    `erased` and `positive_erased` are the same views with their random rectangle set to 0 (the mean colour). `label`
    `[N]` int64 is the class, `index` `[N]` int64 the sampled image's place in the training records.
    """

    image: Tensor
    erased: Tensor
    positive: Tensor
    positive_erased: Tensor
    label: Tensor
    index: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "StreamBatch":
        """The same batch on `device`."""
        return StreamBatch(*(getattr(self, field.name).to(device, non_blocking=non_blocking) for field in fields(self)))

    def split(self, parts: int) -> list["StreamBatch"]:
        """Consecutive parts of equal size; `parts` divides the number of samples."""
        chunks = [getattr(self, field.name).chunk(parts) for field in fields(self)]
        return [StreamBatch(*part) for part in zip(*chunks, strict=True)]


@dataclass
class PairBatch:
    """One iteration's samples of both streams."""

    a: StreamBatch
    b: StreamBatch

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PairBatch":
        """The same batch on `device`."""
        return PairBatch(self.a.to(device, non_blocking), self.b.to(device, non_blocking))

    def split(self, parts: int) -> list["PairBatch"]:
        """Consecutive parts of equal size; `parts` divides the number of samples of a stream."""
        return [PairBatch(a, b) for a, b in zip(self.a.split(parts), self.b.split(parts), strict=True)]


class PairLoader(Protocol):
    """An endless iterator of training batches that can be resumed exactly.

    `state_dict()` is `{"position": n}`, n being the samples of a stream that all ranks together have been delivered:
    batches that were prepared ahead do not count. So a state fits any loader, batch size and number of ranks.

    `unreadable` holds the files, with the reason, that other images of the same identity have replaced.
    """

    unreadable: dict[Path, str]

    def __iter__(self) -> Iterator[PairBatch]: ...

    def __next__(self) -> PairBatch: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: dict[str, int]) -> None: ...

    def close(self) -> None:
        """Ends the loader's workers; may be called again."""
        ...


def class_indices(records: Sequence[Record]) -> list[int]:
    """The class of every training image: its person's place among all persons in ascending order."""
    class_of = {person: index for index, person in enumerate(sorted({record.person for record in records}))}
    return [class_of[record.person] for record in records]


def pair_batch(
    images: Tensor, erased: Tensor, streams: tuple[list[Sample], list[Sample]], classes: Sequence[int]
) -> PairBatch:
    """The batch of `[4 N, 3, H, W]` images in the order of `pairs.views_of`, and the same with their rectangles erased.

    Args:
        streams: the samples of a and b. classes: the class of every training image.
    """
    numbers = [
        numbers for stream in streams for numbers in ([classes[s.image] for s in stream], [s.image for s in stream])
    ]
    # One small transfer, which needs no pinned memory to be asynchronous.
    label_a, index_a, label_b, index_b = torch.tensor(numbers).to(images.device, non_blocking=True)
    image_a, positive_a, image_b, positive_b = images.chunk(4)
    erased_a, positive_erased_a, erased_b, positive_erased_b = erased.chunk(4)
    return PairBatch(
        StreamBatch(image_a, erased_a, positive_a, positive_erased_a, label_a, index_a),
        StreamBatch(image_b, erased_b, positive_b, positive_erased_b, label_b, index_b),
    )


def normalise(images: Tensor) -> Tensor:
    """`[N, H, W, 3]` uint8 RGB -> `[N, 3, H, W]` float32 in channels_last, ImageNet mean and deviation removed."""
    n, height, width, _ = images.shape
    # A row as one vector of 3 * width values: broadcasting over a last dimension of 3 is several times slower on a CPU.
    # Subtracted first, then multiplied: DALI's order, and so its very bits.
    # Made on the host and sent: a tensor made on a GPU from numbers waits for it.
    mean, std = (
        torch.tensor([255 * value for value in values]).to(images.device, non_blocking=True).repeat(width)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    rows = images.reshape(n, height, width * 3).float().sub_(mean).mul_(1 / std)
    return rows.view(n, height, width, 3).permute(0, 3, 1, 2)  # seen as [N, 3, H, W], this already is channels_last


def denormalise(images: Tensor) -> Tensor:
    """`[N, 3, H, W]` normalised images of any float type -> uint8 RGB of the same shape, rounded and clamped."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)


def erase(images: Tensor, rectangles: Sequence[Rectangle | None]) -> Tensor:
    """A copy of `[N, 3, H, W]` normalised images with one rectangle of each set to 0; None leaves an image as it is."""
    erased = images.clone()
    for image, rectangle in zip(erased, rectangles, strict=True):
        if rectangle is not None:
            top, left, height, width = rectangle
            image[:, top : top + height, left : left + width] = 0
    return erased
