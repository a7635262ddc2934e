"""Part 1: the normalising kernels."""

import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import dgfast.kernels._normalise as _normalise
import torch
from dgfast.kernels._tuning import Tiling

from bench import bench_adain
from tests import test_aot
from tests.interpreted.adain_cases import TOLERANCE

from ..record import Record
from .common import ON_GPU

COMPILING = 8  # processes that compile kernels at the same time


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
