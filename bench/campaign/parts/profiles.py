"""Part 6: profiles, in each way to compile."""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgfast.config import PRESETS
from dgfast.data import Record as Image
from dgfast.data import ReidData
from dgfast.models import DGNet
from dgfast.profiling.measure import Measurement, count, images_per_iteration, iterations_of, timed
from dgfast.profiling.peaks import card_peak
from dgfast.retrieval.features import dgnet_halves, mirrored
from dgfast.training.distributed import Workers
from dgfast.training.samples import sample_grid
from tests import tiny

from ..record import Record
from .common import CLASSES, LEFT_FOR_LAST, ON_GPU


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
