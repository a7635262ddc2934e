"""`dgfast embed`: vectors of people in images or in a video, in a file with an index."""

import importlib.metadata
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

import dgfast
from dgfast.commands.command_line import read
from dgfast.config import LoaderName
from dgfast.data.datasets.check import some
from dgfast.data.image_files import find_images
from dgfast.data.video import SMALLEST, VIDEO_SUFFIXES, Box, Crop, crops, read_boxes
from dgfast.errors import UserError, within_memory
from dgfast.files import require_writable
from dgfast.inference import Model
from dgfast.ranges import BatchSize, Threads
from dgfast.retrieval import saved_vectors
from dgfast.retrieval.saved_vectors import Origin, Shown, Vectors, fingerprint
from dgfast.training.precision import allow_tf32

log = logging.getLogger("dgfast")

HELP = """Write a vector for each person: two pictures of one person have vectors whose dot product is high.

Divided by 1 + alpha the dot product is the score, from -1 to 1, by which dgfast ranks. Beside the vectors lie an index,
which says what each row shows, and a description of the model; `dgfast search` reads all of it (docs/search.md).

dgfast embed crops/ --out vectors.npy                                (a folder: one person in each image)

dgfast embed list.txt "more/*.png" a.jpg --out vectors.safetensors   (a path a line; a pattern; a file)

dgfast embed crops/ --out vectors.parquet --model runs/latest        (one table with everything; another model)

dgfast embed clip.mp4 --boxes tracks.txt --out people.npy            (people in a video; rows of a tracker)
"""


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    sources: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE [SOURCE ...]", help_behavior_hint="")
    ]
    """Folders with all below them, .txt lists (a path a line, as seen from the list), patterns in quotes, or images,
    each of which shows one person; or one video with --boxes."""
    out: Path
    """File to write: .npy, .safetensors or .parquet; the index lies beside it as .csv, but is part of a .parquet."""
    model: Path | None = None
    """Run directory, folder that `dgfast import-reference` wrote, or model.safetensors. Default: the small model that
    comes with dgfast."""
    boxes: Path | None = None
    """The people in a video: rows frame,id,left,top,width,height,... as trackers write them (MOTChallenge; frames from
    1), or .json as tests/goldens/real_pedestrian_boxes.json has it."""
    batch_size: BatchSize = 64
    """Pictures per forward pass, each with its mirror image."""
    loader: LoaderName = "auto"
    """What decodes and resizes images; auto: DALI where it works, else torchvision."""
    loader_workers: Threads = 2
    """Threads (DALI) or processes (torchvision) that read images."""


@within_memory("lower --batch-size, or give fewer images")
def main(argv: list[str] | None = None) -> None:
    """Write vectors as the command line says.

    Args:
        argv: words; None takes those of the process.
    Raises:
        UserError: no such images, model or boxes, or a file cannot be written.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast embed", description=HELP)
    if not command.sources:
        raise UserError(
            "dgfast embed: no SOURCE; expected a folder, a list, a pattern, images, or a video with --boxes"
        )
    saved_vectors.check_name(command.out, [*command.sources, *([command.boxes] if command.boxes else [])])
    require_writable(command.out.parent, "choose another --out")
    if command.boxes is None:
        paths = images_of(command.sources)
        model = open_model(command.model)
        began = time.perf_counter()
        vectors = vectors_of_images(model, paths, command.batch_size, command.loader, command.loader_workers)
    else:
        video, boxes = _one_video(command.sources), read_boxes(command.boxes)
        model = open_model(command.model)
        began = time.perf_counter()
        vectors = _vectors_of_video(model, video, boxes, command.batch_size)
    rate = len(vectors.values) / (time.perf_counter() - began)
    files = saved_vectors.save(vectors, command.out)
    count, length = vectors.values.shape
    where = "GPU" if model.device.type == "cuda" else "CPU"
    print(f"{count} vectors of length {length}, {rate:.1f} images/s on the {where}")
    print("\n".join(str(file) for file in files))


def open_model(path: Path | None) -> Model:
    """A model, ready to compute where this machine computes fastest.

    Args:
        path: what `--model` says; None: the small model that comes with dgfast.
    Raises:
        UserError: there is no such model.
    """
    model = dgfast.load(path)
    allow_tf32(model.settings.run.tf32)  # as in the table that the run ended with
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def origin_of(model: Model) -> Origin:
    """What is written beside vectors of a model.

    Args:
        model: it makes them.
    """
    return Origin(fingerprint(model), model.image_size, model.alpha, importlib.metadata.version("dgfast"))


def images_of(sources: Sequence[Path]) -> list[Path]:
    """The sound images of all sources.

    Args:
        sources: see `find_images`.
    Raises:
        UserError: see `find_images`; or a source is a video.
    """
    if video := next((source for source in sources if source.suffix.lower() in VIDEO_SUFFIXES), None):
        raise UserError(
            f"{video} is a video; expected to be told where people are in it: `dgfast embed {video.name} --boxes FILE`"
        )
    return find_images(sources)


def vectors_of_images(model: Model, paths: Sequence[Path], batch: int, loader: LoaderName, workers: int) -> Vectors:
    """The vectors of image files, with what their names tell.

    Args:
        model: it makes the vectors.
        paths: N sound images, at least one.
        batch: images per forward pass.
        loader: what decodes them.
        workers: threads or processes that read them.
    Raises:
        UserError: a file can no longer be read.
    """
    values = model.embed(paths, batch=batch, loader=loader, workers=workers, progress="vectors")
    return Vectors(values.numpy(), [Shown.image(path) for path in paths], origin_of(model))


def _one_video(sources: Sequence[Path]) -> Path:
    if len(sources) != 1:
        raise UserError(f"--boxes is given and {len(sources)} sources; expected one video, to which the boxes belong")
    if not sources[0].is_file():
        raise UserError(f"{sources[0]} is no file; expected the video that --boxes belong to: check the path")
    return sources[0]


def _vectors_of_video(model: Model, video: Path, boxes: Sequence[Box], batch: int) -> Vectors:
    values = np.empty((len(boxes), 2 * model.config.embedding), np.float32)
    shown: list[Shown] = []
    left_out: list[Box] = []
    for people in _batches(crops(video, boxes, left_out, progress="vectors"), batch):
        pixels = [person.pixels for person in people]
        values[len(shown) : len(shown) + len(people)] = model.embed(pixels, batch=batch).numpy()
        shown += [Shown(video, box=p.box, time=None if math.isnan(p.time) else p.time) for p in people]
    if left_out:
        log.warning(
            "%s: %d of %d boxes are left out, as less than %d pixels of them, across or down, lie in the frame: %s",
            *(video, len(left_out), len(boxes), SMALLEST, some(map(str, left_out))),
        )
    if not shown:
        raise UserError(
            f"{video}: none of {len(boxes)} boxes lies in its frames; expected the boxes of this very video"
        )
    return Vectors(values[: len(shown)], shown, origin_of(model))


def _batches(found: Iterable[Crop], size: int) -> Iterator[list[Crop]]:
    found = iter(found)
    while batch := list(islice(found, size)):
        yield batch
