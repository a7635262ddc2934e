"""All figures of one measurement, as they go into a JSON file, and the table that shows them to people."""

import importlib.metadata
import platform
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dgfast.config import Config, Precision
from dgfast.data.records import ReidData
from dgfast.errors import UserError, out_of_memory
from dgfast.files import replacing
from dgfast.kernels import fallbacks
from dgfast.training.distributed import Workers
from dgfast.training.stages import STAGES

from .measure import (
    Iterations,
    Measurement,
    Timing,
    Work,
    count,
    images_per_iteration,
    iterations_of,
    search,
    timed,
    traced,
)
from .peaks import card_peak, cpu_peak
from .trace import Reading, read

TRACED = 3  # iterations in a trace, at most
CPU_LIMIT = 16  # largest batch of a sweep on a CPU, where a batch that does not fit ends the process


def make_report(measurement: Measurement, config: Config, data: ReidData, workers: Workers) -> dict[str, Any] | None:
    """Measure, batch sizes first if that is asked for.

    Args:
        measurement: what is measured.
        config: the settings of the training.
        data: the data set, or people made up.
        workers: the processes.
    Returns:
        all figures, JSON values by name; None in all processes but the first.
    Raises:
        UserError: a batch does not fit into memory.
    """
    swept: dict[str, Any] = {}
    if measurement.sweep:
        config, swept = _sweep(measurement, config, data, workers)
    size = STAGES[measurement.stage].batch_size(config)
    images = images_per_iteration(measurement, config)
    shown = min(measurement.steps, TRACED)
    total = 1 + measurement.warmup_steps + measurement.steps + shown
    try:
        with (
            tqdm(total=total, desc="profile", unit="it", disable=not workers.first) as bar,
            iterations_of(measurement, config, data, workers, bar.update) as (iterations, precision),
        ):
            iterations.run(measurement.warmup_steps)
            work = count(iterations)
            before = Counter(fallbacks())
            timing = timed(iterations, measurement.steps, workers)
            reasons = Counter(fallbacks()) - before
            reading = _trace(measurement.trace, iterations, shown, workers)
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"a batch of {size} does not fit into memory ({str(error).splitlines()[0][:120]}); expected a smaller"
            " --batch-size or --checkpoint-activations; --sweep finds the largest"
        ) from error
    peak, source = _peak(measurement, config, workers, precision)
    if reading is None:
        return None
    return {
        **_figures(images, workers, work, timing, reading, peak),
        "peak_tflops": peak,
        "peak_source": source,
        "kernels": {why: number / measurement.steps for why, number in reasons.items()},
        "stage": measurement.stage,
        "preset": config.preset,
        "batch": size,
        "images_per_step": images * workers.world_size,
        "image_size": [config.data.image_height, config.data.image_width],
        "batches": data.name,
        "steps": measurement.steps,
        "device": "cpu" if workers.device.type == "cpu" else torch.cuda.get_device_name(workers.device),
        "processes": workers.world_size,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "tf32": config.run.tf32,
        "versions": versions(),
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


def _trace(target: Path | None, iterations: Iterations, number: int, workers: Workers) -> Reading | None:
    """The first process's phases; the others only take part in the iterations."""
    if not workers.first:
        iterations.run(number)
        return None
    if target is None:
        with tempfile.TemporaryDirectory(prefix="dgfast-") as folder:
            file = Path(folder) / "trace.json"
            traced(iterations, number, file)
            return read(file, number)
    with replacing(target) as partial:
        traced(iterations, number, partial)
        return read(partial, number)


def _peak(measurement: Measurement, config: Config, workers: Workers, precision: Precision) -> tuple[float | None, str]:
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
    stage = STAGES[measurement.stage]
    unit = stage.batch_unit(config)
    limit = measurement.max_batch or (CPU_LIMIT if workers.device.type == "cpu" else None)
    limit = limit if limit is None else max(limit, 2 * unit)

    def measure(size: int) -> Timing | None:
        bar.set_postfix(batch=size)
        sized = stage.with_batch_size(config, size)
        try:
            with iterations_of(measurement, sized, data, workers, bar.update) as (iterations, _):
                iterations.run(measurement.warmup_steps)
                return timed(iterations, measurement.steps, workers)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None

    with tqdm(desc="sweep", unit="it") as bar:
        found = search(measure, unit, limit)
    rates = {
        size: images_per_iteration(measurement, stage.with_batch_size(config, size)) / timing.seconds
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
    return stage.with_batch_size(config, best), figures


def versions() -> dict[str, str | None]:
    """Versions of what computes: dgfast, torch, its CUDA (None without a GPU), Python."""
    return {
        "dgfast": importlib.metadata.version("dgfast"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }


def table(report: dict[str, Any]) -> str:
    """The report for people.

    Args:
        report: what `make_report` gave.
    Returns:
        lines of text.
    """
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
            f"{report['batch']} ({report['images_per_step']} images an iteration), {height}x{width}, "
            f"{report['batches']}",
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
