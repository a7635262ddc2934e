"""How fast ready batches arrive: DALI against the torchvision loader on the same cores, against bare JPEG decoding, and
against a training step.

`pytest bench/bench_loading.py --benchmark -s` prints images/s of each case and the ratios of one run. All cases read
the same files from memory, 128x64 as those of Market-1501, and deliver 256x128. Each has as many threads or processes
as this process has cores.
"""

import io
import os
import time
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from dgfast.config import PRESETS
from dgfast.data import PairSampler, Record, denormalise, pair_loader
from dgfast.models import DGNet
from dgfast.models.dgnet import make_teacher
from dgfast.profiling.measure import first_full_iteration
from dgfast.training.distributed import Workers
from dgfast.training.precision import MixedPrecision
from dgfast.training.stages import DGNetStage

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
CORES = len(os.sched_getaffinity(0))
IDENTITIES, IMAGES_EACH = 64, 4
BATCH = 8  # samples a stream: 32 images a batch
BATCHES, ROUNDS = 20, 5  # batches of a round; the best round counts
STEPS = 30 if DEVICE.type == "cuda" else 2

rates: dict[str, float] = {}  # images/s of the cases so far


def pictures(folder):
    """Coarse colours and fine noise, 128x64, quality 90: 4 to 5 KB per file, as pictures of real pedestrians have."""
    rng = np.random.default_rng(0)
    found = []
    for place in range(IDENTITIES * IMAGES_EACH):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 6, 3), dtype=np.uint8)).resize(
            (64, 128), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse, np.float64) + rng.normal(0, 6, (128, 64, 3))
        path = folder / f"{place}.jpg"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)
        found.append(Record(path, place // IMAGES_EACH, 1))
    return found


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("images"))


def loader_of(kind, records, workers=CORES):
    sampler = PairSampler([r.person for r in records], seed=0, batch=BATCH)
    return pair_loader(kind, records, sampler, device=DEVICE, workers=workers, prefetch=2, cache="ram")


def check(loader, records):
    """Nothing is timed before its batches have been compared with the other loader's."""
    other = loader_of("torchvision", records, workers=0)
    for _ in range(2):
        ours, theirs = next(loader), next(other)
        assert torch.equal(ours.a.index, theirs.a.index)
        off = (denormalise(ours.a.image).float() - denormalise(theirs.a.image).float()).abs()
        assert off.mean() < 1
    other.close()


def take(loader, batches):
    for _ in range(batches):
        batch = next(loader)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return batch


def measure(benchmark, name, run, images):
    benchmark.group = f"{name}, {CORES} cores, {DEVICE.type}"
    benchmark.pedantic(run, rounds=ROUNDS if benchmark.enabled else 1, warmup_rounds=1)
    if benchmark.enabled:
        rates[name] = images / benchmark.stats.stats.min
        print(f"\n{name}: {rates[name]:.0f} images/s on {CORES} cores")


# In this order, so that processes are forked before there are threads of DALI.
@pytest.mark.parametrize("kind", ["torchvision", "dali"])
def test_ready_batches(benchmark, records, kind):
    loader = loader_of(kind, records)
    check(loader, records)
    measure(benchmark, kind, partial(take, loader, BATCHES), BATCHES * 4 * BATCH)
    loader.close()


def test_bare_decoding(benchmark, records):
    """DALI's decoder and nothing else, on the CPU: no loader on these cores can be faster."""
    from nvidia.dali import Pipeline, fn, types

    files = [np.fromfile(r.path, np.uint8) for r in records][: 4 * BATCH]
    pipeline = Pipeline(batch_size=4 * BATCH, num_threads=CORES, device_id=None, prefetch_queue_depth=2)
    with pipeline:
        encoded = fn.external_source(lambda: files, dtype=types.UINT8, ndim=1)
        pipeline.set_outputs(fn.decoders.image(encoded, output_type=types.RGB))
    decoded = pipeline.run()[0]
    for place in (0, 4 * BATCH - 1):
        right = np.asarray(Image.open(io.BytesIO(files[place].tobytes())))
        assert np.array_equal(decoded.at(place), right)
    measure(benchmark, "bare decoding", lambda: [pipeline.run() for _ in range(BATCHES)], BATCHES * 4 * BATCH)


def test_ratios():
    """Prints what the cases before it have found."""
    if len(rates) < 3:
        pytest.skip("the cases were not timed")
    faster, share = rates["dali"] / rates["torchvision"], rates["dali"] / rates["bare decoding"]
    print(f"\nDALI {faster:.2f} times as fast as torchvision, {share:.0%} of bare decoding")


@pytest.mark.parametrize("kind", ["torchvision", "dali"])
def test_share_of_a_step_spent_waiting(records, request, kind):
    """Training steps at the paper's size on a GPU (at the quick start's on a CPU), images/s they consume and wait for.

    The weights lie as in a run, and all losses are on.
    """
    if not request.config.getoption("--benchmark"):
        pytest.skip("nothing but a measurement")
    config = PRESETS["market1501" if DEVICE.type == "cuda" else "quickstart"]
    networks, teacher = (
        network.to(DEVICE, memory_format=torch.channels_last)
        for network in (DGNet(config.model, IDENTITIES), make_teacher(config.model, IDENTITIES).eval())
    )
    workers, first = Workers(), first_full_iteration(config.loss)
    stage = DGNetStage(
        networks, teacher, config, workers, MixedPrecision(config.run.precision, DEVICE, config.run.tf32)
    )
    loader = loader_of(kind, records)
    waiting, began = 0.0, 0.0
    for iteration in range(STEPS + 2):
        if iteration == 2:  # the first two compile, allocate and fill the queues
            waiting, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(loader)
        waiting += time.perf_counter() - asked
        losses = stage.step(batch, first + iteration)
        losses["g/total"].item()  # waits for the device, which is then idle while the next batch is not there
    seconds = time.perf_counter() - began
    loader.close()
    rate = STEPS * 4 * BATCH / seconds
    step = f"a step takes {seconds / STEPS * 1e3:.0f} ms, {rate:.0f} images/s"
    print(f"\n{kind}: {step}, {waiting / seconds:.2%} of it waiting")
