"""The stages of re-ranking on each device: the compiled extension on the CPU and on CUDA, torch where there is no CUDA
build.

What a stage computes is said once, in csrc/rerank.hpp. Here its arrays are allocated and its calls are cut so that
Ctrl-C is
heard: `HostStages` (extension, CPU), `CudaStages` (extension, everything on the GPU) and `TorchStages` (products and
selection by torch on the GPU, sparse stages on the CPU). All order neighbours by (distance, index).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dgfast import _rerank

ZERO_BELOW = 2.0**-20  # as zero_below in csrc/rerank.hpp
_ROWS_A_CALL = 1 << 14  # images that a sparse stage takes between two looks at the keyboard
_PIECE = (256, 512)  # rows and columns of a product that one thread computes
_NO_IMAGE = 2**31 - 1  # the place of a list that no image has taken

Ticks = Callable[[int], object]  # told how many images are done


@dataclass
class Lists:
    """The nearest images of the images `first`, `first + 1`, ...: distances and indices [rows, k], farthest [rows]."""

    distances: Tensor  # fp32, squared Euclidean, ascending
    indices: Tensor  # int32
    farthest: Tensor  # fp32, squared Euclidean
    first: int = 0

    def arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.distances, self.indices, self.farthest


@dataclass
class Sparse:
    """Sparse rows: row r is offsets[r] .. offsets[r + 1] - 1 of columns and values."""

    offsets: Tensor  # int64
    columns: Tensor  # int32
    values: Tensor  # fp32

    def arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.offsets, self.columns, self.values


class HostStages:
    """Everything on the CPU. `instruction_set` ("scalar", "avx2", "avx512") is for tests; "" takes the processor's
    best."""

    tile = (
        1024,
        2048,
    )  # rows and columns of a block: with the rows of features behind it, it lives in the last-level cache

    def __init__(self, instruction_set: str = ""):
        self.device = torch.device("cpu")
        self._set = instruction_set

    def scratch_bytes(self, queries: int, gallery: int, images: int) -> int:
        """What the last stages take for themselves: Jaccard sums of so many queries at a time, or places of `images`
        lists."""
        return max(4 * gallery * torch.get_num_threads(), 8 * images)

    def start(self, first: int, rows: int, k: int) -> Lists:
        lists = _empty_lists(first, rows, k, self.device)
        _rerank.cpu.nearest_start(*lists.arrays())
        return lists

    def each(self, count: int, work: Callable[[int], object]) -> None:
        """Call work(0) .. work(count - 1), in any order; on the CPU each by one thread, and all threads at a time.

        So the bits that torch computes in a call do not depend on the number of threads.
        """
        if self.device.type == "cpu":
            _on_one_thread_each(count, work)
        else:
            for i in range(count):
                work(i)

    def multiply(self, rows: Tensor, columns: Tensor, out: Tensor) -> None:
        """Inner products of rows [R, D] and columns [C, D] into out [R, C]."""
        if self.device.type != "cpu":
            torch.mm(rows, columns.t(), out=out)
            return
        high, wide = _PIECE
        corners = [(r, c) for r in range(0, len(rows), high) for c in range(0, len(columns), wide)]

        def piece(i: int) -> None:
            r, c = corners[i]
            torch.mm(rows[r : r + high], columns[c : c + wide].t(), out=out[r : r + high, c : c + wide])

        _on_one_thread_each(len(corners), piece)

    def nearest_block(
        self, values: Tensor, row: int, column: int, norms: Tensor, lists: Lists, symmetric: bool
    ) -> None:
        _rerank.cpu.nearest_block(values, row, column, norms, *lists.arrays(), lists.first, symmetric, self._set)

    def distances_block(self, values: Tensor, row: int, column: int, norms: Tensor) -> None:
        _rerank.cpu.distances_block(values, row, column, norms, self._set)

    def weights(self, lists: Lists, near: int, half: int, features: Tensor, squared: bool, ticks: Ticks) -> Sparse:
        """Reciprocal and expand: V of all images, [N, N]."""
        n = len(features)
        back = torch.empty((n, near), dtype=torch.int32)
        _rerank.cpu.reciprocal(*lists.arrays(), back)
        counts = torch.empty(n, dtype=torch.int64)
        for rows in _chunks(n):
            _rerank.cpu.expand_count(*lists.arrays(), back, half, rows.start, counts[rows])
        made = _room(counts)
        for rows in _chunks(n):
            _rerank.cpu.expand_fill(
                *lists.arrays(), back, half, features, squared, rows.start, made.offsets[rows.start : rows.stop + 1], made.columns,
                made.values, self._set,
            )  # fmt: skip
            ticks(rows.stop - rows.start)
        return made

    def average(self, lists: Lists, k2: int, weights: Sparse, ticks: Ticks) -> Sparse:
        """The k2 expansion."""
        n = len(lists.indices)
        counts = torch.empty(n, dtype=torch.int64)
        for rows in _chunks(n):
            _rerank.cpu.average_count(*lists.arrays(), k2, *weights.arrays(), rows.start, counts[rows])
        made = _room(counts)
        for rows in _chunks(n):
            new_offsets = made.offsets[rows.start : rows.stop + 1]
            _rerank.cpu.average_fill(
                *lists.arrays(), k2, *weights.arrays(), rows.start, new_offsets, made.columns, made.values
            )
            ticks(rows.stop - rows.start)
        return made

    def invert(self, weights: Sparse, row: int) -> Sparse:
        """Inverted lists of the rows from `row` on, by column."""
        counts = torch.empty(len(weights.offsets) - 1, dtype=torch.int64)
        _rerank.cpu.invert_count(*weights.arrays(), row, counts)
        made = _room(counts)
        _rerank.cpu.invert_fill(*weights.arrays(), row, *made.arrays())
        return made

    def jaccard(
        self,
        weights: Sparse,
        inverted: Sparse,
        farthest: Tensor,
        row: int,
        lambda_: float,
        squared: bool,
        block: Tensor,
    ) -> None:
        """Squared distances [rows, G] of the queries from `row` on become the final ones, in place."""
        _rerank.cpu.jaccard(*weights.arrays(), *inverted.arrays(), farthest, row, lambda_, squared, block)

    def smallest(self, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k smallest of each row, by (value, column): values [rows, k] and columns [rows, k] int64."""
        lists = _empty_lists(0, len(block), k, self.device)
        _rerank.cpu.smallest(block, lists.distances, lists.indices, self._set)
        return lists.distances, lists.indices.long()


class TorchStages(HostStages):
    """Products and selection by torch on `device`; the sparse stages by the extension on the CPU."""

    tile = (4096, 8192)

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def start(self, first: int, rows: int, k: int) -> Lists:
        lists = _empty_lists(first, rows, k, self.device)
        lists.distances.fill_(torch.inf)
        lists.indices.fill_(_NO_IMAGE)
        lists.farthest.zero_()
        return lists

    def nearest_block(
        self, values: Tensor, row: int, column: int, norms: Tensor, lists: Lists, symmetric: bool
    ) -> None:
        self.distances_block(values, row, column, norms)
        rows = torch.arange(row, row + values.shape[0], device=self.device)
        columns = torch.arange(column, column + values.shape[1], device=self.device)
        keys = _keys(values, columns)
        if symmetric:
            outside = columns < rows[:, None]
            _merge(lists, rows, keys.masked_fill(outside, _LAST_KEY), values.masked_fill(outside, 0.0))
            outside |= columns == rows[:, None]
            keys = _keys(values, rows[:, None])
            _merge(lists, columns, keys.masked_fill_(outside, _LAST_KEY).t(), values.masked_fill(outside, 0.0).t())
        else:
            _merge(lists, rows - lists.first, keys, values)

    def distances_block(self, values: Tensor, row: int, column: int, norms: Tensor) -> None:
        sums = norms[row : row + values.shape[0], None] + norms[column : column + values.shape[1]]
        torch.sub(sums, values.mul_(2), out=values)
        values.masked_fill_(values <= sums.mul_(ZERO_BELOW), 0.0)
        start, stop = max(row, column), min(row + values.shape[0], column + values.shape[1])
        if start < stop:
            values[start - row : stop - row, start - column : stop - column].fill_diagonal_(0.0)

    def weights(self, lists: Lists, near: int, half: int, features: Tensor, squared: bool, ticks: Ticks) -> Sparse:
        return super().weights(_to_host(lists), near, half, features.cpu(), squared, ticks)

    def average(self, lists: Lists, k2: int, weights: Sparse, ticks: Ticks) -> Sparse:
        return super().average(_to_host(lists), k2, weights, ticks)

    def jaccard(
        self,
        weights: Sparse,
        inverted: Sparse,
        farthest: Tensor,
        row: int,
        lambda_: float,
        squared: bool,
        block: Tensor,
    ) -> None:
        host = block.cpu().contiguous()
        super().jaccard(weights, inverted, farthest.cpu(), row, lambda_, squared, host)
        block.copy_(host)

    def smallest(self, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return _smallest_keys(block, k)


class CudaStages:
    """Everything on a CUDA device, by the extension; selection by torch for lists longer than its kernels take."""

    tile = (8192, 16384)

    def __init__(self, device: torch.device):
        self.device = device
        self._torch = TorchStages(device)

    def scratch_bytes(self, queries: int, gallery: int, images: int) -> int:
        return max(_rerank.cuda.jaccard_workspace(queries, gallery), _rerank.cuda.invert_fill_workspace(images, 0))

    def each(self, count: int, work: Callable[[int], object]) -> None:
        self._torch.each(count, work)

    def multiply(self, rows: Tensor, columns: Tensor, out: Tensor) -> None:
        torch.mm(rows, columns.t(), out=out)

    def start(self, first: int, rows: int, k: int) -> Lists:
        lists = _empty_lists(first, rows, k, self.device)
        self._run(_rerank.cuda.nearest_start, *lists.arrays())
        return lists

    def nearest_block(
        self, values: Tensor, row: int, column: int, norms: Tensor, lists: Lists, symmetric: bool
    ) -> None:
        k = lists.distances.shape[1]
        if k > _rerank.cuda.longest_list():
            self._torch.nearest_block(values, row, column, norms, lists, symmetric)
            return
        space = self._space(_rerank.cuda.nearest_block_workspace(*values.shape, k, symmetric))
        self._run(
            _rerank.cuda.nearest_block, values, row, column, norms, *lists.arrays(), lists.first, symmetric, space
        )

    def distances_block(self, values: Tensor, row: int, column: int, norms: Tensor) -> None:
        self._run(_rerank.cuda.distances_block, values, row, column, norms)

    def weights(self, lists: Lists, near: int, half: int, features: Tensor, squared: bool, ticks: Ticks) -> Sparse:
        n, k = lists.indices.shape
        back = torch.empty((n, near), dtype=torch.int32, device=self.device)
        self._run(_rerank.cuda.reciprocal, *lists.arrays(), back)
        counts = torch.empty(n, dtype=torch.int64, device=self.device)
        space = self._space(_rerank.cuda.expand_workspace(n, k, near, half, min(n, _ROWS_A_CALL)))
        for rows in _chunks(n):
            self._run(_rerank.cuda.expand_count, *lists.arrays(), back, half, rows.start, counts[rows], space)
        made = _room(counts)
        for rows in _chunks(n):
            offsets = made.offsets[rows.start : rows.stop + 1]
            shared = (*lists.arrays(), back, half, features, squared, rows.start)
            self._run(_rerank.cuda.expand_fill, *shared, offsets, made.columns, made.values, space)
            ticks(rows.stop - rows.start)
        return made

    def average(self, lists: Lists, k2: int, weights: Sparse, ticks: Ticks) -> Sparse:
        n = len(lists.indices)
        longest = k2 * int(weights.offsets.diff().max())
        counts = torch.empty(n, dtype=torch.int64, device=self.device)
        space = self._space(_rerank.cuda.average_workspace(k2, longest, min(n, _ROWS_A_CALL)))
        shared = (*lists.arrays(), k2, *weights.arrays(), longest)
        for rows in _chunks(n):
            self._run(_rerank.cuda.average_count, *shared, rows.start, counts[rows], space)
        made = _room(counts)
        for rows in _chunks(n):
            new_offsets = made.offsets[rows.start : rows.stop + 1]
            self._run(_rerank.cuda.average_fill, *shared, rows.start, new_offsets, made.columns, made.values, space)
            ticks(rows.stop - rows.start)
        return made

    def invert(self, weights: Sparse, row: int) -> Sparse:
        n = len(weights.offsets) - 1
        counts = torch.empty(n, dtype=torch.int64, device=self.device)
        self._run(_rerank.cuda.invert_count, *weights.arrays(), row, counts)
        made = _room(counts)
        space = self._space(_rerank.cuda.invert_fill_workspace(n, len(made.columns)))
        self._run(_rerank.cuda.invert_fill, *weights.arrays(), row, *made.arrays(), space)
        return made

    def jaccard(
        self,
        weights: Sparse,
        inverted: Sparse,
        farthest: Tensor,
        row: int,
        lambda_: float,
        squared: bool,
        block: Tensor,
    ) -> None:
        space = self._space(_rerank.cuda.jaccard_workspace(*block.shape))
        shared = (*weights.arrays(), *inverted.arrays(), farthest)
        self._run(_rerank.cuda.jaccard, *shared, row, lambda_, squared, block, space)

    def smallest(self, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return _smallest_keys(block, k)

    def _run(self, stage: Callable[..., None], *arguments: object) -> None:
        """Launch on the features' device, on torch's current stream there."""
        with torch.cuda.device(self.device):
            stage(*arguments, torch.cuda.current_stream(self.device).cuda_stream)

    def _space(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self.device)


Stages = HostStages | TorchStages | CudaStages


def stages_for(device: torch.device) -> Stages:
    """The best stages there are for features on `device`."""
    if device.type == "cpu":
        return HostStages()
    if device.type == "cuda" and _rerank.build_info()["cuda"]:
        return CudaStages(device)
    return TorchStages(device)


def _on_one_thread_each(count: int, work: Callable[[int], object]) -> None:
    """Call work(0) .. work(count - 1), in any order, on all threads, with torch on one thread in each call."""
    threads = torch.get_num_threads()

    def alone(i: int) -> None:
        # This is the setting of the thread that runs the call. Inference mode is a thread's own too: without it a call
        # could not write to what a caller in that mode has made.
        torch.set_num_threads(1)
        with torch.inference_mode():
            work(i)

    try:
        _rerank.on_threads(count, alone)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products of fp32 matrices in fp32, whatever autocast or the user's TF32 and bf16 switches say."""
    # torch has older and newer switches, and refuses products while they contradict each other: this sets both.
    switches = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    older, newer = torch.get_float32_matmul_precision(), [switch.fp32_precision for switch in switches]
    try:
        torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(older)
        for switch, value in zip(switches, newer, strict=True):
            switch.fp32_precision = value


def _empty_lists(first: int, rows: int, k: int, device: torch.device) -> Lists:
    return Lists(
        torch.empty((rows, k), device=device),
        torch.empty((rows, k), dtype=torch.int32, device=device),
        torch.empty(rows, device=device),
        first,
    )


def _chunks(n: int) -> Iterator[slice]:
    for start in range(0, n, _ROWS_A_CALL):
        yield slice(start, min(n, start + _ROWS_A_CALL))


def _room(counts: Tensor) -> Sparse:
    """Sparse rows of these lengths, yet to be filled."""
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    entries = int(offsets[-1])
    return Sparse(
        offsets,
        torch.empty(entries, dtype=torch.int32, device=counts.device),
        torch.empty(entries, dtype=torch.float32, device=counts.device),
    )


def _to_host(lists: Lists) -> Lists:
    return Lists(*(array.cpu() for array in lists.arrays()), lists.first)


# (distance, index) as one integer: the bits of a float that is not negative order as the float does. All keys of a row
# differ, so torch.topk, which promises nothing about ties, keeps the tie rule.
_LAST_KEY = torch.iinfo(torch.int64).max


def _keys(distances: Tensor, indices: Tensor) -> Tensor:
    return (distances.view(torch.int32).long() << 32) | indices


def _split(keys: Tensor) -> tuple[Tensor, Tensor]:
    return (keys >> 32).int().view(torch.float32), keys & 0xFFFFFFFF


def _merge(lists: Lists, rows: Tensor, keys: Tensor, distances: Tensor) -> None:
    """Enter candidates [len(rows), any number] into the lists of `rows`, places within `lists`."""
    own = slice(int(rows[0]), int(rows[-1]) + 1)
    k = lists.distances.shape[1]
    known = _keys(lists.distances[own], lists.indices[own].long())
    nearest = keys.topk(min(k, keys.shape[1]), dim=1, largest=False)[0]
    merged = torch.cat([known, nearest], 1).topk(k, dim=1, largest=False, sorted=True)[0]
    lists.distances[own], lists.indices[own] = _split(merged)
    lists.farthest[own] = torch.maximum(lists.farthest[own], distances.amax(1))


def _smallest_keys(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    columns = torch.arange(block.shape[1], device=block.device)
    return _split(_keys(block, columns).topk(k, dim=1, largest=False, sorted=True)[0])
