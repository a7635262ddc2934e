"""Which library loads images: DALI where it works, else torchvision's way with Pillow."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dgfast.config import LoaderName
from dgfast.data.loaders.base import PairLoader
from dgfast.data.pairs import PairSampler
from dgfast.data.records import Record
from dgfast.errors import UserError


@functools.cache
def choose_loader(wanted: LoaderName, device: torch.device) -> tuple[str, str]:
    """Which library loads images here; found out once, then the same at every call.

    Args:
        wanted: "auto": DALI if it works on the device.
        device: where images are delivered.
    Returns:
        "dali" or "torchvision", and a line for people: the choice with its reason.
    Raises:
        UserError: "dali" is wanted and does not work on the device.
    """
    if wanted == "torchvision":
        return "torchvision", "torchvision, as asked for"
    reason = _why_not_dali(device)
    if reason is None:
        from nvidia.dali import __version__ as version

        return "dali", f"DALI {version}, decoding on the {'GPU' if device.type == 'cuda' else 'CPU'}"
    if wanted == "dali":
        raise UserError(f"--loader dali: {reason}; expected a DALI that works: install it, or pass --loader auto")
    return "torchvision", f"torchvision, because {reason}"


def pair_loader(
    wanted: LoaderName, records: Sequence[Record], sampler: PairSampler, *, device: torch.device, **options: Any
) -> PairLoader:
    """Training batches, loaded by the library that `choose_loader` gives.

    Args:
        wanted: see `choose_loader`.
        records: the training images.
        sampler: which images make up a batch, and their views.
        device: where batches are delivered.
        options: further arguments of `base.PairLoader`.
    Raises:
        UserError: "dali" is wanted and does not work on the device.
    """
    if choose_loader(wanted, device)[0] == "dali":
        from dgfast.data.loaders.dali import DaliPairLoader

        return DaliPairLoader(records, sampler, device=device, **options)
    from dgfast.data.loaders.torchvision import TorchvisionPairLoader

    return TorchvisionPairLoader(records, sampler, device=device, **options)


def evaluation_batches(
    wanted: LoaderName,
    records: Sequence[Record],
    image_size: tuple[int, int],
    batch: int,
    *,
    device: torch.device,
    workers: int = 0,
) -> Iterator[tuple[Tensor, int]]:
    """All images in order, resized (bicubic) and normalised, in batches of which the last may be smaller.

    Args:
        wanted: see `choose_loader`.
        records: the images.
        image_size: (height, width) in pixels.
        batch: images of a batch, N.
        device: where batches are delivered.
        workers: DALI's threads on the CPU (at least one is used), or torchvision's processes.
    Returns:
        an iterator of (images, start): [N, 3, H, W] float32 in channels_last on `device`; the first image is that of
        `records[start]`.
    Raises:
        UserError: "dali" is wanted and does not work on the device; while iterating: a file cannot be read, and leaving
            it out would change the scores.
    """
    if choose_loader(wanted, device)[0] == "dali":
        from dgfast.data.loaders.dali import evaluation_batches as batches
    else:
        from dgfast.data.loaders.torchvision import evaluation_batches as batches
    return batches(records, image_size, batch, workers=workers, device=device)


def _why_not_dali(device: torch.device) -> str | None:
    try:
        from dgfast.data.loaders import dali
    except ImportError as error:
        return f"DALI cannot be imported ({error})"
    try:
        dali.check(device)
    except Exception as error:  # a driver that is too old, a library that is missing: DALI's errors are of many types
        return f"DALI does not work here ({str(error).strip().splitlines()[-1]})"
    return None
