"""What iterations of a stage cost: time, floating-point operations, calls, memory. Which part takes the time:
phases.py."""

import itertools
import math
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dgfast.config import LossConfig
from dgfast.data.batches import PairBatch, StreamBatch

from .distributed import Workers
from .phases import NETWORKS, STEPS, named
from .stages import DGNetStage, Stage

GIB = 2**30
_NO_CPU_MEMORY = ("can't allocate memory", "not enough memory")
_NO_GPU_MEMORY = ("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")

Result = TypeVar("Result")


class Work(NamedTuple):
    """Of one iteration and process: floating-point operations of convolutions and matrix products (a multiplication and
    an addition are two), and calls of operators."""

    flops: int
    calls: int


class Memory(NamedTuple):
    """GiB. peak: the most held during the iterations; beside: on a GPU what torch's allocator reserved, on a CPU what
    the process held before them; meaning: what was measured."""

    peak: float
    beside: float
    meaning: str


class Timing(NamedTuple):
    """Of one iteration: seconds, the slowest process's. Memory: of the process with the highest peak."""

    seconds: float
    memory: Memory


class Iterations:
    """A stage's iterations, one after another.

    Args:
        stage: on its device. loader: endless. first: number of the first iteration. device: the stage's.
        tick: called after each.
    """

    def __init__(
        self, stage: Stage, loader: Iterator[PairBatch], first: int, device: torch.device, tick: Callable[[], object]
    ):
        self.stage, self.loader, self.iteration, self.device, self.tick = stage, loader, first, device, tick

    def run(self, number: int) -> None:
        """So many iterations; returns when the device has done them."""
        for _ in range(number):
            with record_function("data"):
                batch = next(self.loader)
            self.stage.step(batch, self.iteration)
            self.iteration += 1
            self.tick()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def networks(self) -> dict[str, nn.Module]:
        """The stage's networks by the names of their phases."""
        teacher = {"teacher": self.stage.teacher}
        if not isinstance(self.stage, DGNetStage):
            return teacher
        made = self.stage.networks
        return (
            dict(zip(NETWORKS, (made.appearance, made.structure, made.decoder, made.discriminator), strict=False))
            | teacher
        )


def all_losses_on(config: LossConfig) -> int:
    """The first iteration at which the weights that grow from 0 are grown."""
    largest = max(
        config.appearance_code_weight, config.structure_code_weight, config.cycle_weight, config.teacher_weight
    )
    return config.warmup_start + math.ceil(largest / config.warmup_rate) if config.warmup_rate > 0 else 0


def made_up_batches(
    samples: int, image_size: tuple[int, int], classes: int, device: torch.device, seed: int
) -> Iterator[PairBatch]:
    """Random images and labels, the same batch again and again: no disk, no waiting.

    Args:
        samples: per stream. image_size: (height, width). classes: labels are below it.
    """
    generator = torch.Generator().manual_seed(seed)

    def images() -> Tensor:
        noise = torch.randn(samples, 3, *image_size, generator=generator)
        return noise.to(device, memory_format=torch.channels_last)

    def stream() -> StreamBatch:
        label = torch.randint(classes, (samples,), generator=generator)
        return StreamBatch(
            images(), images(), images(), images(), label.to(device), torch.arange(samples, device=device)
        )

    return itertools.repeat(PairBatch(stream(), stream()))


class _Count(TorchDispatchMode):
    """Counts operators that reach the dispatcher, one of dgfast's own as one, and the operations of those that torch
    knows.

    torch's FlopCounterMode has the same table, but follows modules with hooks that fail in the gradient penalty's
    autograd.grad.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.calls += func.namespace in ("aten", "dgfast")
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        return out


def count(iterations: Iterations) -> Work:
    """Run one iteration and count; norms and the like count nothing. Not the first, which also makes the optimisers'
    state."""
    with _Count() as counted:
        iterations.run(1)
    return Work(counted.flops, counted.calls)


def timed(iterations: Iterations, number: int, workers: Workers) -> Timing:
    """Run so many iterations; the clock starts when all processes are there and stops when all are done."""
    workers.barrier()
    read_memory = _watch_memory(workers.device)
    began = time.perf_counter()
    iterations.run(number)
    workers.barrier()
    seconds = (time.perf_counter() - began) / number
    memory = read_memory()
    all_seconds, peaks, beside = workers.gather(
        torch.tensor([[seconds, memory.peak, memory.beside]], dtype=torch.float64)
    ).T
    highest = int(peaks.argmax())
    return Timing(float(all_seconds.max()), Memory(float(peaks[highest]), float(beside[highest]), memory.meaning))


def traced(iterations: Iterations, number: int, file: Path) -> None:
    """Run so many iterations under torch's profiler and write its Chrome trace."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (iterations.device.type == "cuda")
    with profile(activities=activities, acc_events=True) as trace, named(iterations.networks()), record_function(STEPS):
        iterations.run(number)
    trace.export_chrome_trace(str(file))


def _watch_memory(device: torch.device) -> Callable[[], Memory]:
    """Start to watch; the function that is returned says what the peak has been since."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: Memory(
            torch.cuda.max_memory_allocated(device) / GIB,
            torch.cuda.max_memory_reserved(device) / GIB,
            "tensors on the GPU",
        )
    before = _resident()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak becomes what is resident now
        meaning = "resident memory of the whole process during the iterations"
    except OSError:
        meaning = "resident memory of the whole process since it began (this system cannot forget an earlier peak)"
    return lambda: Memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, before, meaning)


def _resident() -> float:
    """GiB that the process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * resource.getpagesize() / GIB


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a batch does not fit."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_CPU_MEMORY + _NO_GPU_MEMORY)


def search(measure: Callable[[int], Result | None], unit: int, limit: int | None) -> dict[int, Result | None]:
    """Measure batch sizes, doubling from two units until one does not fit or the limit is reached, then bisecting.

    Args:
        measure: size -> result, None where it does not fit. unit: sizes are its multiples.
        limit: the largest size to try, at least two units.
    Returns:
        the results by size, ascending; the largest that is not None is the largest that fits.
    """
    found: dict[int, Result | None] = {}
    largest = None if limit is None else limit // unit * unit
    size, fits, fails = 2 * unit, 0, None
    while fails is None and size != fits:
        found[size] = measure(size)
        if found[size] is None:
            fails = size
        else:
            fits = size
            size = 2 * size if largest is None else min(2 * size, largest)
    while fits and fails is not None and fails - fits > unit:
        size = (fits + fails) // 2 // unit * unit
        found[size] = measure(size)
        if found[size] is None:
            fails = size
        else:
            fits = size
    return dict(sorted(found.items()))
