"""How the normalising kernels cut their work, and the choice among the ways to cut it."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
import triton


class Tiling(NamedTuple):
    """One way to cut the work of a launch.

    pixels: of a tile, a power of two.
    channels: of a tile, a power of two.
    warps: in a program.
    chunk: pixels that one program works on, a multiple of `pixels`; 0: the whole plane.
    """

    pixels: int
    channels: int
    warps: int
    chunk: int

    def constants(self) -> dict[str, int]:
        """Return the tile as the kernels take it.

        128 registers are as many as 16 warps can have. Without the limit ptxas may spill to keep to 64.
        """
        return {"BLOCK_S": self.pixels, "BLOCK_C": self.channels, "num_warps": self.warps, "maxnreg": 128}

    def serves_rows(self, height: int) -> bool:
        """Return whether the kernels of `_stripes.py` take this tiling: a program for a whole plane holds all its rows.

        Args:
            height: of the image, pixels.
        """
        return self.chunk > 0 or triton.next_power_of_2(height) <= self.pixels

    def rows(self, height: int, width: int) -> int:
        """Return how many rows a program of `_stripes.py` owns, a power of two.

        Args:
            height: of the image, pixels.
            width: of the image, pixels.
        """
        most = min(self.pixels, triton.next_power_of_2(height))
        return min(most, 1 << max(0, (self.chunk // width).bit_length() - 1)) if self.chunk else most


def tilings(itemsize: int, samples: int, channels: int, pixels: int, per_sample: bool) -> list[Tiling]:
    """List the tilings worth timing for x [N, C, H, W], the most promising first.

    Args:
        itemsize: bytes of a value of x, 2 or 4.
        samples: N.
        channels: C.
        pixels: H * W.
        per_sample: whether the statistics are those of a whole sample (layer norm), which only split tilings serve.

    Returns:
        One to five tilings, each different.
    """
    sector = 32 // itemsize  # values in the 32 bytes that DRAM and L2 hand out at once
    plane, split = [], []
    for width, warps in ((sector, 8), (2 * sector, 16), (sector, 16)):
        width = min(width, triton.next_power_of_2(channels))
        # Each thread has two 16-byte loads of each tensor in flight.
        rows = min(warps * 2 * sector * 16 // width, max(16, triton.next_power_of_2(pixels)))
        plane.append(Tiling(rows, width, warps, 0))
    for width, warps in ((4 * sector, 4), (2 * sector, 8)):
        width = min(width, triton.next_power_of_2(channels))
        rows = warps * 2 * sector * 16 // width
        # At most 64 chunks a sample: every program of the second launch merges the statistics of all of them.
        chunk = max(4 * rows, triton.cdiv(triton.cdiv(pixels, 64), rows) * rows)
        split.append(Tiling(rows, width, warps, chunk))
    plane, split = list(dict.fromkeys(plane)), list(dict.fromkeys(split))
    # The bytes of a plane that one program reads: 32 of each pixel. 128 kB stay in L1, so the second reading is free. A
    # plane of more than 512 kB is better shared by many programs.
    if per_sample or pixels * 32 > 512 * 1024:
        return split
    few_programs = samples * triton.cdiv(channels, plane[0].channels) < 128
    return split + plane if few_programs or pixels * 32 > 128 * 1024 else plane + split


_chosen: dict[Hashable, Tiling] = {}


def run_fastest(device: torch.device, call: Hashable, candidates: list[Tiling], run: Callable[[Tiling], None]) -> None:
    """Run with the tiling that is fastest for this kind of call; the first such call on a GPU times the candidates.

    The tiling decides the order in which sums are formed. So where torch is told to be deterministic the first
    candidate is taken untimed; likewise while a CUDA graph is captured, where nothing can be timed.

    Args:
        device: that the kernels run on.
        call: what the fastest tiling depends on.
        candidates: the most promising first.
        run: launches the kernels with the tiling that it is given.
    """
    timed = device.type == "cuda" and len(candidates) > 1
    if not timed or torch.are_deterministic_algorithms_enabled():
        return run(candidates[0])
    key = (device, call)
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return run(candidates[0])
        _chosen[key] = min(candidates, key=lambda tiling: _milliseconds(lambda: run(tiling)))
    return run(_chosen[key])


# Cycles that the GPU is kept busy before it is timed: about 1 ms, in which the host launches all that is timed, a dozen
# kernels at most. Else the events would time the host, which takes longer to launch a kernel than these kernels run.
_HEAD_START = 2_000_000


def _milliseconds(run: Callable[[], None]) -> float:
    """The best of five timings of four runs, ms, without the time that the host takes to launch them."""
    run()  # compiles
    times = []
    for _ in range(5):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(_HEAD_START)
        start.record()
        for _ in range(4):
            run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return min(times)
