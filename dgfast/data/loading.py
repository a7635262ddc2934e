"""What a training batch is, and what every loader of batches can do, whichever library decodes the images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of values in 0 .. 1
IMAGENET_STD = (0.229, 0.224, 0.225)

Rectangle = tuple[int, int, int, int]  # top, left, height, width in pixels


@dataclass
class StreamBatch:
    """N samples of one stream. Images: `[N, 3, H, W]` float32 in channels_last, RGB, normalised as ImageNet is.

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


@dataclass
class PairBatch:
    """One iteration's samples of both streams."""

    a: StreamBatch
    b: StreamBatch

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PairBatch":
        """The same batch on `device`."""
        return PairBatch(self.a.to(device, non_blocking), self.b.to(device, non_blocking))


class PairLoader(Protocol):
    """An endless iterator of training batches that can be resumed exactly.

    `state_dict()` is `{"iteration": n}`, n being the next iteration to be delivered: batches that were prepared ahead
    do not count.
    """

    def __iter__(self) -> Iterator[PairBatch]: ...

    def __next__(self) -> PairBatch: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: dict[str, int]) -> None: ...

    def close(self) -> None:
        """Ends the loader's workers; may be called again."""
        ...


def normalise(images: Tensor) -> Tensor:
    """`[N, H, W, 3]` uint8 RGB -> `[N, 3, H, W]` float32 in channels_last, ImageNet mean and deviation removed."""
    n, height, width, _ = images.shape
    # A row as one vector of 3 * width values: broadcasting over a last dimension of 3 is several times slower on a CPU.
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).repeat(width)
    std = torch.tensor(IMAGENET_STD, device=images.device).repeat(width)
    rows = images.reshape(n, height, width * 3).float().mul_(1 / (255 * std)).sub_(mean / std)
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
