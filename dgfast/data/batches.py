"""What a training batch is, and the arithmetic between pixels and tensors that all loaders share."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dgfast.data.pairs import Rectangle, Streams
from dgfast.data.records import Record

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of values in 0 .. 1
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class StreamBatch:
    """N samples of one stream. Images are RGB in channels_last, normalised by ImageNet's mean and deviation."""

    image: Tensor
    """[N, 3, H, W] float: the images."""
    erased: Tensor
    """[N, 3, H, W] float: the images with a random rectangle set to 0, the mean colour."""
    positive: Tensor
    """[N, 3, H, W] float: another image of each identity."""
    positive_erased: Tensor
    """[N, 3, H, W] float: those with a random rectangle set to 0."""
    label: Tensor
    """[N] int64: class of the identity."""
    index: Tensor
    """[N] int64: place of the image in the training records."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "StreamBatch":
        """The same batch on another device.

        Args:
            device: where to.
            non_blocking: do not wait for the copy, where the memory allows that.
        """
        return StreamBatch(*(getattr(self, field.name).to(device, non_blocking=non_blocking) for field in fields(self)))

    def split(self, parts: int) -> list["StreamBatch"]:
        """Consecutive parts of equal size.

        Args:
            parts: how many; a divisor of N.
        """
        chunks = [getattr(self, field.name).chunk(parts) for field in fields(self)]
        return [StreamBatch(*part) for part in zip(*chunks, strict=True)]


@dataclass
class PairBatch:
    """One iteration's samples of both streams."""

    a: StreamBatch
    """Stream a."""
    b: StreamBatch
    """Stream b."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PairBatch":
        """The same batch on another device.

        Args:
            device: where to.
            non_blocking: do not wait for the copy, where the memory allows that.
        """
        return PairBatch(self.a.to(device, non_blocking), self.b.to(device, non_blocking))

    def split(self, parts: int) -> list["PairBatch"]:
        """Consecutive parts of equal size.

        Args:
            parts: how many; a divisor of the number of samples of a stream.
        """
        if parts == 1:
            return [self]
        return [PairBatch(a, b) for a, b in zip(self.a.split(parts), self.b.split(parts), strict=True)]


def class_indices(records: Sequence[Record]) -> list[int]:
    """The class of every training image: its person's place among all persons in ascending order.

    Args:
        records: the training images.
    Returns:
        a class, from 0, for every record.
    """
    class_of = {person: index for index, person in enumerate(sorted({record.person for record in records}))}
    return [class_of[record.person] for record in records]


def pair_batch(images: Tensor, erased: Tensor, streams: Streams, classes: Sequence[int]) -> PairBatch:
    """The batch that is made of these pictures.

    Args:
        images: [4 N, 3, H, W] in the order of `pairs.views_of`.
        erased: [4 N, 3, H, W], the same with their rectangles erased.
        streams: the samples, N each.
        classes: class of every training image.
    Returns:
        views of `images` and `erased`, with labels and indices on their device.
    """
    numbers = [
        numbers for stream in streams for numbers in ([classes[s.image] for s in stream], [s.image for s in stream])
    ]
    # All numbers travel in one transfer. It is so small that it is asynchronous also from memory that is not pinned.
    label_a, index_a, label_b, index_b = torch.tensor(numbers).to(images.device, non_blocking=True)
    image_a, positive_a, image_b, positive_b = images.chunk(4)
    erased_a, positive_erased_a, erased_b, positive_erased_b = erased.chunk(4)
    return PairBatch(
        StreamBatch(image_a, erased_a, positive_a, positive_erased_a, label_a, index_a),
        StreamBatch(image_b, erased_b, positive_b, positive_erased_b, label_b, index_b),
    )


def normalise(images: Tensor) -> Tensor:
    """Pixels as the networks take them: ImageNet's mean removed, divided by its deviation.

    Args:
        images: [N, H, W, 3] uint8 RGB.
    Returns:
        [N, 3, H, W] float32 in channels_last.
    """
    n, height, width, _ = images.shape
    # Each row of pixels is one vector of 3 * width values, because broadcasting over a last dimension of 3 is several
    # times slower on a CPU. The mean is subtracted first and the result multiplied, as DALI does, so that both loaders
    # deliver the same bits.
    # Mean and deviation are made on the host and sent, because making a tensor from numbers on a GPU waits for it.
    mean, std = (
        torch.tensor([255 * value for value in values]).to(images.device, non_blocking=True).repeat(width)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    rows = images.reshape(n, height, width * 3).float().sub_(mean).mul_(1 / std)
    return rows.view(n, height, width, 3).permute(0, 3, 1, 2)  # [N, H, W, 3] seen as [N, 3, H, W] is channels_last


def denormalise(images: Tensor) -> Tensor:
    """Pixels of images as the networks take or make them, rounded and clamped.

    Args:
        images: [N, 3, H, W] of any float type, normalised.
    Returns:
        [N, 3, H, W] uint8 RGB.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)


def erase(images: Tensor, rectangles: Sequence[Rectangle | None]) -> Tensor:
    """A copy in which one rectangle of each image is 0, the mean colour.

    Args:
        images: [N, 3, H, W], normalised.
        rectangles: one per image; None leaves an image as it is.
    Returns:
        [N, 3, H, W].
    """
    erased = images.clone()
    for image, rectangle in zip(erased, rectangles, strict=True):
        if rectangle is not None:
            top, left, height, width = rectangle
            image[:, top : top + height, left : left + width] = 0
    return erased
