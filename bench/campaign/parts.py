"""The eleven parts. Each takes a record and notes in it what it finds; an exception, too, makes the verdict bad.

They put together what bench/ and tests/ have: the shapes of the compiler's tables, the cases that the kernels pass in
Triton's interpreter, the step's restatement, the benchmarks. In a dry run the same code takes fewer and smaller cases
on the CPU.
"""

import copy
import dataclasses
import functools
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import dgfast.kernels._normalise as _normalise
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from dgfast.kernels import reflect
from dgfast.kernels._tuning import Tiling
from torch import Tensor, nn

from bench import bench_adain, bench_loading, bench_rerank
from bench.bench_step import WARM, made_up
from dgfast import _rerank
from dgfast.config import PRESETS, Config, ModelConfig, OptimConfig
from dgfast.data import Record as Image
from dgfast.data import ReidData, denormalise
from dgfast.data.batches import PairBatch
from dgfast.models import DGNet, Teacher
from dgfast.models.dgnet import make_teacher
from dgfast.models.layers import kaiming_fan_in
from dgfast.profiling.measure import Measurement, count, images_per_iteration, iterations_of, timed
from dgfast.profiling.peaks import card_peak
from dgfast.retrieval import RankedHits, nearest, rerank, rerank_blocks, rerank_topk
from dgfast.retrieval.features import dgnet_halves, mirrored
from dgfast.retrieval.reranking import Reranking, _Job
from dgfast.training import graphs
from dgfast.training.distributed import Workers
from dgfast.training.graphs import CudaGraphs, Recorder
from dgfast.training.precision import MixedPrecision
from dgfast.training.samples import sample_grid
from dgfast.training.stages import STRUCTURE_LEARNS, DGNetStage
from dgfast.training.step import weights_at
from tests import test_aot, tiny
from tests.captured import Tapes
from tests.interpreted import l1_kl_cases
from tests.interpreted.adain_cases import TOLERANCE
from tests.test_lean_step import errors, lean

from .bounded import ROOT, bounded
from .record import Record

CLASSES = 751
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
COMPILING = 8  # processes that compile kernels at the same time
LEFT_FOR_LAST = 20.0  # seconds of a part's limit in which nothing new begins


class Size(NamedTuple):
    """Networks and a batch.

    model: sizes of the networks.
    image: height and width, pixels.
    samples: of a stream.
    """

    model: ModelConfig
    image: tuple[int, int]
    samples: int


FULL = Size(ModelConfig(), (256, 128), 2)
TINY = Size(tiny.MODEL, tiny.SIZE, 2)


def _size(record: Record, samples: int = 2) -> Size:
    return TINY if record.dry_run else FULL._replace(samples=samples)


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def _milliseconds(run: Callable[[], object], number: int) -> float:
    """The median of some runs, ms: between events of the device, on a CPU by the clock."""
    run()
    found = []
    for _ in range(number):
        if ON_GPU:
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            stop.record()
            stop.synchronize()
            found.append(start.elapsed_time(stop))
        else:
            began = time.perf_counter()
            run()
            found.append(1000 * (time.perf_counter() - began))
    return sorted(found)[number // 2]


# --- 1: normalising kernels


def normalisations(record: Record) -> None:
    """Outputs and all gradients of every call in the networks, in every format and tiling, against fp64."""
    cases = test_aot.CASES
    jobs = [
        (number, dtype, tiling, min(samples, 16))
        for number, case in enumerate(cases)
        for dtype in test_aot.FORMATS
        for tiling, samples in test_aot.cuts(case, dtype)
    ]
    if record.dry_run:
        exact = [job for job in jobs if job[1] == torch.float32]
        names = {"E_s block 2nd", "G block 1st", "stripes, quick start", "G upsample 1"}
        first = {n: next(job for job in exact if job[0] == n) for n, case in enumerate(cases) if case.name in names}
        jobs = [(n, dtype, tiling._replace(pixels=64), 1) for n, dtype, tiling, _ in first.values()]
        record.left_out(f"all but {len(jobs)} calls, which Triton's interpreter runs at 9 x 7 pixels")
    worst: dict[tuple[str, str], float] = {}
    for job, (found, trouble) in zip(jobs, _in_processes(jobs, 0 if record.dry_run else COMPILING), strict=True):
        if trouble:
            record.holds(f"{cases[job[0]].name}, {test_aot.FORMATS[job[1]]}, {job[2]}", False, trouble)
        for where, error in found.items():
            worst[where] = max(worst.get(where, 0.0), error) if math.isfinite(error) else math.inf
    for (form, what), error in sorted(worst.items()):
        dtype = next(dtype for dtype, name in test_aot.FORMATS.items() if name == form)
        record.check(f"{form}, {what}", error, TOLERANCE[dtype][what != "output"])
    record.figure("kernel calls", len(jobs))


Job = tuple[int, torch.dtype, Tiling, int]  # number of the case, format, tiling, samples
Errors = dict[tuple[str, str], float]  # format and tensor -> largest error, as a share of the reference's largest value


def _in_processes(jobs: list[Job], processes: int) -> Iterator[tuple[Errors, str]]:
    """Errors of each job, and what went wrong; 0 processes: in this one."""
    if not processes:
        yield from map(_normalisation, jobs)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_normalisation, jobs)


def _normalisation(job: Job) -> tuple[Errors, str]:
    try:
        return _normalisation_errors(job), ""
    except Exception as error:
        return {}, f"{type(error).__name__}: {str(error)[:300]}"


def _normalisation_errors(job: Job) -> Errors:
    number, dtype, tiling, samples = job
    case = test_aot.CASES[number]
    c, h, w = case.shape if ON_GPU else (min(case.shape[0], 20), 9, 7)
    call = bench_adain.Call(
        case.name, (samples, c, h, w), injected=case.injected, residual=case.residual,
        slope=0.2 if case.activate else 1.0, pad=case.pad, per_sample=case.per_sample, stripes=case.stripes,
    )  # fmt: skip
    data = bench_adain.tensors(call, dtype, seed=number)
    with torch.no_grad():
        data.inputs[0].mul_(0.1).add_(5)  # a mean that E[x^2] - E[x]^2 would not survive
    exact = [t.detach().double().requires_grad_() for t in data.inputs]
    expected = bench_adain.operation(call, "eager")(*exact)
    gradients = torch.autograd.grad(expected, exact, data.upstream.double())
    with mock.patch.object(_normalise, "tilings", lambda *_: [tiling]):
        out = bench_adain.operation(call, "triton")(*data.inputs)
        found = torch.autograd.grad(out, data.inputs, data.upstream)
    rows = ("gradient of scale", "gradient of bias") if case.injected or case.per_sample else ()
    names = ("output", "gradient of x", *rows, *(("gradient of residual",) if case.residual else ()))
    return {
        (test_aot.FORMATS[dtype], name): float((a.detach().double() - b.detach()).abs().max() / b.detach().abs().max())
        for name, a, b in zip(names, (out, *found), (expected, *gradients), strict=True)
    }


# --- 2: combined loss and border


def losses(record: Record) -> None:
    """The cases of tests/interpreted/l1_kl_cases.py with tensors of the device, and the border differentiated twice."""
    made = l1_kl_cases.made
    calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = [
        (l1_kl_cases.test_strides, ()),
        (l1_kl_cases.test_divergence_of_extreme_logits, ()),
        (l1_kl_cases.test_logits_of_any_strides, ()),
        (l1_kl_cases.test_fp16_gradients_survive_a_small_weight, ()),
        *((l1_kl_cases.test_a_step, (*way, last)) for way in l1_kl_cases.TOLERANCES for last in (False, True)),
        *((l1_kl_cases.test_ready_labels, (mass,)) for mass in (1.0, 0.4)),
        *((l1_kl_cases.test_divergence, (classes, views)) for classes in (1, 513, 10_000) for views in (1, 2)),
    ]
    if record.dry_run:
        calls = [calls[0], calls[4], calls[10]]
        record.left_out("most cases of the loss; tests/test_l1_kl.py runs them in the interpreter")
    else:
        calls += [(l1_kl_cases.test_offset_data, ()), (l1_kl_cases.test_equal_calls_give_equal_bits, ())]
    with mock.patch.object(l1_kl_cases, "made", lambda *a, **k: made(*a, **k).to(DEVICE)):
        for case, arguments in calls:
            words = ", ".join(map(str, arguments))
            try:
                case(*arguments)
            except AssertionError as error:
                record.holds(f"{case.__name__}({words})", False, str(error)[:300])
            else:
                record.holds(f"{case.__name__}({words})", True)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        record.check(f"border twice differentiated, {dtype}", _border_error(dtype), tolerance)


def _border_error(dtype: torch.dtype) -> float:
    """Largest error of a second derivative through a border, as a share of its largest value."""
    x = torch.randn(2, 5, 9, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.randn(2, 5, 15, 13, generator=torch.Generator().manual_seed(1)).to(dtype)

    def second(pad: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
        x = x.requires_grad_()
        (first,) = torch.autograd.grad((pad(x) ** 3 * weight).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), x)[0]

    placed = x.to(DEVICE, memory_format=torch.channels_last)
    found = second(lambda t: reflect(t, 3), placed.clone(), weight.to(DEVICE)).double().cpu()
    expected = second(lambda t: F.pad(t, (3,) * 4, mode="reflect"), x.double(), weight.double())
    return float((found - expected).abs().max() / expected.abs().max())


# --- 3: a whole step

LossesAndGradients = tuple[dict[str, Tensor], ...]


def _networks(size: Size, device: torch.device) -> tuple[DGNet, Teacher]:
    """The same weights on every device; no dropout, whose draws differ between devices."""
    torch.manual_seed(0)
    model = dataclasses.replace(size.model, prim_dropout=0.0, fine_dropout=0.0)
    networks, teacher = DGNet(model, CLASSES), make_teacher(model, CLASSES).eval().requires_grad_(False)
    kaiming_fan_in(networks.discriminator)  # else its gradients are little more than rounding
    form = torch.channels_last
    return networks.train().to(device, memory_format=form), teacher.to(device, memory_format=form)


def _config(size: Size, **optim: Any) -> Config:
    return Config(optim=OptimConfig(batch_size=size.samples, **optim), model=size.model)


def _stage(
    size: Size, precision: str = "fp32", workers: Workers | None = None, change: Callable[[Any], Any] | None = None,
    recorder: Callable[[], Recorder] | None = None, **optim: Any,
) -> DGNetStage:  # fmt: skip
    """DG-Net's stage as a run has it; `change` is applied to the networks before."""
    networks, teacher = _networks(size, DEVICE)
    formats = MixedPrecision(precision, DEVICE, tf32=False)
    networks = change(networks) if change else networks
    return DGNetStage(networks, teacher, _config(size, **optim), workers or Workers(), formats, recorder)


def whole_step(record: Record) -> None:
    """Losses and gradients of a step on the card against the CPU; then other formats and ways to save memory.

    Gradients are compared with BatchNorm's running statistics. Through those of so few images random weights turn
    rounding into anything: on one CPU two layouts of memory agree to 1e-4 in the median of all tensors with the one,
    and to 0.2 with the other, although their losses agree to 5e-5 either way.
    """
    MixedPrecision("fp32", DEVICE, tf32=False)  # forbids TF32
    size, weights = _size(record), weights_at(Config().loss, WARM)
    batch = made_up(size.samples, size.image, torch.device("cpu"))

    def found(device: torch.device, learns: bool, by_batch: bool, recompute: bool = False) -> LossesAndGradients:
        networks, teacher = _networks(size, device)
        networks.appearance.train(by_batch)
        networks.structure.recompute = networks.decoder.recompute = recompute
        things = networks, teacher, batch.to(device), weights
        found = lean(*things, joint=True, structure_learns=learns, batch_statistics=by_batch)
        return tuple({name: value.cpu() for name, value in part.items()} for part in found)

    largest = 0.0
    for learns in (True, False):
        side = "E_s learns" if learns else "E_s judges"
        expected, here = (found(device, learns, by_batch=False) for device in (torch.device("cpu"), DEVICE))
        error = _loss_error(here[0], expected[0])
        largest = max(largest, error)
        record.check(f"fp32 against the CPU, {side}: losses", error, 1e-4)
        _check_gradients(record, f"fp32 against the CPU, {side}", here[1], expected[1])
        kept = found(DEVICE, learns, by_batch=False, recompute=True)
        record.check(f"activations recomputed, {side}: losses", _loss_error(kept[0], here[0]), 1e-4)
        _check_gradients(record, f"activations recomputed, {side}", kept[1], here[1])
    expected, here = (found(device, True, by_batch=True) for device in (torch.device("cpu"), DEVICE))
    record.check("fp32 against the CPU, statistics of the batch: losses", _loss_error(here[0], expected[0]), 1e-3)
    record.figure("largest error of a loss", largest)
    steps = 2 if record.dry_run else 10
    for precision in ("bf16", "fp16"):
        stage, on_device = _stage(size, precision), batch.to(DEVICE)
        seen = [stage.step(on_device, WARM + i) for i in range(steps)]
        bad = sorted({name for one in seen for name, loss in one.items() if not loss.isfinite()})
        record.holds(f"{steps} steps in {precision} are finite", not bad, ", ".join(bad))
    moved = []
    for parts in (1, 2):
        stage = _stage(size, batch_norm="frozen", accumulate=parts)
        before = _flat(stage.networks.appearance)
        stage.step(batch.to(DEVICE), WARM)
        moved.append(_flat(stage.networks.appearance) - before)
    # Batch statistics are frozen, so that a mean over two parts is the mean of the whole.
    record.check("E_a's update in two parts", float((moved[1] - moved[0]).norm() / moved[0].norm()), 2e-2)


def _loss_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference of a loss, relative to it, or to 0.01 where it is smaller; NaN if there is one."""
    differences = [(found[k] - v).abs() / v.abs().clamp_min(1e-2) for k, v in expected.items()]
    return float(torch.stack(differences).max())


def _check_gradients(record: Record, name: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The middle of all tensors tells of wrong arithmetic. A single one may be off further: a unit on a kink of an
    activation falls on either side by rounding."""
    off = torch.tensor(list(errors(found, expected).values()))
    record.check(f"{name}: gradients, median", float(off.median()), 1e-3)
    record.check(f"{name}: gradients, largest", float(off.max()), 5e-2)


def _flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# --- 4: waiting; 5: D's update


def no_waiting(record: Record) -> None:
    """torch refuses whatever waits for the device while iterations run."""
    size = _size(record, samples=8)
    stage, batch = _stage(size, "bf16"), made_up(size.samples, size.image, DEVICE)
    seed = stage.config.run.seed
    first = next(i for i in range(WARM, WARM + 99) if len({_learns(seed, j) for j in range(i, i + 2)}) == 2)
    for iteration in range(first, first + 2):
        stage.step(batch, iteration)  # compiles, tunes and allocates
    _wait()
    if not ON_GPU:
        record.left_out("torch's check that nothing waits for the device, which needs one")
    try:
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("error")
        for iteration in range(first, first + 2):
            seen = stage.step(batch, iteration)
    finally:
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("default")
    record.holds("both kinds of iterations ran without waiting", bool(seen["g/total"].isfinite()), "not finite")


def _learns(seed: int, iteration: int) -> bool:
    """The coin of an iteration, as the stage throws it."""
    return random.Random(f"{seed}:{iteration}").random() < STRUCTURE_LEARNS


def penalty(record: Record) -> None:
    """What R1 adds to D's update: a second derivative, about as dear as two more backward passes."""
    size = _size(record, samples=8)
    stage, batch = _stage(size, "bf16"), made_up(size.samples, size.image, DEVICE)
    translation = stage.translate(batch)
    weights = weights_at(stage.config.loss, WARM)
    took, number = {}, 2 if record.dry_run else 10
    for name, factor in (("with", weights.r1), ("without", 0.0)):
        chosen = dataclasses.replace(weights, r1=factor)
        took[name] = _milliseconds(lambda w=chosen: stage.update_discriminator([(batch, translation, w)]), number)
        record.figure(f"{name} R1, ms", took[name])
    limit = math.inf if record.dry_run else 4.0
    record.check("D's update with R1 over without", took["with"] / took["without"], limit)


# --- 6: profiles


def profiles(record: Record) -> None:
    """Batch 8 and 32, each way to compile, in processes of their own while there is time."""
    began = time.perf_counter()
    ways = [(8, "off"), (32, "off"), (8, "default"), (8, "reduce-overhead"), (32, "default"), (32, "reduce-overhead")]
    if record.dry_run:
        ways = [(2, "off")]
        record.left_out("compiled steps, which take minutes on a CPU")
    for batch, way in ways:
        left = record.content["limit_s"] - LEFT_FOR_LAST - (time.perf_counter() - began)
        if left < 60:
            record.left_out(f"batch {batch}, {way}: no time left")
            continue
        found, trouble = _apart(_profile, (batch, way, record.dry_run), left)
        record.holds(f"batch {batch}, {way} runs, with samples and features between", not trouble, trouble)
        for name, value in (found or {}).items():
            record.figure(f"batch {batch}, {way}: {name}", value)


def _apart(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> tuple[Any, str]:
    """Result of a function in a process of its own, and what went wrong there, "" if nothing did."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        if not mine.poll(seconds):
            return None, f"not done after {seconds:.0f} s"
        return mine.recv()
    except EOFError:
        process.join()
        return None, f"ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _answer(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = function(*arguments), ""
    except Exception as error:
        answer = None, f"{type(error).__name__}: {str(error)[:600]}"
    pipe.send(answer)


def _profile(batch: int, way: str, dry_run: bool) -> dict[str, float]:
    """What `dgfast profile` measures, and a sample grid and features between two of its iterations."""
    config = PRESETS["market1501"]
    if dry_run:
        config = dataclasses.replace(
            config,
            model=tiny.MODEL,
            data=dataclasses.replace(config.data, image_height=tiny.SIZE[0], image_width=tiny.SIZE[1]),
        )
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, loader="torchvision"),
        teaching=dataclasses.replace(config.teaching, backbone_weights="none"),
        optim=dataclasses.replace(config.optim, batch_size=batch),
        run=dataclasses.replace(config.run, compile=way, precision="bf16"),
    )
    people = tuple(Image(Path("made-up"), person, camera=1) for person in range(1, CLASSES + 1))
    data, measurement, workers = ReidData("made-up", Path(), people, (), ()), Measurement(), Workers()
    with iterations_of(measurement, config, data, workers, lambda: None) as (iterations, precision):
        iterations.run(2 if dry_run else 8)  # both kinds of iterations are compiled
        networks = iterations.stage.networks_by_name
        grid = _sample_and_extract(iterations.stage.networks, next(iterations.loader).a.image)
        assert grid.dtype == torch.uint8 and set(networks) >= {"E_a", "G"}
        iterations.run(2)
        timing = timed(iterations, 2 if dry_run else 20, workers)
        work = count(iterations) if way == "off" else None
        losses = iterations.stage.step(next(iterations.loader), iterations.iteration)
        assert all(loss.isfinite() for loss in losses.values()), losses
    images = images_per_iteration(measurement, config) / timing.seconds
    found = {"images/s": images, "ms": 1000 * timing.seconds, "peak GiB": timing.memory.peak}
    peak = card_peak(torch.cuda.get_device_name(), precision, False) if ON_GPU else None
    # The same work in every way to compile; it is counted in eager torch. 261.4 GFLOP an image: docs/benchmarks.md.
    if peak and not dry_run:
        found["mfu"] = images * 261.4e9 / (peak * 1e12)
    return found | ({"aten calls": work.calls, "GFLOP an image": work.flops / batch / 2e9} if work else {})


def _sample_and_extract(networks: DGNet, images: Tensor) -> Tensor:
    """What a run does between iterations, and at its end, in the way that it does it."""
    with torch.compiler.set_stance("force_eager"):
        grid = sample_grid(networks, images[: len(images) // 2], images[len(images) // 2 :])
        networks.eval()
        with torch.inference_mode():
            halves = mirrored(dgnet_halves(networks), images)
        networks.train()
    lengths = torch.cat(halves, 1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 2**0.5), rtol=1e-3, atol=1e-3)
    return grid


# --- 7: loading


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
    said = _pytest(
        record, "steps run from both loaders", "bench/bench_loading.py", "--benchmark", "-s", "-k", "waiting"
    )
    for kind, share in re.findall(r"(torchvision|dali): a step takes .*? ([\d.]+)% of it waiting", said):
        record.figure(f"{kind} waiting", float(share) / 100)


def _pytest(record: Record, name: str, *words: str) -> str:
    """Note whether tests pass in a process of their own, and return what they said."""
    # Not the interpreter of this process.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    tail = "\n".join(done.stdout.splitlines()[-12:])
    record.holds(name, done.returncode == 0 and " passed" in done.stdout, tail[-1500:])
    return done.stdout


# --- 8: re-ranking


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
    _pytest(record, "tests/gpu", "tests/gpu")
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
    _wait()
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


# --- 9: bandwidth


def bandwidth(record: Record) -> None:
    """The benchmarks of the kernels: they compare with the reference first, then time graphs beyond the L2 cache."""
    cases = (
        ("adain", "bench/bench_adain.py", "48 and bf16 and both", "eager and forward and block and 8", 1.3),
        ("l1_kl", "bench/bench_l1_kl.py", "64 and bf16 and both", "eager and both", 1.5),
    )
    if record.dry_run:
        few = " or ".join(f"{Path(file).stem} and {choice}" for _, file, _, choice, _ in cases)
        _pytest(record, "results alone", *(file for _, file, *_ in cases), "-k", few)
        record.left_out("times: they are those of a GPU")
        return
    for name, file, chosen, _, faster in cases:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "times.json"
            _pytest(record, file, file, "--benchmark", f"--benchmark-json={target}", "-k", chosen)
            times = json.loads(target.read_text())["benchmarks"] if target.is_file() else []
        rows = {one["name"]: one["extra_info"] for one in times if "microseconds_a_call" in one["extra_info"]}
        shares = [row["fraction_of_copy_bandwidth"] for case, row in rows.items() if "triton" in case]
        ratios = [
            rows[case.replace("triton", "compile")]["microseconds_a_call"] / row["microseconds_a_call"]
            for case, row in rows.items()
            if "triton" in case and case.replace("triton", "compile") in rows
        ]
        if not shares or not ratios:
            record.holds(f"{name} was timed", False, f"{len(times)} benchmarks, {len(rows)} with times a call")
            continue
        for case, row in rows.items():
            record.figure(f"{case}, us", row["microseconds_a_call"])
        record.figure(f"{name}: copy bandwidth", min(shares))
        record.figure(f"{name}: compile", min(ratios))
        record.aim(f"{name}, share of the copy bandwidth", min(shares), 0.85)
        record.aim(f"{name}, times as fast as torch.compile", min(ratios), faster)


# --- 10: one process that behaves like one of many


class _Forced(Workers):
    """One process that takes every way that one of several takes."""

    @property
    def alone(self) -> bool:
        return False


def distributed(record: Record) -> None:
    """Gradients through DistributedDataParallel's buckets, statistics through SyncBatchNorm: the same update."""
    size = _size(record)
    batch = made_up(size.samples, size.image, DEVICE)

    def update(workers: Workers | None, synced: bool) -> tuple[dict[str, Tensor], Tensor]:
        # Statistics of a small batch would turn rounding into anything (`whole_step`), so updates are compared without.
        statistics = "joint" if synced else "frozen"
        convert = nn.SyncBatchNorm.convert_sync_batchnorm if synced and ON_GPU else None
        stage = _stage(size, workers=workers, change=convert, batch_norm=statistics)
        before = _flat(stage.networks.appearance)
        return stage.step(batch, WARM), _flat(stage.networks.appearance) - before

    if ON_GPU:
        record.left_out("exchange of BatchNorm's statistics: in a world of one torch's SyncBatchNorm computes alone")
    else:
        record.left_out("SyncBatchNorm and nccl, which need GPUs; gradients travel by gloo")
    plain = [update(None, synced) for synced in (False, True)]
    dist.init_process_group("cpu:gloo,cuda:nccl" if ON_GPU else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        workers = _Forced()
        seen, moved = update(workers, False)
        record.check("DistributedDataParallel: losses", _loss_error(seen, plain[0][0]), 1e-4)
        record.check("DistributedDataParallel: E_a's update", float((moved - plain[0][1]).norm() / moved.norm()), 2e-2)
        seen, moved = update(workers, True)
        record.check("SyncBatchNorm: losses", _loss_error(seen, plain[1][0]), 1e-3)
        record.holds("SyncBatchNorm: E_a's update is finite", bool(moved.isfinite().all()))
        values = [torch.arange(5.0, device=DEVICE), torch.ones(3, device=DEVICE)]
        workers.average(values)
        kept = [list(map(float, value)) for value in values]
        record.holds("averages travel on the device", kept == [[0, 1, 2, 3, 4], [1, 1, 1]], str(kept))
        record.holds("rows are gathered", torch.equal(workers.gather(torch.eye(2)), torch.eye(2)))
    finally:
        dist.destroy_process_group()


# --- 11: captured iterations

# What asks the driver for work of the device, as torch's profiler names it.
_DRIVER = re.compile(r"cu(da)?(LaunchKernel|GraphLaunch|Memcpy|Memset).*")


def captured(record: Record) -> None:
    """Replays against iterations that the host launches: time, calls, memory; losses, E_a's update, random draws.

    Graphs are captured early in the warm-up. They are compared later in it, when weights have grown, and behind the
    first milestone, when learning rates have fallen.
    """
    size = _size(record, samples=8)
    batch = made_up(size.samples, size.image, DEVICE)
    recorder = functools.partial(CudaGraphs, DEVICE) if ON_GPU else Tapes
    plain = _timed_stage(record, "launched", size, batch, None)
    with mock.patch.object(graphs, "WARM_UP", 1 if record.dry_run else graphs.WARM_UP):
        made = _timed_stage(record, "captured", size, batch, recorder)
    config = plain.config
    for at, name in ((config.loss.warmup_start + 3000, "grown weights"), (config.optim.milestones[0], "fallen rates")):
        for learns in (True, False):
            iteration = next(i for i in itertools.count(at) if _learns(config.run.seed, i) == learns)
            plain.load_state_dict(copy.deepcopy(made.state_dict()))
            before = _flat(plain.networks.appearance)
            expected, seen = plain.step(batch, iteration), made.step(batch, iteration)
            moved, expected_move = (_flat(stage.networks.appearance) - before for stage in (made, plain))
            side = f"{name}, E_s {'learns' if learns else 'judges'}"
            record.check(f"{side}: losses", _loss_error(seen, expected), 1e-3)
            off = (moved - expected_move).norm() / expected_move.norm()
            record.check(f"{side}: E_a's update", float(off), 2e-2)
    _check_draws(record, recorder())


def _timed_stage(
    record: Record, way: str, size: Size, batch: PairBatch, recorder: Callable[[], Recorder] | None
) -> DGNetStage:
    """A stage whose iterations have been captured if they are to be; their time, calls of the driver and memory."""
    beside = torch.cuda.memory_allocated() if ON_GPU else 0
    # Statistics of a small batch would turn rounding into anything (`whole_step`), so updates are compared without.
    # A CPU has no units for bf16 and would take twice as long; tests/test_graphs.py captures it there, too.
    stage = _stage(size, "fp32" if record.dry_run else "bf16", recorder=recorder, batch_norm="frozen")
    seed, iterations = stage.config.run.seed, itertools.count(stage.config.loss.warmup_start + 500)
    sides: set[bool] = set()
    while len(sides) < 2 or (stage.captured is not None and stage.captured.graphs < 2):
        iteration = next(iterations)
        stage.step(batch, iteration)
        sides.add(_learns(seed, iteration))
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    number = 1 if record.dry_run else 20
    record.figure(f"ms, {way}", _milliseconds(lambda: stage.step(batch, next(iterations)), number))
    if not ON_GPU:
        record.left_out(f"calls of the driver and memory, {way}: they need a GPU")
        return stage
    # What is reserved, since between replays the allocator counts none of the graphs' memory as used.
    record.figure(f"peak GiB, {way}", (torch.cuda.max_memory_reserved() - beside) / 2**30)
    with torch.profiler.profile(acc_events=True) as profile:
        stage.step(batch, next(iterations))
        _wait()
    calls = sum(event.count for event in profile.key_averages() if _DRIVER.fullmatch(event.key))
    record.figure(f"launches, {way}", calls)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(4):
            seen = stage.step(batch, next(iterations))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    record.holds(f"iterations wait for nothing, {way}", bool(seen["g/total"].isfinite()), "not finite")
    return stage


def _check_draws(record: Record, recorder: Recorder) -> None:
    """A replay must draw what its seed says, or a resumed run would not be an uninterrupted one."""
    place = torch.zeros(2, 1000, device=DEVICE)

    def draw() -> None:
        place[0] = torch.rand(1000, device=DEVICE)
        place[1] = F.dropout(torch.ones(1000, device=DEVICE), 0.5)

    recorder.aside(draw)
    replay = recorder.capture(draw)
    for seed in (1, 2):
        torch.manual_seed(seed)
        replay()
        found = place.clone()
        torch.manual_seed(seed)
        draw()
        record.holds(f"a replay draws what seed {seed} says", torch.equal(found, place))
