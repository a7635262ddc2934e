"""Test features of images: each image and its mirror through the network, normalised halves (method, section 3)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dgfast.config import LoaderName
from dgfast.data.loaders.choose import evaluation_batches
from dgfast.data.records import Record
from dgfast.models import DGNet, Teacher

Halves = tuple[Tensor, ...]  # one or two features [N, D] of a batch


def dgnet_halves(networks: DGNet) -> Callable[[Tensor], Halves]:
    """Images [N, 3, H, W] -> the primary and the fine-grained feature, [N, embedding] each."""

    def halves(images: Tensor) -> Halves:
        output = networks.appearance(images)
        return output.prim, output.fine

    return halves


def teacher_halves(teacher: Teacher) -> Callable[[Tensor], Halves]:
    """Images [N, 3, H, W] -> the baseline's only feature [N, embedding]."""
    return lambda images: (teacher(images).feature,)


@torch.inference_mode()
def extract(
    halves: Callable[[Tensor], Halves],
    records: Sequence[Record],
    image_size: tuple[int, int],
    device: torch.device,
    *,
    batch: int = 64,
    workers: int = 0,
    loader: LoaderName = "auto",
    progress: str = "",
) -> list[Tensor]:
    """The features of all records, in their order.

    Each half is L2-normalised on the image and on its mirror, the two are added and normalised again.

    Args:
        halves: images [N, 3, H, W] on the device, normalised -> features; the networks are in eval mode.
        image_size: (H, W) pixels; batch: images a pass; workers: reading threads or processes; loader: see
            `data.loaders`;
        progress: title of a bar, "" for none.
    Returns:
        one [len(records), D] fp32 tensor on the CPU per half.
    """
    rows: list[list[Tensor]] = []
    bar = tqdm(total=len(records), desc=progress, unit="image", disable=not progress, dynamic_ncols=True, leave=False)
    with bar:
        for images, _ in evaluation_batches(loader, records, image_size, batch, device=device, workers=workers):
            both = zip(halves(images), halves(images.flip(3)), strict=True)
            summed = [F.normalize(F.normalize(x.float()) + F.normalize(m.float())) for x, m in both]
            rows.append([x.cpu() for x in summed])
            bar.update(len(images))
    return [torch.cat(column) for column in zip(*rows, strict=True)]


def combine(prim: Tensor, fine: Tensor, alpha: float) -> Tensor:
    """[N, D] and [N, D] -> [N, 2 D] whose inner products are cos_prim + alpha cos_fine: each side carries alpha's
    root."""
    return torch.cat([prim, fine * alpha**0.5], 1)
