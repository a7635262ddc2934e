"""`dgfast export`: the appearance encoder as an ONNX file, for trackers and other programs that need vectors."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import dgfast
from dgfast.commands.command_line import read
from dgfast.commands.sources import open_data
from dgfast.data import evaluation_batches
from dgfast.data.batches import normalise
from dgfast.data.image_files import find_images
from dgfast.data.records import JUNK, Record, spread
from dgfast.errors import UserError
from dgfast.export import (
    BUILT_IN,
    Embedder,
    Precision,
    about,
    data_set_of,
    default_name,
    half,
    least_cosine,
    onnx_graph,
    quantised,
    require_packages,
    write_onnx,
)
from dgfast.files import require_writable
from dgfast.inference import Model
from dgfast.training.distributed import Workers

HELP = """Write the appearance encoder as one ONNX file: pictures of people in, vectors out.

For trackers such as BoxMOT, for onnxruntime and for TensorRT; docs/export.md has the lines for each.

dgfast export --model runs/latest --out weights/            (a file whose name says network and data set)

dgfast export                           (the small model that comes with dgfast, into the current folder)

dgfast export --model runs/latest --mirror --out exact.onnx     (each picture's mirror image counts, too: the vectors of
dgfast's own tables, at twice the work)

dgfast export --model runs/latest --precision fp16 --out weights/       (half the size; faster on GPUs)

dgfast export --model runs/latest --precision int8 --calibrate crops/ --out weights/     (a quarter of the size)

The dot product of two vectors, divided by 1 + alpha, is their score in -1 .. 1; their cosine is the same. What else a
user of the file has to know is inside it, and beside it as .json.

It needs the extra `onnx`: pip install -e ".[onnx]" -c constraints.txt
"""
CALIBRATION = 256  # pictures
LOOK = 8  # pictures whose vectors are compared
LEAST_COSINE = 0.9999  # of vectors in single precision


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    model: Path | None = None
    """Run directory, saved folder, model.safetensors, or a folder that `dgfast import-reference` wrote. Default: the
    small model that comes with dgfast."""
    out: Path = Path()
    """A file that ends in .onnx; or a folder, for a file with a name that trackers understand."""
    precision: Precision = "fp32"
    """fp32: single precision; fp16: half; int8: 8-bit integers in the convolutions. Input and output are always
    fp32."""
    mirror: bool = False
    """Let each picture's mirror image count, as in dgfast's own tables: a little better, at twice the work."""
    calibrate: Path | None = None
    """For int8: pictures such as the tracker will see, a folder, a .txt list or a pattern. Default: training images of
    the run."""


def main(argv: list[str] | None = None) -> None:
    """Export as the command line says: write the file and its .json, and print what they are.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: no such model, a package is missing, or there is nothing to calibrate with.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast export", description=HELP)
    if command.calibrate is not None and command.precision != "int8":
        raise UserError(f"--calibrate is for --precision int8; expected none with {command.precision}: leave it out")
    require_packages()
    model = dgfast.load(command.model)
    network = Embedder(model, command.mirror)
    values = about(model, network, command.precision)
    named = command.out.suffix == ".onnx"
    path = command.out if named else command.out / default_name(model, command.precision, command.mirror)
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; expected a file: name a file that ends in .onnx, or another folder")
    require_writable(path.parent, "pass another --out")
    images = _calibration(command, model) if command.precision == "int8" else _noise(model.image_size)
    graph = onnx_graph(network, model.image_size)
    if command.precision == "fp16":
        graph = half(graph)
    elif command.precision == "int8":
        graph = quantised(graph, images)
    cosine = least_cosine(network, graph.SerializeToString(), images[:LOOK])
    if command.precision == "fp32" and not cosine >= LEAST_COSINE:
        raise UserError(
            f"the exported graph disagrees with PyTorch: least cosine {cosine:.6f}; expected {LEAST_COSINE}: install"
            " the versions of constraints.txt"
        )
    write_onnx(graph, values, path)
    height, width = model.image_size
    print(f"images [batch, 3, {height}, {width}] -> features [batch, {network.length}], {command.precision}")
    print(f"least cosine with PyTorch's vectors: {cosine:.6f} ({len(images[:LOOK])} pictures)")
    print(f"file     {path}  ({path.stat().st_size / 1e6:.1f} MB)\nabout    {path.with_suffix('.json')}")


def _calibration(command: Command, model: Model) -> np.ndarray:
    """Pictures that the graph may see, [N, 3, H, W]."""
    records: Sequence[Record]
    if command.calibrate is not None:
        files = find_images([command.calibrate])
        records = [Record(path, JUNK, 0) for path in files[:: -(-len(files) // CALIBRATION)]]
    elif model.settings.data.data_root is None and data_set_of(model) != BUILT_IN:
        raise UserError(
            f"int8 needs pictures, and {model.folder} names none that it was trained on; expected --calibrate FOLDER"
            " with some hundred crops of people"
        )
    else:
        with Workers() as workers:
            records = spread(open_data(model.settings, workers).train, CALIBRATION)
    batches = evaluation_batches("auto", records, model.image_size, 64, device=torch.device("cpu"), workers=1)
    return np.ascontiguousarray(torch.cat([images for images, _ in batches]).numpy())


def _noise(image_size: tuple[int, int]) -> np.ndarray:
    """Pictures to compare vectors of, where there are no others, [N, 3, H, W]."""
    pixels = np.random.default_rng(0).integers(0, 256, (LOOK, *image_size, 3), np.uint8)
    return normalise(torch.from_numpy(pixels)).contiguous().numpy()
