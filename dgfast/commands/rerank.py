"""`dgfast rerank`: exact k-reciprocal re-ranking of saved features."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from dgfast.commands.command_line import read
from dgfast.errors import UserError, within_memory
from dgfast.files import replacing, require_writable
from dgfast.ranges import Count, Share
from dgfast.retrieval import Reranking, rerank, rerank_topk
from dgfast.retrieval.neighbours import Metric
from dgfast.retrieval.reranking import Variant
from dgfast.retrieval.saved_vectors import read_array

HELP = """Re-rank a gallery by k-reciprocal neighbours, exactly (Zhong et al., CVPR 2017).

dgfast rerank --query q.npy --gallery g.npy --out d.npy                  distances [Q, G], float32

dgfast rerank --query q.npy --gallery g.npy --out best.npz --topk 100    the 100 best of each query: distances, indices
"""


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    query: Path
    """Features of the queries: .npy, [Q, D], float16 or float32; they need not be normalised."""
    gallery: Path
    """Features of the gallery: .npy, [G, D]."""
    out: Path
    """File to write, its folder made if need be: .npy with all distances, or with --topk .npz with arrays `distances`
    and `indices`, [Q, K] each."""
    topk: Count | None = None
    """Only so many best gallery images of each query; for galleries whose [Q, G] fits neither memory nor disk."""
    k1: Count = Reranking.k1
    """Neighbours among which reciprocity is sought."""
    k2: Count = Reranking.k2
    """Neighbours averaged over; 1 leaves the average out."""
    lambda_: Annotated[Share, tyro.conf.arg(name="lambda")] = Reranking.lambda_
    """Weight of the original distance, 0 to 1."""
    variant: Variant = Reranking.variant
    """The paper's distances, or their squares, as some toolkits have it."""
    metric: Metric = Reranking.metric
    """Distance of the features as they are, or of their directions."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto is a GPU where there is one."""


@within_memory("lower --k1 or --k2, pass --topk, or give fewer features")
def main(argv: list[str] | None = None) -> None:
    """Re-rank as the command line says; the file appears when it is complete.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: a file cannot be read or written, or the features do not fit.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast rerank", description=HELP)
    suffix = ".npy" if command.topk is None else ".npz"
    if command.out.suffix != suffix:
        raise UserError(
            f"--out is {command.out}; expected a name that ends in {suffix}; .npy without --topk, .npz with it"
        )
    _keep_inputs(command)
    require_writable(command.out.parent, "choose another --out")
    device = _device(command.device)
    query, gallery = (_features(path, device) for path in (command.query, command.gallery))
    settings = Reranking(command.k1, command.k2, command.lambda_, command.variant, command.metric)
    how: dict[str, Any] = {**vars(settings), "progress": "re-ranking"}
    if command.topk is None:
        with replacing(command.out) as partial:
            _all(partial, query, gallery, how)
        said = f"distances [{len(query)}, {len(gallery)}]"
    else:
        found = rerank_topk(query, gallery, command.topk, **how)
        distances, indices = (torch.as_tensor(x).cpu().numpy() for x in found)
        with replacing(command.out) as partial:
            _save_topk(partial, distances, indices)
        said = f"distances and indices [{len(query)}, {command.topk}]"
    print(f"{command.out}  {said}")


def _keep_inputs(command: Command) -> None:
    """Before anything is computed: no input may be overwritten."""
    for name, path in (("query", command.query), ("gallery", command.gallery)):
        if command.out.resolve() == path.resolve():
            raise UserError(
                f"--out is {command.out}, which is also --{name}; expected another file: its features would be lost"
            )


def _all(partial: Path, query: np.ndarray | torch.Tensor, gallery: np.ndarray | torch.Tensor, how: dict) -> None:
    shape = (len(query), len(gallery))
    if isinstance(query, torch.Tensor):
        with partial.open("wb") as file:
            np.save(file, torch.as_tensor(rerank(query, gallery, **how)).cpu().numpy())
        return
    if 0 in shape or query.ndim != 2 or gallery.ndim != 2:
        rerank(query, gallery, **how)  # raises the error that says what is wrong with them
    out = np.lib.format.open_memmap(partial, "w+", np.float32, shape)  # on disk: it may exceed memory
    with partial.open("r+b") as file:
        # Room for all of it at once. A page that finds the disk full later would end the process by SIGBUS.
        os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
    rerank(query, gallery, out=out, **how)
    out.flush()


def _save_topk(partial: Path, distances: np.ndarray, indices: np.ndarray) -> None:
    with partial.open("wb") as file:
        np.savez(file, distances=distances, indices=indices)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {name!r}; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device is {name}; found {torch.cuda.device_count()} CUDA devices; `dgfast doctor` says what is here"
        )
    return device


def _features(path: Path, device: torch.device) -> np.ndarray | torch.Tensor:
    array = read_array(path)
    if device.type == "cpu" or array.dtype.kind != "f":
        return array
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="))).to(device)
