"""`dgfast eval`: score a trained run, or imported weights, on a data set."""

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dgfast.config import EvalConfig
from dgfast.data import load_reid
from dgfast.data.loaders import LoaderName
from dgfast.errors import UserError
from dgfast.launcher import run
from dgfast.models.dgnet import load_model
from dgfast.retrieval import Reranking
from dgfast.retrieval.evaluation import evaluate, table
from dgfast.retrieval.features import FeatureSettings
from dgfast.retrieval.visualise import ranking_figure
from dgfast.sources import open_data
from dgfast.train import read_run
from dgfast.training.distributed import Workers
from dgfast.training.trainer import write_json

HELP = """Score a model by the Market-1501 protocol: CMC 1/5/10, mAP by both definitions, single and multi query.

dgfast eval --run runs/latest                                        (the data set it was trained on)

dgfast eval --run runs/latest --data-root /data/Market-1501 --rerank

dgfast eval --run imported/ --data-root /data/DukeMTMC-reID --dataset dukemtmc        (direct transfer)
"""


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    run: Path
    """Run directory, or a folder that `dgfast import-reference` wrote."""
    data_root: Path | None = None
    """Folder of the data set; default: the data set of the run itself."""
    dataset: Literal["auto", "market1501", "dukemtmc", "msmt17", "cuhk03np", "folder", "prepared"] = "auto"
    """Layout of the folder; auto looks at what is there."""
    variant: Literal["labeled", "detected"] = "labeled"
    """Boxes of CUHK03-NP."""
    alpha: float = EvalConfig.alpha
    """Weight of the fine-grained cosine in the score."""
    eval_batch_size: int = EvalConfig.eval_batch_size
    """Images per forward pass."""
    loader: LoaderName = "auto"
    """What decodes and resizes images; auto: DALI where it works, else torchvision."""
    loader_workers: int = 2
    """Threads (DALI) or processes (torchvision) that read images."""
    rerank: bool = False
    """Score every feature a second time, re-ranked by k-reciprocal neighbours."""
    k1: int = Reranking.k1
    """Re-ranking: neighbours among which reciprocity is sought."""
    k2: int = Reranking.k2
    """Re-ranking: neighbours averaged over."""
    lambda_: Annotated[float, tyro.conf.arg(name="lambda")] = Reranking.lambda_
    """Re-ranking: weight of the original distance, 0 to 1."""


def main(argv: list[str] | None = None) -> None:
    """Evaluate as the command line says; prints the table, writes eval-DATASET.json and rankings-DATASET.png into the
    run.

    Raises:
        UserError: no such run or data set.
    """
    command = tyro.cli(Command, args=sys.argv[1:] if argv is None else argv, prog="dgfast eval", description=HELP)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = read_run(command.run)
    workers = Workers()
    if command.data_root is None:
        data = open_data(config, workers)
    else:
        data = load_reid(command.data_root, command.dataset, splits=("query", "gallery"), variant=command.variant)
    print(data.summary())
    device = workers.device
    files = {
        kind: command.run / name for kind, name in (("dgnet", "model.safetensors"), ("teacher", "teacher.safetensors"))
    }
    models = {kind: load_model(file, kind).to(device) for kind, file in files.items() if file.is_file()}
    if not models:
        raise UserError(
            f"{command.run} holds neither model.safetensors nor teacher.safetensors; expected a finished stage"
        )
    networks, teacher = models.get("dgnet"), models.get("teacher")
    settings = FeatureSettings.of(
        replace(config.data, loader=command.loader, loader_workers=command.loader_workers),
        EvalConfig(alpha=command.alpha, eval_batch_size=command.eval_batch_size),
        device,
    )
    reranking = Reranking(command.k1, command.k2, command.lambda_) if command.rerank else None
    result = evaluate(data, networks, teacher, settings, reranking)
    print(f"\n{data.name}: {len(data.query)} queries, {len(data.gallery)} gallery images\n{table(result.scores)}\n")
    report, picture = command.run / f"eval-{data.name}.json", command.run / f"rankings-{data.name}.png"
    write_json({"dataset": data.name, "root": str(data.root), "scores": result.scores}, report)
    ranking_figure(data.query, data.gallery, result.distances.numpy(), picture)
    print(f"picture  {picture}\nreport   {report}")


if __name__ == "__main__":
    run(main)
