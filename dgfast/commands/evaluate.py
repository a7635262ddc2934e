"""`dgfast eval`: score a trained run, or imported weights, on a data set."""

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from dgfast import run_directory
from dgfast.commands.command_line import read
from dgfast.commands.sources import open_data
from dgfast.config import DatasetName, EvalConfig, LoaderName, Variant
from dgfast.data import load_reid
from dgfast.errors import UserError, within_memory
from dgfast.files import require_writable, write_json
from dgfast.models.dgnet import load_model
from dgfast.ranges import BatchSize, Count, Share, Threads, Weight
from dgfast.retrieval import Reranking
from dgfast.retrieval.evaluation import evaluate, table
from dgfast.retrieval.features import FeatureSettings
from dgfast.retrieval.visualise import ranking_figure
from dgfast.training.distributed import Workers
from dgfast.training.precision import allow_tf32

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
    out: Path | None = None
    """Folder for the report and the picture; default: the run directory."""
    dataset: DatasetName = "auto"
    """Layout of the folder; auto looks at what is there."""
    variant: Variant = "labeled"
    """Boxes of CUHK03-NP."""
    alpha: Weight = EvalConfig.alpha
    """Weight of the fine-grained cosine in the score."""
    eval_batch_size: BatchSize = EvalConfig.eval_batch_size
    """Images per forward pass."""
    loader: LoaderName = "auto"
    """What decodes and resizes images; auto: DALI where it works, else torchvision."""
    loader_workers: Threads = 2
    """Threads (DALI) or processes (torchvision) that read images."""
    rerank: bool = False
    """Score every feature a second time, re-ranked by k-reciprocal neighbours."""
    k1: Count = Reranking.k1
    """Re-ranking: neighbours among which reciprocity is sought."""
    k2: Count = Reranking.k2
    """Re-ranking: neighbours averaged over."""
    lambda_: Annotated[Share, tyro.conf.arg(name="lambda")] = Reranking.lambda_
    """Re-ranking: weight of the original distance, 0 to 1."""


def main(argv: list[str] | None = None) -> None:
    """Evaluate as the command line says: print the table, write eval-DATASET.json and rankings-DATASET.png, with
    a number behind the name where those are of another data set of that layout.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: no such run or data set.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast eval", description=HELP)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = run_directory.read_config(command.run)
    out = command.out or command.run
    require_writable(out, "pass --out FOLDER" if command.out is None else "pass another --out")
    allow_tf32(config.run.tf32)  # as where the run's own table was made
    with Workers() as workers:
        if command.data_root is None:
            data = open_data(config, workers)
        else:
            data = load_reid(command.data_root, command.dataset, splits=("query", "gallery"), variant=command.variant)
        print(data.summary())
        model_file, teacher_file = command.run / run_directory.MODEL, command.run / run_directory.TEACHER
        networks = load_model(model_file, "dgnet").to(workers.device) if model_file.is_file() else None
        teacher = load_model(teacher_file, "teacher").to(workers.device) if teacher_file.is_file() else None
        if networks is None and teacher is None:
            raise UserError(
                f"{command.run} holds neither {run_directory.MODEL} nor {run_directory.TEACHER};"
                " expected a finished stage"
            )
        settings = FeatureSettings.of(
            replace(config.data, loader=command.loader, loader_workers=command.loader_workers),
            EvalConfig(alpha=command.alpha, eval_batch_size=command.eval_batch_size),
            workers.device,
        )
        reranking = Reranking(command.k1, command.k2, command.lambda_) if command.rerank else None
        less = f"lower --eval-batch-size (it is {command.eval_batch_size})"
        with within_memory(f"{less}, or --k1, or leave --rerank away" if command.rerank else less):
            result = evaluate(data, networks, teacher, settings, reranking)
    print(f"\n{data.name}: {len(data.query)} queries, {len(data.gallery)} gallery images\n{table(result.scores)}\n")
    report = run_directory.report_path(out, f"eval-{data.name}", data.root)
    picture = out / f"{report.stem.replace('eval', 'rankings', 1)}.png"
    write_json({"dataset": data.name, "root": str(data.root), "scores": result.scores}, report)
    ranking_figure(data.query, data.gallery, result.distances.numpy(), picture)
    print(f"picture  {picture}\nreport   {report}")
