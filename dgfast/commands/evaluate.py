"""`dgfast eval`: score a trained run, or imported weights, on one data set or several."""

import logging
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from dgfast import run_directory
from dgfast.commands.command_line import read
from dgfast.commands.sources import open_data, pedestrians_folder
from dgfast.config import MAKE_THEIR_OWN, Config, DatasetName, EvalConfig, LoaderName, Variant
from dgfast.data import ReidData, load_reid
from dgfast.errors import UserError, within_memory
from dgfast.files import require_writable, write_json, write_text
from dgfast.models.dgnet import load_model
from dgfast.ranges import BatchSize, Between, Count, Share, Threads, Weight
from dgfast.retrieval import Reranking
from dgfast.retrieval.evaluation import Evaluation, check_scorable, evaluate, transfer_table
from dgfast.retrieval.features import FeatureSettings
from dgfast.retrieval.verification import WANTED
from dgfast.retrieval.visualise import ranking_figure
from dgfast.training.distributed import Workers
from dgfast.training.precision import allow_tf32

HELP = """Score a model by the Market-1501 protocol: CMC 1/5/10, mAP by both definitions, mINP, single and multi query.

Also: error rates over pairs, the score from which on two images show the same person, scores from camera to camera.

dgfast eval --run runs/latest                                        (the data set it was trained on)

dgfast eval --run runs/latest --data-root /data/Market-1501 --rerank

dgfast eval --run runs/latest --alphas 0 0.1 0.2 0.5 1 2             (which weight has the fine-grained feature?)

dgfast eval --run imported/ --data-root /data/DukeMTMC-reID /data/MSMT17_V1        (direct transfer, and a table)

docs/evaluation.md explains every number.
"""


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    run: Path
    """Run directory, or a folder that `dgfast import-reference` wrote."""
    data_root: tuple[Path, ...] = ()
    """Folders of data sets; of several there is a table, too. Default: the data set of the run itself."""
    out: Path | None = None
    """Folder for reports and pictures; default: the run directory."""
    dataset: DatasetName = "auto"
    """Layout of the folders; auto looks at what is there."""
    variant: Variant = "labeled"
    """Boxes of CUHK03-NP."""
    alpha: Weight = EvalConfig.alpha
    """Weight of the fine-grained cosine in the score."""
    alphas: tuple[Weight, ...] = ()
    """Further weights to score both features with; they are made once."""
    fpr: tuple[Annotated[float, Between(0, 1, without=0)], ...] = WANTED
    """False-positive rates to find thresholds of the score for."""
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
    """Evaluate as the command line says: print tables, write eval-DATASET.json and .txt and rankings-DATASET.png, with
    a number behind the name where those are of another data set of that layout; of several data sets transfer.json and
    transfer.txt. Of the run's own data set verification.json, too.

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
    reranking = Reranking(command.k1, command.k2, command.lambda_) if command.rerank else None
    with Workers() as workers:
        if command.data_root:
            splits = ("query", "gallery")
            sets = [
                load_reid(root, command.dataset, splits=splits, variant=command.variant) for root in command.data_root
            ]
        else:
            sets = [open_data(config, workers)]
        for data in sets:  # before anything is computed that takes long
            print(data.summary())
            check_scorable(data, reranking)
        model_file, teacher_file = command.run / run_directory.MODEL, command.run / run_directory.TEACHER
        networks = load_model(model_file, "dgnet").to(workers.device) if model_file.is_file() else None
        teacher = load_model(teacher_file, "teacher").to(workers.device) if teacher_file.is_file() else None
        if networks is None and teacher is None:
            raise UserError(
                f"{command.run} holds neither {run_directory.MODEL} nor {run_directory.TEACHER};"
                f" expected a finished stage: go on with `dgfast train --resume {command.run}`"
            )
        settings = FeatureSettings.of(
            replace(config.data, loader=command.loader, loader_workers=command.loader_workers),
            EvalConfig(alpha=command.alpha, eval_batch_size=command.eval_batch_size),
            workers.device,
        )
        less = f"lower --eval-batch-size (it is {command.eval_batch_size})"
        rows = {}
        for root, data in zip(command.data_root or [None], sets, strict=True):
            with within_memory(f"{less}, or --k1, or leave --rerank away" if command.rerank else less):
                result = evaluate(data, networks, teacher, settings, reranking, alphas=command.alphas, fprs=command.fpr)
            report = _write(data, result, command.alpha, out)
            if _is_own(root, command, config) and (values := result.calibration(data.name, command.alpha)):
                run_directory.write_verification(values, out)
                print(f"threshold  {out / run_directory.VERIFICATION}")
            rows[report.stem.removeprefix("eval-")] = result.transfer_row(data) | {"report": report.name}
    if len(sets) > 1:
        text = f"alpha {command.alpha:g}\n{transfer_table(rows)}\n"
        print(f"\n{text}\ntable      {out / 'transfer.txt'}")
        write_text(text, out / "transfer.txt")
        write_json(
            {"run": str(command.run), "alpha": command.alpha, "rows": list(rows.values())}, out / "transfer.json"
        )


def _write(data: ReidData, result: Evaluation, alpha: float, out: Path) -> Path:
    """Print what a data set gave, and write report, text and picture; returns the report's path."""
    text = f"{data.name}: {len(data.query)} queries, {len(data.gallery)} gallery images\n{result.text()}\n"
    print(f"\n{text}")
    report = run_directory.report_path(out, f"eval-{data.name}", data.root)
    picture = out / f"{report.stem.replace('eval', 'rankings', 1)}.png"
    write_json({"dataset": data.name, "root": str(data.root), "alpha": alpha} | result.to_json(), report)
    write_text(f"{text}\n{result.details()}\n", report.with_suffix(".txt"))
    ranking_figure(data.query, data.gallery, result.distances.numpy(), picture)
    print(f"picture    {picture}\nreport     {report} and {report.with_suffix('.txt').name}")
    return report


def _is_own(root: Path | None, command: Command, config: Config) -> bool:
    """Whether a data set is the one that the run was trained on; None is the one that its settings name."""
    if config.data.data_root is None and config.preset not in MAKE_THEIR_OWN:
        return False  # imported weights: nobody knows
    own = config.data.data_root or pedestrians_folder(config)
    return root is None or (
        os.path.realpath(root) == os.path.realpath(own)
        and command.variant == config.data.variant
        and (config.data.dataset == command.dataset or "auto" in (config.data.dataset, command.dataset))
    )
