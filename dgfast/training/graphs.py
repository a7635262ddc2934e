"""Iterations as CUDA graphs: the device repeats what it was shown once, and the host no longer launches kernel by
kernel.

A graph holds the kernels of one iteration with all their arguments. So whatever differs between two iterations lies in
memory that the kernels read, and is written there before a replay: the batch, the weights of the losses, the learning
rates (optimizers.py), and, by torch itself, the seed of dropout and of other random draws. What decides which kernels
there are has a graph of its own: each side of the coin that says whether E_s learns. Weights that are 0 leave out what
they weigh; when one of them leaves 0, which happens once, at the start of the warm-up, graphs are captured anew.

The first iterations run as they are, on the stream that will capture: libraries allocate their workspaces then, kernels
are compiled and timed, and optimisers make their state. A capture runs nothing itself, so the iteration that is
captured is then replayed like all later ones.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from dgfast.config import Config
from dgfast.data.batches import PairBatch, StreamBatch
from dgfast.errors import UserError, out_of_memory

from .distributed import Workers
from .precision import MixedPrecision
from .step import Losses, Weights, counts

WARM_UP = 3  # iterations of each side of the coin that run as they are, as torch's documentation has it

Iterate = Callable[[PairBatch, Weights, bool], Losses]
Result = TypeVar("Result")


def obstacle(config: Config, workers: Workers, precision: MixedPrecision) -> str | None:
    """Name what keeps a run from capturing its iterations.

    Args:
        config: the run's settings.
        workers: the processes.
        precision: the run's number formats.
    Returns:
        the first reason found, or None.
    """
    if workers.device.type != "cuda":
        return "there is no GPU"
    if not workers.alone:
        return "there are several processes"
    if precision.scaler.is_enabled():
        return "fp16's loss scale is decided on by the host"
    if config.optim.accumulate > 1:
        return f"--accumulate is {config.optim.accumulate}"
    if config.run.compile != "off":
        return f"--compile is {config.run.compile}"
    return None


class Recorder(Protocol):
    """Captures work for one device. The tests have one for the CPU."""

    def aside(self, work: Callable[[], Result]) -> Result:
        """Do work where captures will be made.

        Args:
            work: called once.
        """
        ...

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """Capture what work does on the device, without doing it.

        Args:
            work: called once.
        Returns:
            a function that does it.
        """
        ...


class CudaGraphs:
    """Torch's CUDA graphs. They share their memory, since only one of them runs at a time.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def aside(self, work: Callable[[], Result]) -> Result:
        """Do work on the stream that captures, behind what the current stream does and before what it will do."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """Capture work as a graph.

        Raises:
            UserError: it holds something that cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads of the loader and of the checkpoints may go on with what this one must not do meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            # Torch ends the capture first, and its complaint about that hides what the work ran into.
            cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            if out_of_memory(cause):
                raise cause from None
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise UserError(
                f"--cuda-graphs: an iteration could not be captured ({reason}); expected no work that waits for the"
                " host: go on with --resume RUN_DIR --no-cuda-graphs, or begin without it"
            ) from error
        return graph.replay


class Captured:
    """A stage's iterations, captured and replayed.

    Args:
        networks: those that learn in them.
        recorder: makes what captures, anew for each set of graphs.
    """

    def __init__(self, networks: nn.Module, recorder: Callable[[], Recorder]):
        self._networks, self._new_recorder = networks, recorder
        self.forget()

    @property
    def graphs(self) -> int:
        """How many graphs there are, 0 to 2; with both, iterations of this kind are replayed."""
        return len(self._replays)

    def forget(self) -> None:
        """Give up all graphs and their memory, for when tensors that they read or write have been replaced."""
        self._kind: object = None
        self._replays: dict[bool, Callable[[], None]] = {}  # by side of the coin

    def __call__(self, iterate: Iterate, batch: PairBatch, weights: Weights, structure_learns: bool) -> Losses:
        """One iteration.

        Args:
            iterate: the iteration, always the same one; gives its losses, scalars by name, detached, the same names
                each time. It must not wait for the device, nor depend on anything that changes but its arguments. It is
                not kept: a stage that kept itself in this way would keep the graphs' memory beyond its end.
            batch: both streams; it is copied.
            weights: of this iteration, as numbers.
            structure_learns: whether E_s learns from generated images.
        Returns:
            its losses, scalars by name, which later iterations leave alone.
        """
        kind = batch.a.image.shape, [counts(weight) for weight in vars(weights).values()]
        if kind != self._kind:
            self._begin(batch, weights)
            self._kind = kind
        self._fill(batch, weights)
        # A mode that counts operators would see none in a replay.
        if min(self._warm.values()) < WARM_UP or _get_current_dispatch_mode() is not None:
            self._recorder.aside(lambda: self._run(iterate, structure_learns))
            self._warm[structure_learns] += 1
        else:
            if structure_learns not in self._replays:
                self._replays[structure_learns] = self._capture(iterate, structure_learns)
            self._replays[structure_learns]()
        assert self._found is not None
        return dict(zip(self._names, self._found.clone().unbind(), strict=True))

    def _begin(self, batch: PairBatch, weights: Weights) -> None:
        """Make the memory that graphs read, and that they leave the losses in."""
        self.forget()
        self._recorder = self._new_recorder()
        self._warm = {True: 0, False: 0}
        self._names: list[str] = []
        self._found: Tensor | None = None
        self._batch = PairBatch(*(StreamBatch(*map(torch.empty_like, _tensors(s))) for s in (batch.a, batch.b)))
        numbers = vars(weights).values()
        self._numbers: list[float] = []
        self._memory = torch.empty(len(numbers), dtype=torch.float64, device=batch.a.image.device)
        places = zip(self._memory.unbind(), numbers, strict=True)
        self._weights = Weights(*(place if counts(number) else 0.0 for place, number in places))

    def _fill(self, batch: PairBatch, weights: Weights) -> None:
        """Write what this iteration shall find there."""
        own, given = (_tensors(both.a) + _tensors(both.b) for both in (self._batch, batch))
        for images in (True, False):  # torch copies tensors of one number format in one launch
            chosen = [i for i, tensor in enumerate(own) if tensor.is_floating_point() == images]
            torch._foreach_copy_([own[i] for i in chosen], [given[i] for i in chosen], non_blocking=True)
        numbers = list(vars(weights).values())
        if numbers != self._numbers:
            # So little is sent without waiting also from memory that is not pinned.
            self._memory.copy_(torch.tensor(numbers, dtype=torch.float64), non_blocking=True)
            self._numbers = numbers

    def _capture(self, iterate: Iterate, structure_learns: bool) -> Callable[[], None]:
        # A graph makes gradients in its own memory, which the next graph may use for others. So no parameter keeps one.
        self._networks.zero_grad()
        replay = self._recorder.capture(lambda: self._run(iterate, structure_learns))
        self._networks.zero_grad()
        return replay

    def _run(self, iterate: Iterate, structure_learns: bool) -> None:
        """The iteration as it is captured, and as it runs before: from memory to memory."""
        losses = iterate(self._batch, self._weights, structure_learns)
        found = torch.stack([loss.float() for loss in losses.values()])
        if self._found is None:
            self._names, self._found = list(losses), found
        else:
            self._found.copy_(found)


def _tensors(stream: StreamBatch) -> list[Tensor]:
    return [getattr(stream, field.name) for field in fields(stream)]
