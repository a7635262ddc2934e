"""Times of what a GPU computes, without the host's: work recorded once as a CUDA graph, then replayed."""

from collections.abc import Callable, Sequence

import torch

BEYOND_L2 = 512 * 2**20  # bytes; sets of tensors that together exceed the cache of any card

Step = Callable[[], object]


def sets_beyond_l2(least_bytes: int) -> int:
    """The number of sets of tensors that together do not fit into the L2 cache.

    Args:
        least_bytes: that a call moves at least.
    """
    return max(1, -(-BEYOND_L2 // least_bytes))


def captured(make: Callable[[], Sequence[Step]]) -> Callable[[], None]:
    """One CUDA graph of several steps, one after another.

    Args:
        make: makes the steps anew. It is called, like the steps, on the stream of the capture: a backward pass runs on
            the stream of its forward pass, and a capture must not reach another.

    Returns:
        A function that replays the graph and waits for its end.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in make():  # tunes and compiles
            step()
        steps = make()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for step in steps:
            step()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay
