"""Part 8: re-ranking."""

import os
import shutil
import sys
import time

import numpy as np
import torch

from bench import bench_rerank
from dgfast import _rerank
from dgfast.retrieval import RankedHits, nearest, rerank, rerank_blocks, rerank_topk
from dgfast.retrieval.reranking import Reranking, _Job

from ..bounded import bounded
from ..record import Record
from .common import DEVICE, LEFT_FOR_LAST, ON_GPU, run_tests, wait_for_device


def reranking(record: Record) -> None:
    """Results, time and memory of re-ranking on the device; long lists; the toolkit's checker for races."""
    began = time.perf_counter()
    if not (ON_GPU and _rerank.build_info()["cuda"]):
        record.left_out("the extension's CUDA steps: it was built without CUDA, or there is no GPU")
    sizes = [(3368, 15913), (6666, 33334)]
    for queries, gallery in [(60, 300)] if record.dry_run else sizes:
        made = bench_rerank.clustered(queries, gallery)
        _rerank_one(record, made, queries + gallery)
    q, g, k = (40, 300, 200) if record.dry_run else (1000, 5000, 4200)
    few = {"query": torch.from_numpy(made["query"][:q]), "gallery": torch.from_numpy(made["gallery"][:g])}
    placed = {side: x.to(DEVICE) for side, x in few.items()}
    lists = [(torch.as_tensor(x.distances).cpu(), torch.as_tensor(x.indices).cpu()) for x in
             (nearest(**few, k=k), nearest(**placed, k=k))]  # fmt: skip
    record.check(f"lists of {k}: distances", float((lists[0][0] - lists[1][0]).abs().max()), 1e-5)
    differ = (lists[0][1].sort(1)[0] != lists[1][1].sort(1)[0]).float().mean()
    record.check(f"lists of {k}: share of rows' entries that differ", float(differ), 1e-2)
    distances, order = rerank_topk(**placed, k=g)
    expected = rerank(**few)
    off = (distances.cpu() - expected.gather(1, order.cpu())).abs()
    record.check(f"top {g}: share of distances off by 1e-4", float((off > 1e-4).float().mean()), 1e-3)
    record.holds(f"top {g} ascends", bool((distances.diff(dim=1) >= 0).all()))
    if not ON_GPU:
        record.left_out("top-k's peak memory, tests/gpu, compute-sanitizer: they need a GPU")
        return
    _topk_memory(record, made)
    run_tests(record, "tests/gpu", "tests/gpu")
    if shutil.which("compute-sanitizer") is None:
        record.left_out("racecheck: no compute-sanitizer on the path")
        return
    left = record.content["limit_s"] - LEFT_FOR_LAST - (time.perf_counter() - began)
    words = ["-m", "pytest", "-q", "tests/gpu/test_reranking.py", "-k", "64 and CudaBackend"]
    command = ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9", sys.executable, *words]
    status, said = bounded(command, dict(os.environ), left)
    if status is None:
        record.left_out(f"racecheck: not done after {left:.0f} s")
    else:
        record.holds("racecheck at n = 64", status == 0, said[-1500:])


def _rerank_one(record: Record, made: dict[str, np.ndarray], n: int) -> None:
    """All distances against the CPU's, where two neighbours at nearly one distance may have changed places."""
    query, gallery = (torch.from_numpy(made[side]) for side in ("query", "gallery"))
    labels = [made[f"{side}_{what}"] for side in ("query", "gallery") for what in ("ids", "cameras")]
    on_device = query.to(DEVICE), gallery.to(DEVICE)
    rerank(on_device[0][:64], on_device[1][:64])  # libraries are loaded
    apart = total = 0
    found = rerank(*on_device).cpu()
    hits = [RankedHits(*labels) for _ in range(2)]
    for first, block in rerank_blocks(query, gallery):
        part = found[first : first + len(block)]
        apart, total = apart + int(((part - block).abs() > 1e-4).sum()), total + block.numel()
        for one, rows in zip(hits, (part, block), strict=True):
            one.add(first, rows)
    scores = [one.scores().mAP for one in hits]
    record.check(f"N = {n}: share of distances off by 1e-4", apart / total, 1e-3)
    record.check(f"N = {n}: difference in mAP", abs(scores[0] - scores[1]), 1e-4)
    wait_for_device()
    taken = bench_rerank.measured(lambda: rerank(*on_device), DEVICE)
    features = torch.cat(on_device)
    bench_rerank.bare_product(features[:2048])
    bare = bench_rerank.measured(lambda: bench_rerank.bare_product(features), DEVICE)
    record.figure(f"N = {n}: s", taken["seconds"])
    record.figure(f"N = {n}: ratio to the bare product", taken["seconds"] / bare["seconds"])


def _topk_memory(record: Record, made: dict[str, np.ndarray]) -> None:
    """The peak of top-k against the estimate that refuses what would not fit."""
    query, gallery = (torch.from_numpy(made[side]).to(DEVICE) for side in ("query", "gallery"))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    rerank_topk(query, gallery, 100)
    peak = torch.cuda.max_memory_allocated() - before
    record.figure("top-k peak, GiB", peak / 2**30)
    estimate = _Job(query, gallery, Reranking(), "")._bytes_needed()
    record.check("top-k's peak over its estimate", peak / estimate, 1.0)
