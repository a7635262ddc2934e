"""Which part of an iteration takes its time: ranges named in the trace while it runs, and the reading of that trace."""

import bisect
import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.profiler import record_function

from dgfast.errors import UserError

NETWORKS = ("E_a", "E_s", "G", "D", "teacher")
PHASES = ("data", *NETWORKS, "backward", "optimizer", "communication", "idle", "other")
STEPS = "dgfast steps"  # the range around all iterations of a trace

# Nodes of backward passes that no range of ours names, as that of the gradient penalty.
_NODE = "autograd::engine::evaluate_function"
_TRANSFERS = ("gloo:", "nccl:")
_LAUNCHES = ("LaunchKernel", "LaunchCooperativeKernel", "GraphLaunch")
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


class Reading(NamedTuple):
    """What a trace says, per iteration."""

    ms: float
    """Wall time, milliseconds."""
    phases: dict[str, float]
    """The same time divided by phase, milliseconds, in the order of `PHASES`."""
    launches: float | None
    """Kernels launched from the host (a CUDA graph is one); None without a GPU."""
    device: bool
    """Whether the phases are times of the GPU or, where it recorded nothing, of the host."""


class _Span(NamedTuple):
    start: float
    end: float
    label: str
    rank: int  # of several spans at a time the one of lowest rank counts, among equals the first to start


@contextmanager
def named(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within the context, each module's forward pass is a range of its name in the trace, frozen views' passes too.

    Args:
        modules: name -> network.
    """
    opened: list[record_function] = []

    def enter(name: str) -> None:
        opened.append(record_function(name))
        opened[-1].__enter__()

    def leave(*_: object) -> None:
        opened.pop().__exit__(None, None, None)

    with ExitStack() as stack:
        for name, module in modules.items():
            compiled = module._compiled_call_impl
            if compiled is None:
                # A backbone is also called by itself (training/shared_pass.py).
                for part in (module, getattr(module, "backbone", None)):
                    if part is not None:
                        stack.callback(part.register_forward_pre_hook(lambda *_, name=name: enter(name)).remove)
                        stack.callback(part.register_forward_hook(leave, always_call=True).remove)
            else:  # the compiled call does not see hooks that are registered after torch.compile
                stack.callback(setattr, module, "_compiled_call_impl", compiled)
                module._compiled_call_impl = _within(name, compiled)
        yield


def _within(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def ranged(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return call(*args, **kwargs)

    return ranged


def read(file: Path, steps: int) -> Reading:
    """Read the times in a Chrome trace.

    On a CPU a moment belongs to the range that the host is in. On a GPU it belongs to the range in which the work that
    runs was launched: communication counts where nothing else runs, data where the host waits for it and the GPU has
    nothing to do; other pauses are "idle", since the host is too slow to launch. Either way all phases together are the
    wall time.

    Args:
        file: the trace, JSON.
        steps: iterations within its one range `STEPS`.
    Returns:
        times per iteration.
    Raises:
        UserError: the file is incomplete.
    """
    try:
        events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("ph") == "X"]
    except (OSError, ValueError, KeyError) as error:  # torch's profiler says nothing of a disk that is full
        raise UserError(
            f"the trace {file} could not be written whole; expected room for it on the disk: make room, or choose"
            " another --trace file (without --trace: another TMPDIR)"
        ) from error
    window = next(e for e in events if e["name"] == STEPS and e["cat"] == "user_annotation")
    start, end = window["ts"], window["ts"] + window["dur"]
    host = list(timeline(_host_spans(events), start, end, "other"))
    calls = [e for e in events if e["cat"] in ("cuda_runtime", "cuda_driver") and start <= e["ts"] <= end]
    work = [e for e in events if e["cat"] in _DEVICE]
    device = any(e["cat"] == "kernel" for e in work)
    if device:
        spans = [*_device_spans(work, calls, host), *(span for span in host if span.label == "data")]
        pieces = list(timeline(spans, start, end, "idle"))
    else:
        pieces = host
    phases = dict.fromkeys(PHASES, 0.0)
    for piece in pieces:
        phases[piece.label] += (piece.end - piece.start) / 1000 / steps
    launches = sum(any(word in e["name"] for word in _LAUNCHES) for e in calls) / steps if device else None
    return Reading((end - start) / 1000 / steps, phases, launches, device)


def timeline(spans: Iterable[_Span], start: float, end: float, rest: str) -> Iterator[_Span]:
    """Cut a stretch of time so that each moment has one label.

    Args:
        spans: labelled, overlapping or not.
        start: of the stretch, microseconds.
        end: of the stretch, microseconds.
        rest: label of moments that no span covers.
    Yields:
        spans without gaps or overlaps, each with the label of the span that counts: the one of the lowest rank, among
        equals the first to start.
    """
    waiting = sorted((span for span in spans if span.end > start and span.start < end), key=lambda span: span.start)
    cuts = sorted({start, end, *(t for s in waiting for t in (s.start, s.end) if start < t < end)})
    active: list[tuple[int, float, float, str]] = []  # rank, start, end, label
    taken = 0
    for begin, until in zip(cuts, cuts[1:], strict=False):
        while taken < len(waiting) and waiting[taken].start <= begin:
            span = waiting[taken]
            heapq.heappush(active, (span.rank, span.start, span.end, span.label))
            taken += 1
        while active and active[0][2] <= begin:
            heapq.heappop(active)
        yield _Span(begin, until, active[0][3] if active else rest, 2)


def _host_spans(events: Iterable[dict[str, Any]]) -> Iterator[_Span]:
    for event in events:
        name, cat, start = event["name"], event["cat"], event["ts"]
        end = start + event["dur"]
        if cat == "user_annotation" and name == "communication":
            yield _Span(start, end, name, 0)
        elif cat == "user_annotation" and name in (*NETWORKS, "data", "optimizer"):
            yield _Span(start, end, name, 1)
        elif cat == "cpu_op" and name.startswith(_NODE):
            yield _Span(start, end, "backward", 2)
        elif cat in ("cpu_op", "user_annotation") and name.startswith(_TRANSFERS):
            # While backward nodes run, a transfer beside them costs nothing. After the last node, and elsewhere, the
            # iteration waits for it.
            yield _Span(start, end, "communication", 3)
        elif cat == "user_annotation" and name == "backward":
            yield _Span(start, end, name, 4)


def _device_spans(
    work: Iterable[dict[str, Any]], calls: Iterable[dict[str, Any]], host: list[_Span]
) -> Iterator[_Span]:
    launched = {e["args"]["correlation"]: e["ts"] for e in calls if "correlation" in e.get("args", {})}
    starts = [span.start for span in host]
    for event in work:
        at = launched.get(event["args"].get("correlation"))
        # The launch's time decides, not its thread: autograd launches from its own threads while the host's waits.
        label = "other" if at is None else host[max(0, bisect.bisect_right(starts, at) - 1)].label
        transfer = "nccl" in event["name"].lower()
        yield _Span(event["ts"], event["ts"] + event["dur"], "communication" if transfer else label, int(transfer))
