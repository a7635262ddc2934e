"""Re-ranking against one bare product of all features with all: time, CPU time and peak memory, on clustered features
of length 1024.

    python bench/bench_rerank.py --size market      3368 x 15,913, all distances; the dense NumPy oracle with --oracle
    python bench/bench_rerank.py --size msmt17      11,659 x 82,161, metrics from blocks
    python bench/bench_rerank.py --size metrics     CMC and mAP of Market-1501's size from distances
    python bench/bench_rerank.py --size scaling     N = 5,000 ... 100,000, and each step's exponent

Every measurement is a process of its own, so that peaks do not mix; on a GPU (--device cuda) the CPU's numbers come
beside it. `pytest bench/bench_rerank.py --benchmark` times the functions at a small size after checking them.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from dgfast.retrieval import RankedHits, cmc_map, rerank, rerank_blocks, reranking
from dgfast.retrieval.backends import backend_for

SIZES = {"market": (3368, 15913), "msmt17": (11659, 82161), "small": (336, 1973)}
SCALING = (5000, 10000, 20000, 50000, 100000)
DIMS = 1024
GIB = 2**30
STEPS = ("weights", "average", "invert", "jaccard")


def clustered(queries: int, gallery: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Features of people: identities in a low-dimensional space, moved by cameras, noise of varying strength; unit
    length."""
    rng = np.random.default_rng(seed)
    identities, cameras, latent = min(gallery // 10, max(751, gallery // 20)), 6, 48
    centres = rng.standard_normal((identities, latent), np.float32)
    shifts = 0.35 * rng.standard_normal((cameras, latent), np.float32)
    projection = rng.standard_normal((latent, DIMS), np.float32) / DIMS**0.5
    made = {}
    for name, count in (("query", queries), ("gallery", gallery)):
        persons, places = rng.integers(0, identities, count), rng.integers(0, cameras, count)
        features = np.empty((count, DIMS), np.float32)
        for start in range(0, count, 4096):
            part = slice(start, start + 4096)
            strength = rng.gamma(4, 0.25, (len(features[part]), 1)).astype(np.float32)
            noise = 0.75 * strength * rng.standard_normal((len(strength), latent), np.float32)
            features[part] = (centres[persons[part]] + shifts[places[part]] + noise) @ projection
            features[part] += 0.25 * (latent / DIMS) ** 0.5 * rng.standard_normal((len(strength), DIMS), np.float32)
            features[part] /= np.linalg.norm(features[part], axis=1, keepdims=True)
        made |= {name: features, f"{name}_ids": persons + 1, f"{name}_cameras": places}
    return made


def dense(query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, lambda_: float = 0.3) -> np.ndarray:
    """docs/method.md, section 4, with dense N x N matrices in NumPy: what users have had."""
    features = np.concatenate([query, gallery])
    n, q = len(features), len(query)
    norms = np.square(features).sum(1)
    distances = norms[:, None] + norms
    distances -= 2 * features @ features.T
    np.maximum(distances, 0, out=distances)
    distances /= distances.max(1, keepdims=True)
    order = np.argsort(distances, axis=1)[:, : max(k1 + 1, k2)].copy()
    half = round(k1 / 2) + 1

    def reciprocal(i: int, k: int) -> np.ndarray:
        own = order[i, :k]
        return own[(order[own, :k] == i).any(1)]

    weights = np.zeros((n, n), np.float32)
    for i in range(n):
        own = reciprocal(i, k1 + 1)
        found = [own]
        for candidate in own:
            theirs = reciprocal(candidate, half)
            if len(np.intersect1d(theirs, own)) > 2 / 3 * len(theirs):
                found.append(theirs)
        members = np.unique(np.concatenate(found))
        values = np.exp(-distances[i, members])
        weights[i, members] = values / values.sum()
    original = distances[:q, q:].copy()
    del distances
    if k2 > 1:
        weights = np.stack([weights[order[i, :k2]].mean(0) for i in range(n)])
    holders = [np.flatnonzero(weights[:, j]) for j in range(n)]
    result = np.empty((q, n - q), np.float32)
    for i in range(q):
        shared = np.zeros(n, np.float32)
        for j in np.flatnonzero(weights[i]):
            shared[holders[j]] += np.minimum(weights[i, j], weights[holders[j], j])
        result[i] = 1 - shared[q:] / (2 - shared[q:])
    return (1 - lambda_) * result + lambda_ * original


def bare_product(features: torch.Tensor) -> None:
    """All N x N x D, in panels, as N x N would not fit."""
    n = len(features)
    rows = min(n, max(256, 2**28 // n))
    room = torch.empty((rows, n), device=features.device)
    for start in range(0, n, rows):
        part = features[start : start + rows]
        torch.mm(part, features.t(), out=room[: len(part)])


@contextmanager
def watched(device: torch.device):
    """Yields seconds by step, which are counted within the context; the products are the step "product".

    On a GPU each step is waited for, so that its time is its own.
    """
    spent: dict[str, float] = defaultdict(float)
    kind, restore = type(backend_for(device)), []

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def watch(owner: object, attribute: str, label: str) -> None:
        plain = getattr(owner, attribute)

        def timed(*arguments, **options):
            wait()
            begin = time.perf_counter()
            result = plain(*arguments, **options)
            wait()
            spent[label] += time.perf_counter() - begin
            return result

        restore.append((owner, attribute, plain))
        setattr(owner, attribute, timed)

    watch(reranking, "make_ready", "features")
    labels = {"multiply": "product", "nearest_block": "nearest", "distances_block": "distances"}
    for name in (*labels, *STEPS):
        watch(kind, name, labels.get(name, name))
    try:
        yield spent
    finally:
        for owner, attribute, plain in restore:
            setattr(owner, attribute, plain)


def measured(call: Callable[[], object], device: torch.device) -> dict:
    """Wall and CPU seconds of a call, and the process's peak memory up to its end, in GiB."""
    begin, cpu = time.perf_counter(), time.process_time()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    taken = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    taken["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    if device.type == "cuda":
        taken["device_peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    return taken


def child(task: str, folder: Path, device: torch.device) -> dict:
    """One measurement, in this process. The bare product comes last, as its memory is not the re-ranking's."""
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    query, gallery = arrays["query"], arrays["gallery"]
    labels = [arrays[f"{side}_{what}"] for side in ("query", "gallery") for what in ("ids", "cameras")]
    if task == "oracle":
        return measured(lambda: dense(query, gallery), device)
    if task == "metrics":
        distances = 1 - query @ gallery.T
        cmc_map(distances[:8], labels[0][:8], labels[1][:8], *labels[2:])  # threads have been started
        return measured(lambda: cmc_map(distances, *labels), device)
    query, gallery = (torch.from_numpy(x).to(device) for x in (query, gallery))
    hits = RankedHits(*labels)

    def blocks() -> None:
        for first, block in rerank_blocks(query, gallery):
            hits.add(first, block)

    rerank(query[:64], gallery[:64])  # libraries are loaded, kernels too
    torch.mm(gallery[:2048], gallery[:2048].t())
    with watched(device) as spent:
        taken = measured((lambda: rerank(query, gallery)) if task == "matrix" else blocks, device)
    taken |= {"steps": dict(spent)}
    if task == "blocks":
        taken |= {"rank1": hits.scores().rank1, "mAP": hits.scores().mAP}
    features = torch.cat([query, gallery])
    bare = measured(lambda: bare_product(features), device)
    taken |= {"bare_seconds": bare["seconds"], "bare_cpu_seconds": bare["cpu_seconds"]}
    taken |= {"ratio": taken["seconds"] / bare["seconds"], "cpu_ratio": taken["cpu_seconds"] / bare["cpu_seconds"]}
    return taken


def measure(task: str, queries: int, gallery: int, device: str) -> dict:
    """One measurement in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for name, array in clustered(queries, gallery).items():
            np.save(Path(folder, name), array)
        words = [sys.executable, __file__, "--child", task, "--folder", folder, "--device", device]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return {"task": task, "device": device, "queries": queries, "gallery": gallery} | json.loads(
        done.stdout.splitlines()[-1]
    )


def table(rows: list[dict]) -> str:
    lines = [
        f"{'task':<10}{'device':<8}{'Q x G':>16}{'seconds':>10}{'CPU s':>9}{'GiB':>7}{'bare s':>9}{'ratio':>8}  steps"
    ]
    for row in rows:
        steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row.get("steps", {}).items())
        compared = f"{row['bare_seconds']:>9.2f}{row['ratio']:>8.2f}" if "ratio" in row else f"{'-':>9}{'-':>8}"
        size = f"{row['queries']} x {row['gallery']}"
        numbers = (
            f"{row['seconds']:>10.2f}{row['cpu_seconds']:>9.2f}{row.get('device_peak_gib', row['peak_gib']):>7.2f}"
        )
        lines.append(f"{row['task']:<10}{row['device']:<8}{size:>16}{numbers}{compared}  {steps}")
    return "\n".join(lines)


def exponents(rows: list[dict]) -> dict[str, float]:
    """The slope of log seconds over log N by step."""
    n = np.log([row["queries"] + row["gallery"] for row in rows])
    names = {"total": [row["seconds"] for row in rows], "bare product": [row["bare_seconds"] for row in rows]}
    names |= {name: [row["steps"].get(name, np.nan) for row in rows] for name in rows[0]["steps"]}
    return {name: round(float(np.polyfit(n, np.log(seconds), 1)[0]), 2) for name, seconds in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "market", "msmt17", "metrics", "scaling"], default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--oracle", action="store_true", help="also the dense NumPy oracle (small and market; market takes 9 GiB)"
    )
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        print(json.dumps(child(words.child, words.folder, torch.device(words.device))))
        return
    devices = ["cuda", "cpu"] if words.device == "cuda" else ["cpu"]
    if words.size == "scaling":
        rows = [measure("blocks", n // 6, n - n // 6, words.device) for n in SCALING]
    elif words.size == "metrics":
        rows = [measure("metrics", *SIZES["market"], "cpu")]
    else:
        task = "blocks" if words.size == "msmt17" else "matrix"
        rows = [measure(task, *SIZES[words.size], device) for device in devices]
        if words.oracle:
            rows.append(measure("oracle", *SIZES[words.size], "cpu"))
    report = {"rows": rows, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if words.size == "scaling":
        report["exponents"] = exponents(rows)
    if words.device == "cuda":
        report["gpu"] = torch.cuda.get_device_name()
    text = json.dumps(report, indent=1)
    print(f"{text}\n\n{table(rows)}")
    if "exponents" in report:
        print("exponents: " + ", ".join(f"{name} {value}" for name, value in report["exponents"].items()))
    if words.json:
        words.json.write_text(text)


@pytest.fixture(scope="module")
def case() -> dict[str, np.ndarray]:
    return clustered(*SIZES["small"])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("what", ["rerank", "blocks and metrics", "bare product"])
def test_rerank(benchmark, case, device, what):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    query, gallery = (torch.from_numpy(case[side]).to(device) for side in ("query", "gallery"))
    labels = [case[f"{side}_{name}"] for side in ("query", "gallery") for name in ("ids", "cameras")]
    expected = dense(case["query"], case["gallery"])
    np.testing.assert_allclose(rerank(query, gallery).cpu(), expected, rtol=0, atol=1e-5)
    features = torch.cat([query, gallery])

    def blocks() -> float:
        hits = RankedHits(*labels)
        for first, block in rerank_blocks(query, gallery):
            hits.add(first, block)
        return hits.scores().mAP

    assert blocks() == pytest.approx(cmc_map(expected, *labels).mAP, abs=1e-4)
    calls = {
        "rerank": lambda: rerank(query, gallery),
        "blocks and metrics": blocks,
        "bare product": lambda: bare_product(features),
    }

    def run() -> None:
        calls[what]()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)


def test_metrics(benchmark, case):
    labels = [case[f"{side}_{name}"] for side in ("query", "gallery") for name in ("ids", "cameras")]
    distances = 1 - case["query"] @ case["gallery"].T
    benchmark.pedantic(lambda: cmc_map(distances, *labels), rounds=5, warmup_rounds=1)


if __name__ == "__main__":
    main()
