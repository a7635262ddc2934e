"""Test features of images: the normalised halves of each image and its mirror image (docs/method.md, section 3)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dgfast.config import DataConfig, EvalConfig, LoaderName
from dgfast.data.loaders import evaluation_batches
from dgfast.data.records import Record
from dgfast.models import DGNet, Teacher

Halves = Callable[[Tensor], tuple[Tensor, ...]]  # images [N, 3, H, W] -> one or two features [N, D]


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """How features are made."""

    image_size: tuple[int, int]
    """Height and width of the images, pixels."""
    alpha: float
    """Weight of the fine-grained cosine beside the primary one, >= 0."""
    batch: int
    """Images per forward pass, each with its mirror image."""
    workers: int
    """Threads (DALI) or processes (torchvision) that read images."""
    device: torch.device
    """Where the networks are."""
    loader: LoaderName
    """What decodes and resizes images; see `dgfast.data.loaders`."""

    @classmethod
    def of(cls, data: DataConfig, evaluation: EvalConfig, device: torch.device) -> "FeatureSettings":
        """The settings of a configuration.

        Args:
            data: images and their loader.
            evaluation: the test protocol.
            device: where the networks are.
        """
        return cls(
            image_size=(data.image_height, data.image_width),
            alpha=evaluation.alpha,
            batch=evaluation.eval_batch_size,
            workers=data.loader_workers,
            device=device,
            loader=data.loader,
        )


def dgnet_halves(networks: DGNet) -> Halves:
    """The primary and the fine-grained feature of DG-Net, [N, embedding] each.

    Args:
        networks: in eval mode.
    """

    def halves(images: Tensor) -> tuple[Tensor, ...]:
        output = networks.appearance(images)
        return output.prim, output.fine

    return halves


def teacher_halves(teacher: Teacher) -> Halves:
    """The only feature of the baseline, [N, embedding].

    Args:
        teacher: in eval mode.
    """
    return lambda images: (teacher(images).feature,)


def mirrored(halves: Halves, images: Tensor) -> list[Tensor]:
    """The test feature's halves: of each image and its mirror image together.

    Each half is brought to unit length on the image and on its mirror image; the two are added, and the sum is brought
    to unit length again.

    Args:
        halves: features of a batch of normalised images.
        images: [N, 3, H, W], normalised.
    Returns:
        for each half [N, D] float32, on the images' device.
    """
    # Together in one pass, which takes less time than two of half the size.
    both = (half.float().chunk(2) for half in halves(torch.cat([images, images.flip(3)])))
    return [F.normalize(F.normalize(x) + F.normalize(m)) for x, m in both]


def extract(halves: Halves, records: Sequence[Record], settings: FeatureSettings, progress: str = "") -> list[Tensor]:
    """The features of all records, in their order.

    Args:
        halves: features of a batch of normalised images on the device.
        records: N images, at least one.
        settings: how features are made.
        progress: title of a progress bar, "" for none.
    Returns:
        for each half one [N, D] float32 tensor on the CPU.
    """
    return [torch.cat(column) for column in zip(*extract_batches(halves, records, settings, progress), strict=True)]


@torch.inference_mode()
def extract_batches(
    halves: Halves, records: Sequence[Record], settings: FeatureSettings, progress: str = ""
) -> Iterator[list[Tensor]]:
    """The features of all records, in their order, batch by batch.

    Args:
        halves: see `extract`, as for all arguments.
        records: see `extract`.
        settings: see `extract`.
        progress: see `extract`.
    Yields:
        for each half one [batch, D] float32 tensor on the CPU.
    """
    bar = tqdm(
        total=len(records),
        desc=progress,
        unit="image",
        disable=None if progress else True,
        dynamic_ncols=True,
        leave=False,
    )
    batches = evaluation_batches(
        settings.loader,
        records,
        settings.image_size,
        settings.batch,
        device=settings.device,
        workers=settings.workers,
    )
    with bar:
        for images, _ in batches:
            yield [half.cpu() for half in mirrored(halves, images)]
            bar.update(len(images))


def combine(prim: Tensor, fine: Tensor, alpha: float) -> Tensor:
    """The test feature, whose inner products are cos_prim + alpha cos_fine: each side carries the root of alpha.

    Args:
        prim: [N, D], unit length.
        fine: [N, D], unit length.
        alpha: weight of the fine-grained cosine, >= 0.
    Returns:
        [N, 2 D].
    """
    return torch.cat([prim, fine * alpha**0.5], 1)
