"""Which library loads images: DALI where it works, else torchvision's way with Pillow."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dgfast.data.batches import PairLoader
from dgfast.data.pairs import PairSampler
from dgfast.data.records import Record
from dgfast.errors import UserError

LoaderName = Literal["auto", "dali", "torchvision"]


@functools.cache
def choose_loader(wanted: LoaderName, device: torch.device) -> tuple[str, str]:
    """("dali" or "torchvision", the choice and its reason in one line); found out once, then the same at every call.

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
    """The training batches of `sampler`, loaded by the library that `choose_loader` gives; `options` are those of its
    loader."""
    if choose_loader(wanted, device)[0] == "dali":
        from dgfast.data.loaders.dali import DaliPairLoader as Loader
    else:
        from dgfast.data.loaders.torchvision import TorchvisionPairLoader as Loader
    return Loader(records, sampler, device=device, **options)


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

    Yields:
        (images, start): `[N, 3, H, W]` float32 in channels_last on `device`; the first one is `records[start]`.

    Raises:
        UserError: a file cannot be read: leaving it out would change the figures.
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
