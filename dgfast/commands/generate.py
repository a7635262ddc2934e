"""`dgfast generate`: a whole data set of generated people, in the layout of Market-1501."""

import hashlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from dgfast import run_directory
from dgfast.commands.command_line import read
from dgfast.commands.trained import open_model
from dgfast.config import DatasetName, LoaderName, Variant
from dgfast.data import Record, ReidData, evaluation_batches, load_reid
from dgfast.data.datasets.fingerprint import describe
from dgfast.errors import UserError
from dgfast.files import require_writable
from dgfast.inference import Model
from dgfast.ranges import BatchSize, Between, Seed, Threads
from dgfast.retrieval.confidence import class_probability, likeness, mean_features
from dgfast.synthesis.generated_data import Generation, Judge, Plan

HELP = """A data set of generated people: the training people of a data set, in each other's clothes.

dgfast generate --model runs/latest --data-root /data/Market-1501 --out generated

dgfast generate --model runs/latest --data-root /data/Market-1501 --out generated --per-identity 20 --confidence 0.5

dgfast train --preset market1501 --data-root generated        (trains on it; there is no query and no gallery in it)

Every picture shows the body, pose and scene of one training photograph in the clothes of another person, and is named
as in Market-1501: by the identity of the clothes, which is what DG-Net calls its label, and by the camera of the body.
index.csv says what each is made of. Only the training split is generated; evaluate on real photographs.

Picture n depends on --seed and n alone. Stopped or killed, the same command goes on where it was.
"""
MOST = 10_000_000


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    data_root: Path
    """Folder of the data set whose training people are dressed."""
    out: Path
    """Folder to write; it does not exist yet, is empty, or was begun by the same command."""
    images: Annotated[int, Between(1, MOST)] | None = None
    """Pictures to make. Default: as many as there are training photographs."""
    per_identity: Annotated[int, Between(1, MOST)] | None = None
    """Pictures to make of each identity, instead of --images."""
    confidence: Annotated[float, Between(-1, 1)] | None = None
    """Keep a picture only if the model is at least so sure that it shows the owner of the clothes: the probability of
    its primary head, 0 to 1, for people whom it was trained on; for others the cosine, -1 to 1, between the picture's
    feature and the mean of that person's photographs. Default: keep all."""
    seed: Seed = 0
    """Another seed, other pairs of people."""
    model: Path | None = None
    """Run directory, folder of `dgfast import-reference`, saved folder or .safetensors file. Default: the small model
    that comes with dgfast."""
    dataset: DatasetName = "auto"
    """Layout of the data set; auto looks at what is there."""
    variant: Variant = "labeled"
    """Boxes of CUHK03-NP."""
    batch_size: BatchSize = 32
    """Pictures per forward pass."""
    loader: LoaderName = "auto"
    """What decodes and resizes the photographs; auto: DALI where it works, else torchvision."""
    loader_workers: Threads = 2
    """Threads (DALI) or processes (torchvision) that read photographs."""


def main(argv: list[str] | None = None) -> None:
    """Generate as the command line says, and print what was made.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: no such model or data set, or a folder that was begun with other settings.
        Interrupted: SIGINT or SIGTERM; the same command goes on.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast generate", description=HELP)
    if command.images is not None and command.per_identity is not None:
        raise UserError("--images and --per-identity are both given; expected one of them")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    require_writable(command.out, "pass another --out")
    shows = sys.stderr.isatty()
    model = open_model(command.model)
    data = load_reid(command.data_root, command.dataset, splits=("train",), variant=command.variant, progress=shows)
    each = command.per_identity
    generation = Generation(
        out=command.out,
        plan=Plan(data, command.seed),
        images=command.images or (each * data.num_classes if each else len(data.train)),
        batch=command.batch_size,
        least=command.confidence,
        described={"model": _weights(model), "data_root": describe(data)["fingerprint"]},
    )
    if generation.images > MOST:
        raise UserError(f"--per-identity {each} gives {generation.images} pictures; expected at most {MOST}")
    speed = ""
    if not generation.begin():
        judge = _judge(model, data, command)
        start = time.monotonic()
        made = generation.write(model, judge, partial(_loaded, command, model), progress=shows)
        speed = f", {made / (time.monotonic() - start):.1f} images/s"
    kept = generation.kept()
    left_out = f", {generation.images - kept} left out" if kept < generation.images else ""
    print(f"{command.out}: {kept} pictures of {data.num_classes} identities{left_out}{speed}")


def _loaded(command: Command, model: Model, records: Sequence[Record], number: int) -> Iterator[tuple[Tensor, int]]:
    return evaluation_batches(
        command.loader, records, model.image_size, number, device=model.device, workers=command.loader_workers
    )


def _judge(model: Model, data: ReidData, command: Command) -> Judge:
    """The model's own classes where these are the images that it was trained on, else features of the photographs."""
    known = run_directory.read_data(model.folder)
    if known and known["fingerprint"] == describe(data)["fingerprint"] and model.num_classes == data.num_classes:
        print("confidence: probability of the primary head, which was trained on these people")
        return lambda images, persons: class_probability(model, images, [data.class_of[person] for person in persons])
    print("confidence: cosine to the mean feature of each person's photographs")
    paths = [record.path for record in data.train]
    title = "features" if sys.stderr.isatty() else ""
    features = model.embed(paths, loader=command.loader, workers=command.loader_workers, progress=title)
    means = mean_features(features, [record.person for record in data.train])
    return lambda images, persons: likeness(
        model, images, torch.stack([means[person] for person in persons]), model.alpha
    )


def _weights(model: Model) -> str:
    """A fingerprint of what the networks have learned."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
