"""Part 7: both loaders."""

import re
import tempfile
import time
from pathlib import Path

from bench import bench_loading
from dgfast.data import denormalise

from ..record import Record
from .common import run_tests


def loading(record: Record) -> None:
    """Pictures of both loaders, how fast they come, and how long steps wait for them."""
    with tempfile.TemporaryDirectory() as folder:
        records = bench_loading.pictures(Path(folder))
        # torchvision's first: its processes are forked before there are threads of DALI.
        plain, fused = (bench_loading.loader_of(kind, records) for kind in ("torchvision", "dali"))
        mean, largest = [], []
        for _ in range(2):
            pairs = zip(*((b.a.image, b.b.positive, b.b.erased) for b in (next(plain), next(fused))), strict=True)
            off = [(denormalise(a).float() - denormalise(b).float()).abs() for a, b in pairs]
            mean += [float(one.mean()) for one in off]
            largest += [float(one.max()) for one in off]
        record.check("pictures, mean difference in steps of 255", max(mean), 1.0)
        record.figure("largest difference of a value", max(largest))
        batches = 2 if record.dry_run else 100
        for kind, loader in (("torchvision", plain), ("dali", fused)):
            bench_loading.take(loader, 2)
            began = time.perf_counter()
            bench_loading.take(loader, batches)
            rate = batches * 4 * bench_loading.BATCH / (time.perf_counter() - began)
            record.figure(f"{kind} images/s", rate)
            loader.close()
    if record.dry_run:
        record.left_out("the share of steps that waits, a minute on a CPU")
        return
    said = run_tests(
        record, "steps run from both loaders", "bench/bench_loading.py", "--benchmark", "-s", "-k", "waiting"
    )
    for kind, share in re.findall(r"(torchvision|dali): a step takes .*? ([\d.]+)% of it waiting", said):
        record.figure(f"{kind} waiting", float(share) / 100)
