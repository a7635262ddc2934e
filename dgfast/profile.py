"""`dgfast profile`, `torchrun -m dgfast.profile`: how fast training is on this machine, where the time goes, what
fits."""

import gc
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tqdm import tqdm

from dgfast import train
from dgfast.config import TEACHER_IMAGES, Config, check
from dgfast.data.records import Record, ReidData
from dgfast.errors import UserError
from dgfast.kernels import fallbacks
from dgfast.launcher import run
from dgfast.sources import open_data
from dgfast.training.distributed import Workers
from dgfast.training.peaks import card_peak, cpu_peak
from dgfast.training.phases import Reading, read
from dgfast.training.profiling import (
    Iterations,
    Timing,
    Work,
    all_losses_on,
    count,
    made_up_batches,
    out_of_memory,
    search,
    timed,
    traced,
)
from dgfast.training.trainer import Trainer, write_json

HELP = """Measure training: images/s, time by phase, FLOPs and the share of the card's peak, memory, calls and launches.

Nothing is trained or kept. Takes every flag of `dgfast train` beside the ones below (`dgfast train --help`); without any: the
quick start's model. Batches are made up, so no data set is needed; with --data-root or --real-data they are loaded, and waiting
for them shows.

dgfast profile --preset market1501 --backbone-weights none --batch-size 8 --json profile.json

torchrun --nproc_per_node 8 -m dgfast.profile --preset market1501 --data-root /data/Market-1501
"""
IDENTITIES = {
    "market1501": 751,
    "dukemtmc": 702,
    "msmt17": 1041,
    "cuhk03np": 767,
}  # of the training sets that presets name
TRACED = 3  # iterations in a trace, at most
CPU_LIMIT = 16  # largest batch of a sweep on a CPU, where a batch that does not fit ends the process


@dataclass(frozen=True)
class Measurement:
    """What is measured, beside the flags of training."""

    stage: Literal["dgnet", "teacher"] = "dgnet"
    """Stage whose iterations are measured."""
    steps: int = 10
    """Iterations that are timed."""
    warmup_steps: int = 2
    """Iterations before them that are not, one more follows in which operations are counted; with --compile at least
    8."""
    real_data: bool = False
    """Load images, from --data-root or the built-in pedestrians; implied by --data-root."""
    peak_tflops: float | None = None
    """Dense peak of one device in the precision used, TFLOP/s; default: from the table of cards, measured on a CPU."""
    json: Path | None = None
    """File for all figures."""
    trace: Path | None = None
    """File for a Chrome trace of at most three iterations; open it in Perfetto or chrome://tracing."""
    sweep: bool = False
    """Try batch sizes first, find the fastest and the largest that fits, then measure the fastest."""
    max_batch: int | None = None
    """Largest batch size of the sweep; default: what fits on a GPU, 16 on a CPU."""


def main(argv: list[str] | None = None) -> None:
    """Measure as the command line says and print a table.

    Raises:
        UserError: settings that cannot be trained or measured, a file that cannot be written, a batch that does not
        fit.
    """
    measurement, config = parse(sys.argv[1:] if argv is None else argv)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    workers = Workers()
    try:
        if measurement.sweep and not workers.alone:
            raise UserError(
                f"--sweep looks for the best batch of one device, found {workers.world_size} processes; expected one:"
                " run it without torchrun, or leave it away"
            )
        data = open_data(config, workers) if _loads(measurement, config) else _made_up_data(config)
        report = _report(measurement, config, data, workers)
        if report:
            if measurement.json:
                write_json(report, measurement.json)
            print(_table(report))
            if measurement.trace:
                print(f"trace         {measurement.trace}")
        workers.barrier()
    finally:
        workers.close()


def parse(argv: list[str]) -> tuple[Measurement, Config]:
    """The command line -> what to measure, and the training whose iterations those are.

    Raises:
        UserError: flags that do not fit; see also `train.parse` and `config.check`.
    """
    measurement, rest = tyro.cli(
        Measurement, args=argv, prog="dgfast profile", description=HELP, return_unknown_args=True
    )
    config = train.parse(rest, prog="dgfast profile").config
    loads = _loads(measurement, config)
    check(config if loads else replace(config, data=replace(config.data, data_root=Path("made-up"))))
    if not loads:  # no loader is needed, so none is looked for
        config = replace(config, data=replace(config.data, loader="torchvision"))
    for flag, value, least in (
        ("--steps", measurement.steps, 1),
        ("--warmup-steps", measurement.warmup_steps, 1),
        ("--max-batch", measurement.max_batch, 2 * _unit(measurement, config)),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag} is {value}; expected at least {least}")
    if measurement.peak_tflops is not None and not measurement.peak_tflops > 0:
        raise UserError(f"--peak-tflops is {measurement.peak_tflops}; expected a number above 0")
    for flag, file in (("--json", measurement.json), ("--trace", measurement.trace)):
        if file and not (file.parent.is_dir() and os.access(file.parent, os.W_OK) and not file.is_dir()):
            raise UserError(f"{flag} {file} cannot be written; expected a file in a folder that exists and is yours")
    return measurement, config


def _loads(measurement: Measurement, config: Config) -> bool:
    return measurement.real_data or config.data.data_root is not None


def _made_up_data(config: Config) -> ReidData:
    """As many people as the preset's training set has, of whom nothing is read."""
    number = IDENTITIES.get(config.preset, 751)
    if config.preset == "quickstart":
        number = config.synthetic.synthetic_train_identities
    people = tuple(Record(Path("made-up"), person, camera=1) for person in range(1, number + 1))
    return ReidData("made-up batches", Path("made-up"), people, (), ())


def _batch(measurement: Measurement, config: Config) -> int:
    return config.optim.batch_size if measurement.stage == "dgnet" else config.teaching.teacher_batch_size


def _with_batch(measurement: Measurement, config: Config, size: int) -> Config:
    if measurement.stage == "dgnet":
        return replace(config, optim=replace(config.optim, batch_size=size))
    return replace(config, teaching=replace(config.teaching, teacher_batch_size=size))


def _unit(measurement: Measurement, config: Config) -> int:
    """Batch sizes are multiples of it."""
    return config.optim.accumulate if measurement.stage == "dgnet" else TEACHER_IMAGES


def _images(measurement: Measurement, config: Config) -> int:
    """Images of an iteration and process: dgnet: of both streams; teacher: --teacher-batch-size."""
    return _batch(measurement, config) * (2 if measurement.stage == "dgnet" else 1)


@contextmanager
def _iterations(
    measurement: Measurement, config: Config, data: ReidData, workers: Workers, bar: tqdm
) -> Iterator[tuple[Iterations, str]]:
    """A stage with fresh weights and its batches, and the precision's name."""
    gc.collect()  # what another batch size left behind
    torch.cuda.empty_cache()
    if config.run.compile != "off":
        torch.compiler.reset()  # or another batch size would be compiled for sizes of any kind
    trainer = Trainer(config, data, Path(), workers, Path(torch.hub.get_dir()))
    stage = trainer.teacher_stage()
    if measurement.stage == "dgnet":
        stage = trainer.dgnet_stage(stage.teacher)
    workers.same_weights(*stage.modules)
    samples = _images(measurement, config) // (2 if measurement.stage == "dgnet" else TEACHER_IMAGES)
    first = all_losses_on(config.loss)
    if _loads(measurement, config):
        with closing(trainer.loader(samples)(first)) as loader:
            yield Iterations(stage, loader, first, workers.device, bar.update), trainer.precision.name
    else:
        batches = made_up_batches(
            samples, trainer.image_size, data.num_classes, workers.device, config.run.seed + workers.rank
        )
        yield Iterations(stage, batches, first, workers.device, bar.update), trainer.precision.name


def _report(measurement: Measurement, config: Config, data: ReidData, workers: Workers) -> dict[str, Any] | None:
    """All figures, as they go into the JSON file; None in all processes but the first."""
    swept = {}
    if measurement.sweep:
        config, swept = _sweep(measurement, config, data, workers)
    size = _batch(measurement, config)
    shown = min(measurement.steps, TRACED)
    total = 1 + measurement.warmup_steps + measurement.steps + shown
    try:
        with (
            tqdm(total=total, desc="profile", unit="it", disable=not workers.first) as bar,
            _iterations(measurement, config, data, workers, bar) as (iterations, precision),
        ):
            iterations.run(measurement.warmup_steps)
            work = count(iterations)
            before = Counter(fallbacks())
            timing = timed(iterations, measurement.steps, workers)
            reasons = Counter(fallbacks()) - before
            reading = _trace(measurement, iterations, shown, workers)
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"a batch of {size} does not fit into memory ({str(error).splitlines()[0][:120]}); expected a smaller --batch-size"
            " or --checkpoint-activations; --sweep finds the largest"
        ) from error
    peak, source = _peak(measurement, config, workers, precision)
    if reading is None:
        return None
    return {
        **_figures(_images(measurement, config), workers, work, timing, reading, peak),
        "peak_tflops": peak,
        "peak_source": source,
        "kernels": {why: number / measurement.steps for why, number in reasons.items()},
        "stage": measurement.stage,
        "preset": config.preset,
        "batch": size,
        "images_per_step": _images(measurement, config) * workers.world_size,
        "image_size": [config.data.image_height, config.data.image_width],
        "batches": data.name,
        "steps": measurement.steps,
        "device": "cpu" if workers.device.type == "cpu" else torch.cuda.get_device_name(workers.device),
        "processes": workers.world_size,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "tf32": config.run.tf32,
        "versions": _versions(),
        **swept,
    }


def _figures(
    images: int, workers: Workers, work: Work, timing: Timing, reading: Reading, peak: float | None
) -> dict[str, Any]:
    """What was measured, per iteration or image, from what the measuring functions gave.

    The phases were measured in iterations of their own, which the profiler slows down: their shares are kept, their
    times are those shares of an iteration without it.
    """
    ms, tflops = timing.seconds * 1000, work.flops / timing.seconds / 1e12
    shares = {name: spent / reading.ms for name, spent in reading.phases.items()}
    return {
        "images_per_s": images * workers.world_size / timing.seconds,
        "ms_per_step": ms,
        "gflop_per_image": work.flops / images / 1e9,
        "tflops": tflops,
        "mfu": None if peak is None else tflops / peak,
        "aten_calls_per_step": work.calls,
        "launches_per_step": reading.launches,
        "peak_gib": timing.memory.peak,
        "reserved_gib" if workers.device.type == "cuda" else "before_gib": timing.memory.beside,
        "peak_is": timing.memory.meaning,
        "phases": {name: {"ms": share * ms, "share": share} for name, share in shares.items()},
        "phases_of": "device" if reading.device else "host",
        "ms_per_traced_step": reading.ms,
    }


def _trace(measurement: Measurement, iterations: Iterations, number: int, workers: Workers) -> Reading | None:
    """The first process's phases; the others keep it company."""
    if not workers.first:
        iterations.run(number)
        return None
    target = measurement.trace
    with tempfile.TemporaryDirectory(dir=target.parent if target else None, prefix=".dgfast-") as folder:
        file = Path(folder) / "trace.json"
        traced(iterations, number, file)
        reading = read(file, number)
        if target:
            file.replace(target)
    return reading


def _peak(measurement: Measurement, config: Config, workers: Workers, precision: str) -> tuple[float | None, str]:
    """TFLOP/s of one device, and where the figure comes from."""
    if measurement.peak_tflops is not None:
        return measurement.peak_tflops, "--peak-tflops"
    if workers.device.type == "cpu":
        mine = torch.tensor([[cpu_peak(precision)]])
        return float(workers.gather(mine).mean()), f"measured: torch.mm on {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(workers.device)
    peak = card_peak(name, precision, config.run.tf32)
    if peak is None:
        return None, f"unknown: {name} in {precision} is not in the table of cards; pass --peak-tflops"
    return peak, "data sheet, dense"


def _sweep(measurement: Measurement, config: Config, data: ReidData, workers: Workers) -> tuple[Config, dict[str, Any]]:
    """Time batch sizes; the settings with the fastest, and the figures of all."""
    limit = measurement.max_batch or (CPU_LIMIT if workers.device.type == "cpu" else None)
    unit = _unit(measurement, config)
    limit = limit if limit is None else max(limit, 2 * unit)

    def measure(size: int) -> Timing | None:
        sized = _with_batch(measurement, config, size)
        bar.set_postfix(batch=size)
        try:
            with _iterations(measurement, sized, data, workers, bar) as (iterations, _):
                iterations.run(measurement.warmup_steps)
                return timed(iterations, measurement.steps, workers)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None

    with tqdm(desc="sweep", unit="it") as bar:
        found = search(measure, unit, limit)
    rates = {
        size: _images(measurement, _with_batch(measurement, config, size)) / timing.seconds
        for size, timing in found.items()
        if timing is not None
    }
    if not rates:
        raise UserError(
            f"not even a batch of {2 * unit} fits into memory; expected smaller images or --checkpoint-activations"
        )
    best = max(rates, key=rates.__getitem__)
    rows = [
        {"batch": size, "images_per_s": rates.get(size), "peak_gib": timing.memory.peak if timing else None}
        for size, timing in found.items()
    ]
    bounded = all(timing is not None for timing in found.values())
    figures = {"sweep": rows, "best_batch": best, "largest_batch": max(rates), "largest_is_limit": bounded}
    return _with_batch(measurement, config, best), figures


def _versions() -> dict[str, str | None]:
    return {
        "dgfast": importlib.metadata.version("dgfast"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }


def _table(report: dict[str, Any]) -> str:
    """The report for people."""
    gpu = report["phases_of"] == "device"
    height, width = report["image_size"]
    processes = f"{report['processes']} process{'es' if report['processes'] > 1 else ''}"
    if report["peak_tflops"] is None:
        utilisation = f"peak {report['peak_source']}"
    else:
        utilisation = f"{report['mfu']:.1%} of {report['peak_tflops']:.4g} TFLOP/s ({report['peak_source']})"
    if "reserved_gib" in report:
        beside = f"{report['reserved_gib']:.2f} GiB reserved"
    else:
        beside = f"{report['before_gib']:.2f} GiB before them"
    eager = "; ".join(f"{why} ({number:g} times an iteration)" for why, number in report["kernels"].items())
    kernels = f"eager, or converted first: {eager}" if eager else "no detour: Triton wherever dgfast has a kernel"
    calls = f"{report['aten_calls_per_step']} ATen calls"
    if report["launches_per_step"] is not None:
        calls += f", {report['launches_per_step']:.0f} kernel launches"
    lines = [
        ("device", f"{report['device']}, {processes}, {report['threads']} CPU threads each"),
        (
            "training",
            f"{report['preset']}, stage {report['stage']}, {report['precision']}{' (TF32)' if report['tf32'] else ''}",
        ),
        (
            "batch",
            f"{report['batch']} ({report['images_per_step']} images an iteration), {height}x{width}, {report['batches']}",
        ),
        ("speed", f"{report['images_per_s']:.4g} images/s, {report['ms_per_step']:.4g} ms an iteration"),
        ("work", f"{report['gflop_per_image']:.4g} GFLOP an image; {calls} an iteration"),
        ("utilisation", f"{report['tflops']:.4g} TFLOP/s a process: {utilisation}"),
        ("memory", f"{report['peak_gib']:.2f} GiB at most: {report['peak_is']}; {beside}"),
        ("kernels", kernels if report["stage"] == "dgnet" else "torch's: dgfast has none for the teacher"),
    ]
    text = [f"{name:<14}{value}" for name, value in lines]
    text += ["", f"{'phase':<14}{'ms':>10}{'share':>9}   ({'GPU' if gpu else 'host'} time)"]
    text += [
        f"{name:<14}{phase['ms']:>10.2f}{phase['share']:>9.1%}"
        for name, phase in report["phases"].items()
        if phase["share"] > 0
    ]
    return "\n".join([*text, "", *_sweep_table(report)])


def _sweep_table(report: dict[str, Any]) -> list[str]:
    if "sweep" not in report:
        return []
    rows = [f"{'batch':<14}{'images/s':>10}{'GiB':>9}"]
    for row in report["sweep"]:
        if row["images_per_s"] is None:
            rows.append(f"{row['batch']:<14}{'does not fit':>19}")
        else:
            rows.append(f"{row['batch']:<14}{row['images_per_s']:>10.4g}{row['peak_gib']:>9.2f}")
    more = " or more" if report["largest_is_limit"] else ""
    return [*rows, f"fastest: {report['best_batch']}; largest that fits: {report['largest_batch']}{more}", ""]


if __name__ == "__main__":
    run(main)
