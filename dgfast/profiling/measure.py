"""What iterations of a stage cost: time, floating-point operations, calls, memory. Which part takes it: trace.py."""

import gc
import itertools
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dgfast.config import Config, LossConfig, Precision
from dgfast.data.batches import PairBatch, StreamBatch
from dgfast.data.records import ReidData
from dgfast.ranges import BatchSize, Between, Count
from dgfast.training.distributed import Workers
from dgfast.training.stages import STAGES, Stage
from dgfast.training.trainer import Trainer

from .trace import STEPS, named

GIB = 2**30

Result = TypeVar("Result")


@dataclass(frozen=True)
class Measurement:
    """What is measured, beside the flags of training."""

    stage: Literal["dgnet", "teacher"] = "dgnet"
    """Stage whose iterations are measured."""
    steps: Count = 10
    """Iterations that are timed."""
    warmup_steps: Count = 2
    """Iterations before them that are not timed; one more follows, in which operations are counted. With --compile at
    least 8, with --cuda-graphs 20."""
    real_data: bool = False
    """Load images, from --data-root or the built-in pedestrians; implied by --data-root."""
    peak_tflops: Annotated[float, Between(0, 1_000_000_000, without=0)] | None = None
    """Dense peak of one device in the precision used, TFLOP/s; default: from the table of cards, measured on a CPU."""
    json: Path | None = None
    """File for all figures."""
    trace: Path | None = None
    """File for a Chrome trace of at most three iterations; open it in Perfetto or chrome://tracing."""
    sweep: bool = False
    """Try batch sizes first, find the fastest and the largest that fits, then measure the fastest."""
    max_batch: BatchSize | None = None
    """Largest batch size of the sweep; default: what fits on a GPU, 16 on a CPU."""

    def loads_images(self, config: Config) -> bool:
        """Whether images are loaded rather than made up.

        Args:
            config: the settings of the training.
        """
        return self.real_data or config.data.data_root is not None


class Work(NamedTuple):
    """What one iteration of one process computes."""

    flops: int
    """Floating-point operations of convolutions and matrix products; a multiplication and an addition are two."""
    calls: int
    """Calls of operators."""


class Memory(NamedTuple):
    """Memory of a process."""

    peak: float
    """GiB, the most held during the iterations."""
    beside: float
    """GiB: on a GPU what torch's allocator reserved, on a CPU what the process held before the iterations."""
    meaning: str
    """What was measured, for people."""


class Timing(NamedTuple):
    """Of one iteration."""

    seconds: float
    """Of the slowest process."""
    memory: Memory
    """Of the process with the highest peak."""


class Iterations:
    """A stage's iterations, one after another.

    Args:
        stage: on its device.
        loader: endless.
        first: number of the first iteration.
        device: the stage's.
        tick: called after each iteration.
    """

    def __init__(
        self, stage: Stage, loader: Iterator[PairBatch], first: int, device: torch.device, tick: Callable[[], object]
    ):
        self.stage, self.loader, self.iteration, self.device, self.tick = stage, loader, first, device, tick

    def run(self, number: int) -> None:
        """Run iterations; return when the device has done them.

        Args:
            number: how many.
        """
        for _ in range(number):
            with record_function("data"):
                batch = next(self.loader)
            self.stage.step(batch, self.iteration)
            self.iteration += 1
            self.tick()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def iterations_of(
    measurement: Measurement, config: Config, data: ReidData, workers: Workers, tick: Callable[[], object]
) -> Iterator[tuple[Iterations, Precision]]:
    """A stage with fresh weights and its batches.

    Args:
        measurement: which stage, and whether images are loaded.
        config: the settings of the training.
        data: the data set, or people made up.
        workers: the processes.
        tick: called after each iteration.
    Yields:
        the iterations, all losses being on, and the precision's name.
    """
    gc.collect()  # what another batch size left behind
    torch.cuda.empty_cache()
    if config.run.compile != "off":
        torch.compiler.reset()  # else the second batch size would be compiled for sizes of any kind
    trainer = Trainer(config, data, Path(), workers, Path(torch.hub.get_dir()))
    teaching = trainer.teacher_stage()
    stage: Stage = teaching
    if measurement.stage == "dgnet":
        stage = trainer.dgnet_stage(teaching.teacher)
    workers.same_weights(stage.networks_by_name.values())
    samples = stage.samples(config)
    first = first_full_iteration(config.loss)
    if measurement.loads_images(config):
        with closing(trainer.loader(samples)(first)) as loader:
            yield Iterations(stage, loader, first, workers.device, tick), trainer.precision.name
    else:
        seed = config.run.seed + workers.rank
        batches = made_up_batches(samples, trainer.image_size, data.num_classes, workers.device, seed)
        yield Iterations(stage, batches, first, workers.device, tick), trainer.precision.name


def images_per_iteration(measurement: Measurement, config: Config) -> int:
    """Images of one iteration and process.

    Args:
        measurement: which stage.
        config: the settings of the training.
    """
    stage = STAGES[measurement.stage]
    return stage.samples(config) * stage.images_per_sample


def first_full_iteration(config: LossConfig) -> int:
    """The first iteration at which the weights that grow from 0 have grown.

    Args:
        config: the weights and their warm-up.
    """
    largest = max(
        config.appearance_code_weight, config.structure_code_weight, config.cycle_weight, config.teacher_weight
    )
    return config.warmup_start + math.ceil(largest / config.warmup_rate) if config.warmup_rate > 0 else 0


def made_up_batches(
    samples: int, image_size: tuple[int, int], classes: int, device: torch.device, seed: int
) -> Iterator[PairBatch]:
    """Random images and labels, the same batch again and again: no disk, no waiting.

    Args:
        samples: per stream.
        image_size: (height, width), pixels.
        classes: labels are 0 .. classes - 1.
        device: where the batch lies.
        seed: of images and labels.
    Returns:
        an endless iterator of batches.
    """
    generator = torch.Generator().manual_seed(seed)

    def images() -> Tensor:
        noise = torch.randn(samples, 3, *image_size, generator=generator)
        return noise.to(device, memory_format=torch.channels_last)

    def stream() -> StreamBatch:
        label = torch.randint(classes, (samples,), generator=generator)
        index = torch.arange(samples, device=device)
        return StreamBatch(images(), images(), images(), images(), label.to(device), index)

    return itertools.repeat(PairBatch(stream(), stream()))


class _Count(TorchDispatchMode):
    """Counts calls of operators that reach the dispatcher, and the operations of those that torch knows.

    An operator of dgfast counts as one call. torch's FlopCounterMode has the same table of operations, but follows
    modules with hooks that fail in the gradient penalty's autograd.grad.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.calls += func.namespace in ("aten", "dgfast")
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        return out


def count(iterations: Iterations) -> Work:
    """Run one iteration and count its work; norms and the like count as no operations.

    Args:
        iterations: of which one has been run already, since the first also makes the optimisers' state.
    Returns:
        the work of the iteration.
    """
    with _Count() as counted:
        iterations.run(1)
    return Work(counted.flops, counted.calls)


def timed(iterations: Iterations, number: int, workers: Workers) -> Timing:
    """Time iterations; the clock starts when all processes are there and stops when all are done.

    Args:
        iterations: this process's.
        number: how many.
        workers: the processes.
    Returns:
        the same in every process.
    """
    workers.barrier()
    read_memory = _watch_memory(workers.device)
    began = time.perf_counter()
    iterations.run(number)
    workers.barrier()
    seconds = (time.perf_counter() - began) / number
    memory = read_memory()
    mine = torch.tensor([[seconds, memory.peak, memory.beside]], dtype=torch.float64)
    all_seconds, peaks, beside = workers.gather(mine).T
    highest = int(peaks.argmax())
    return Timing(float(all_seconds.max()), Memory(float(peaks[highest]), float(beside[highest]), memory.meaning))


def traced(iterations: Iterations, number: int, file: Path) -> None:
    """Run iterations under torch's profiler.

    Args:
        iterations: this process's.
        number: how many.
        file: Chrome trace to write.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (iterations.device.type == "cuda")
    with (
        profile(activities=activities, acc_events=True) as trace,
        named(iterations.stage.networks_by_name),
        record_function(STEPS),
    ):
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
    """GiB that the process holds now; NaN where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * resource.getpagesize() / GIB


def search(measure: Callable[[int], Result | None], unit: int, limit: int | None) -> dict[int, Result | None]:
    """Measure batch sizes, doubling from two units until one does not fit or the limit is reached, then bisecting.

    Args:
        measure: size -> result, None where it does not fit.
        unit: sizes are its multiples.
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
