"""The steps of re-ranking on each kind of device: their arrays are allocated here, and what they compute is compiled.

csrc/rerank.hpp says what each step does. `CpuBackend` runs all of them in the extension on the CPU and `CudaBackend` in
the extension on a GPU. `TorchBackend` is for a GPU without a CUDA build of the extension: torch multiplies and selects
there, and the extension takes the sparse steps on the CPU. All order neighbours by (distance, index).

Long steps are called for some images at a time, because Python handles Ctrl-C only between two calls.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from dgfast import _rerank

ZERO_BELOW = 2.0**-20  # as zero_below in csrc/rerank.hpp
_ROWS_A_CALL = 1 << 14  # images that a sparse step takes in one call
_PIECE = (256, 512)  # rows and columns of a product that one thread computes
_SELECTED = 1 << 24  # values among which torch selects at a time
_SELECTION_BYTES = 6 * 8  # that this takes for each: keys, steps on the way to them, masks, torch's own copy
_NO_IMAGE = 2**31 - 1  # the place of a list that no image has taken
# Steps of the CPU path that have code for several instruction sets, and so take the name of one.
_VECTORISED = ("nearest_block", "distances_block", "expand_fill", "smallest")

Progress = Callable[[int], object]  # is told how many more images, or pairs of images, are done


@dataclass
class NeighbourLists:
    """The nearest images of the images `first`, `first` + 1, ..., nearest first; the lower index wins a tie."""

    distances: Tensor
    """[rows, k] float32: squared Euclidean distances, ascending."""
    indices: Tensor
    """[rows, k] int32: the images at these distances."""
    farthest: Tensor
    """[rows] float32: squared Euclidean distance of the image that is farthest away."""
    first: int = 0
    """The image that the first row belongs to."""

    @classmethod
    def empty(cls, first: int, rows: int, k: int, device: torch.device) -> "NeighbourLists":
        """Lists whose content is undefined.

        Args:
            first: the image that the first row belongs to.
            rows: number of lists.
            k: length of each list, at least 1.
            device: where they are.
        """
        return cls(
            torch.empty((rows, k), device=device),
            torch.empty((rows, k), dtype=torch.int32, device=device),
            torch.empty(rows, device=device),
            first,
        )

    def to_cpu(self) -> "NeighbourLists":
        """The same lists in the CPU's memory."""
        return NeighbourLists(self.distances.cpu(), self.indices.cpu(), self.farthest.cpu(), self.first)


@dataclass
class SparseRows:
    """A sparse matrix by rows: row r has the entries offsets[r] .. offsets[r + 1] - 1 of columns and values."""

    offsets: Tensor
    """[rows + 1] int64."""
    columns: Tensor
    """[entries] int32, no column twice in a row."""
    values: Tensor
    """[entries] float32."""

    @classmethod
    def with_room(cls, counts: Tensor) -> "SparseRows":
        """Rows of these lengths, whose entries are still undefined.

        Args:
            counts: [rows] int64: entries of each row.
        """
        offsets = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        entries = int(offsets[-1])
        return cls(
            offsets,
            torch.empty(entries, dtype=torch.int32, device=counts.device),
            torch.empty(entries, dtype=torch.float32, device=counts.device),
        )


class _Backend:
    """What all backends share: a device, and products on it."""

    tile: tuple[int, int]
    """Rows and columns of a block of products."""
    chunk = 1 << 26
    """Values of features that are made ready at a time: enough to keep a GPU busy."""

    def __init__(self, device: torch.device):
        self.device = device

    def each(self, count: int, work: Callable[[int], object]) -> None:
        """Call a function for several numbers; what torch computes in it has the same bits for any number of threads.

        On the CPU the calls share the threads, and torch computes each on one thread.

        Args:
            count: number of calls.
            work: called with 0 .. count - 1, in any order.
        """
        if self.device.type != "cpu":
            for i in range(count):
                work(i)
            return
        threads = torch.get_num_threads()

        def alone(i: int) -> None:
            # Both are settings of the thread that runs the call. Without inference mode it could not write to what a
            # caller in that mode has allocated.
            torch.set_num_threads(1)
            with torch.inference_mode():
                work(i)

        try:
            _rerank.on_threads(count, alone)
        finally:
            torch.set_num_threads(threads)

    def multiply(self, rows: Tensor, columns: Tensor, out: Tensor) -> None:
        """Inner products, with the same bits for any number of threads.

        On the CPU the product is cut into pieces of a fixed size. A BLAS may add in another order when it has another
        number of threads for a product, so each piece is computed on one thread.

        Args:
            rows: [R, D] float32.
            columns: [C, D] float32.
            out: [R, C] float32, receives the products.
        """
        if self.device.type != "cpu":
            torch.mm(rows, columns.t(), out=out)
            return
        high, wide = _PIECE
        corners = [(r, c) for r in range(0, len(rows), high) for c in range(0, len(columns), wide)]

        def piece(i: int) -> None:
            r, c = corners[i]
            torch.mm(rows[r : r + high], columns[c : c + wide].t(), out=out[r : r + high, c : c + wide])

        self.each(len(corners), piece)


class _ExtensionBackend(_Backend):
    """What the CPU and the CUDA path share: the same steps in the same order, each a call of the extension."""

    def _module(self) -> ModuleType:
        """The extension's module with the steps for this device."""
        raise NotImplementedError

    def _run(self, step: str, *arguments: object) -> None:
        """Call a step of the extension."""
        raise NotImplementedError

    def _workspace(self, step: str, *sizes: int) -> tuple[Tensor, ...]:
        """The memory that a step needs for itself as its last argument, or nothing where it takes none."""
        raise NotImplementedError

    def _lists(self, lists: NeighbourLists) -> object:
        """The lists as the extension takes them."""
        return self._module().NeighbourLists(lists.distances, lists.indices, lists.farthest, lists.first)

    def _rows(self, rows: SparseRows, part: slice = slice(None)) -> object:
        """Sparse rows, or a part of them, as the extension takes them."""
        stop = None if part.stop is None else part.stop + 1
        return self._module().SparseRows(rows.offsets[part.start : stop], rows.columns, rows.values)

    def start(self, first: int, rows: int, k: int) -> NeighbourLists:
        """Lists that no image has entered yet.

        Args:
            first: the image that the first row belongs to.
            rows: number of lists.
            k: length of each list, at least 1.
        """
        lists = NeighbourLists.empty(first, rows, k, self.device)
        self._run("nearest_start", self._lists(lists))
        return lists

    def nearest_block(
        self, values: Tensor, row: int, column: int, norms: Tensor, lists: NeighbourLists, symmetric: bool
    ) -> None:
        """Turn a block of products into squared distances and enter these into the lists.

        Args:
            values: [rows, columns] float32: inner products on entry, squared distances on return.
            row: the image of the block's first row.
            column: the image of the block's first column.
            norms: [N] float32: squared norms of all images.
            lists: those of the block's rows, or of all images if `symmetric`.
            symmetric: the block is one of those that cover the upper triangle once: only elements on and above the
                diagonal count, and each enters the list of its row and the list of its column.
        """
        self._run("nearest_block", values, row, column, norms, self._lists(lists), symmetric)

    def distances_block(self, values: Tensor, row: int, column: int, norms: Tensor) -> None:
        """Make squared distances of a block of products, in place.

        Args:
            values: [rows, columns] fp32, products of features.
            row: the image of the first row.
            column: the image of the first column.
            norms: [N] fp32, squared norms of all images.
        """
        self._run("distances_block", values, row, column, norms)

    def weights(
        self, lists: NeighbourLists, near: int, half: int, features: Tensor, squared: bool, progress: Progress
    ) -> SparseRows:
        """The weights V over the expanded reciprocal sets of all images.

        Args:
            lists: of all N images.
            near: k1 + 1, neighbours that may be reciprocal.
            half: round(k1 / 2) + 1, neighbours of a candidate.
            features: [N, D] float32.
            squared: whether the distance in the weight is squared once more (variant "squared").
            progress: told the number of images done.
        Returns:
            [N, N], each row summing to 1.
        """
        n, bound = len(features), self._lists(lists)
        back = torch.empty((n, near), dtype=torch.int32, device=self.device)
        self._run("reciprocal", bound, back)
        counts = torch.empty(n, dtype=torch.int64, device=self.device)
        space = self._workspace("expand_workspace", near, half, min(n, _ROWS_A_CALL))
        for rows in _chunks(n):
            self._run("expand_count", bound, back, half, rows.start, counts[rows], *space)
        made = SparseRows.with_room(counts)
        for rows in _chunks(n):
            out = self._rows(made, rows)
            self._run("expand_fill", bound, back, half, features, squared, rows.start, out, *space)
            progress(rows.stop - rows.start)
        return made

    def average(self, lists: NeighbourLists, k2: int, weights: SparseRows, progress: Progress) -> SparseRows:
        """The k2 expansion: each row becomes the mean of the rows of the image's first k2 neighbours.

        Args:
            lists: of all N images.
            k2: 1 .. length of the lists.
            weights: [N, N].
            progress: told the number of images done.
        """
        n, bound, given = len(lists.indices), self._lists(lists), self._rows(weights)
        counts = torch.empty(n, dtype=torch.int64, device=self.device)
        for rows in _chunks(n):
            self._run("average_count", bound, k2, given, rows.start, counts[rows])
        made = SparseRows.with_room(counts)
        for rows in _chunks(n):
            self._run("average_fill", bound, k2, given, rows.start, self._rows(made, rows))
            progress(rows.stop - rows.start)
        return made

    def invert(self, weights: SparseRows, row: int) -> SparseRows:
        """The rows from `row` on, listed by column.

        Args:
            weights: [N, N].
            row: the first image of the gallery.
        Returns:
            [N, G]: for each column the gallery images that have it, ascending from 0, with their weights.
        """
        n = len(weights.offsets) - 1
        counts = torch.empty(n, dtype=torch.int64, device=self.device)
        self._run("invert_count", self._rows(weights), row, counts)
        made = SparseRows.with_room(counts)
        self._run(
            "invert_fill", self._rows(weights), row, self._rows(made), *self._workspace("invert_fill_workspace", n)
        )
        return made

    def jaccard(
        self,
        weights: SparseRows,
        inverted: SparseRows,
        farthest: Tensor,
        row: int,
        lambda_: float,
        squared: bool,
        block: Tensor,
    ) -> None:
        """Turn squared distances of some queries into the final distances, in place.

        Args:
            weights: [N, N].
            inverted: [N, G], as `invert` makes it.
            farthest: [N] float32.
            row: the first of the queries.
            lambda_: weight of the original distance, 0 .. 1.
            squared: as for `weights`.
            block: [queries, G] float32, contiguous.
        """
        space = self._workspace("jaccard_workspace", *block.shape)
        given = self._rows(weights), self._rows(inverted), farthest
        self._run("jaccard", *given, row, lambda_, squared, block, *space)


class CpuBackend(_ExtensionBackend):
    """Everything on the CPU."""

    chunk = 1 << 18  # 1 MiB, within the L2 cache
    tile = (1024, 2048)  # with the features of its rows and columns it stays in the last-level cache

    def __init__(self, instruction_set: str = ""):
        """On the CPU.

        Args:
            instruction_set: "scalar", "avx2" or "avx512", for tests; "" is the best that the processor has.
        """
        super().__init__(torch.device("cpu"))
        self._set = instruction_set

    def _module(self) -> ModuleType:
        return _rerank.cpu

    def _run(self, step: str, *arguments: object) -> None:
        chosen = (self._set,) if step in _VECTORISED else ()
        getattr(_rerank.cpu, step)(*arguments, *chosen)

    def _workspace(self, step: str, *sizes: int) -> tuple[Tensor, ...]:
        return ()

    def scratch_bytes(self, queries: int, gallery: int, images: int) -> int:
        """Memory that the steps `jaccard` and `invert` take for themselves.

        Args:
            queries: queries in one call of `jaccard`.
            gallery: gallery images, G.
            images: all images, N.
        """
        return max(4 * gallery * torch.get_num_threads(), 8 * images)

    def smallest(self, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k smallest values of each row, ascending; the lower column wins a tie.

        Args:
            block: [rows, columns] float32, contiguous, without NaN.
            k: 1 .. columns.
        Returns:
            values [rows, k] float32 and columns [rows, k] int64.
        """
        lists = NeighbourLists.empty(0, len(block), k, self.device)
        self._run("smallest", block, self._lists(lists))
        return lists.distances, lists.indices.long()


class TorchBackend(_Backend):
    """Products and selection by torch on `device`; the sparse steps by the extension on the CPU."""

    tile = (4096, 8192)

    def __init__(self, device: torch.device):
        """On a device.

        Args:
            device: any device of torch.
        """
        super().__init__(device)
        self._cpu = CpuBackend()

    def scratch_bytes(self, queries: int, gallery: int, images: int) -> int:
        """As `CpuBackend.scratch_bytes`; on the device torch selects in memory of its own."""
        return max(self._cpu.scratch_bytes(queries, gallery, images), _selection_bytes(gallery))

    def start(self, first: int, rows: int, k: int) -> NeighbourLists:
        """As `CpuBackend.start`."""
        lists = NeighbourLists.empty(first, rows, k, self.device)
        lists.distances.fill_(torch.inf)
        lists.indices.fill_(_NO_IMAGE)
        lists.farthest.zero_()
        return lists

    def nearest_block(
        self, values: Tensor, row: int, column: int, norms: Tensor, lists: NeighbourLists, symmetric: bool
    ) -> None:
        """As `CpuBackend.nearest_block`."""
        for first, part in _row_parts(values):
            self._enter(part, row + first, column, norms, lists, symmetric)

    def _enter(
        self, values: Tensor, row: int, column: int, norms: Tensor, lists: NeighbourLists, symmetric: bool
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
        """As `CpuBackend.distances_block`."""
        sums = norms[row : row + values.shape[0], None] + norms[column : column + values.shape[1]]
        torch.sub(sums, values.mul_(2), out=values)
        values.masked_fill_(values <= sums.mul_(ZERO_BELOW), 0.0)
        start, stop = max(row, column), min(row + values.shape[0], column + values.shape[1])
        if start < stop:
            values[start - row : stop - row, start - column : stop - column].fill_diagonal_(0.0)

    def weights(
        self, lists: NeighbourLists, near: int, half: int, features: Tensor, squared: bool, progress: Progress
    ) -> SparseRows:
        """As `CpuBackend.weights`."""
        return self._cpu.weights(lists.to_cpu(), near, half, features.cpu(), squared, progress)

    def average(self, lists: NeighbourLists, k2: int, weights: SparseRows, progress: Progress) -> SparseRows:
        """As `CpuBackend.average`."""
        return self._cpu.average(lists.to_cpu(), k2, weights, progress)

    def invert(self, weights: SparseRows, row: int) -> SparseRows:
        """As `CpuBackend.invert`."""
        return self._cpu.invert(weights, row)

    def jaccard(
        self,
        weights: SparseRows,
        inverted: SparseRows,
        farthest: Tensor,
        row: int,
        lambda_: float,
        squared: bool,
        block: Tensor,
    ) -> None:
        """As `CpuBackend.jaccard`."""
        host = block.cpu().contiguous()
        self._cpu.jaccard(weights, inverted, farthest.cpu(), row, lambda_, squared, host)
        block.copy_(host)

    def smallest(self, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `CpuBackend.smallest`."""
        return _smallest_keys(block, k)


class CudaBackend(_ExtensionBackend):
    """Everything on a CUDA device; lists that are longer than the extension's kernels take are selected by torch."""

    tile = (8192, 16384)

    def __init__(self, device: torch.device):
        """On a CUDA device.

        Args:
            device: a CUDA device; the extension was built with CUDA.
        """
        super().__init__(device)
        self._torch = TorchBackend(device)

    def _module(self) -> ModuleType:
        return _rerank.cuda

    def _run(self, step: str, *arguments: object) -> None:
        """Launch on the backend's device, on the stream that torch uses there."""
        with torch.cuda.device(self.device):
            getattr(_rerank.cuda, step)(*arguments, torch.cuda.current_stream(self.device).cuda_stream)

    def _workspace(self, step: str, *sizes: int) -> tuple[Tensor, ...]:
        return (torch.empty(getattr(_rerank.cuda, step)(*sizes), dtype=torch.uint8, device=self.device),)

    def scratch_bytes(self, queries: int, gallery: int, images: int) -> int:
        """As `CpuBackend.scratch_bytes`, and what torch takes to select the best of each query."""
        return max(
            _rerank.cuda.jaccard_workspace(queries, gallery),
            _rerank.cuda.invert_fill_workspace(images),
            _selection_bytes(gallery),
        )

    def nearest_block(
        self, values: Tensor, row: int, column: int, norms: Tensor, lists: NeighbourLists, symmetric: bool
    ) -> None:
        """As `CpuBackend.nearest_block`."""
        if lists.distances.shape[1] <= _rerank.cuda.longest_list():
            super().nearest_block(values, row, column, norms, lists, symmetric)
        else:
            self._torch.nearest_block(values, row, column, norms, lists, symmetric)

    def smallest(self, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `CpuBackend.smallest`."""
        return _smallest_keys(block, k)


Backend = CpuBackend | TorchBackend | CudaBackend


def backend_for(device: torch.device) -> Backend:
    """The best backend there is for features on a device.

    Args:
        device: the CPU or a CUDA device.
    """
    if device.type == "cpu":
        return CpuBackend()
    if device.type == "cuda" and _rerank.build_info()["cuda"]:
        return CudaBackend(device)
    return TorchBackend(device)


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Within the context, products of float32 matrices are computed in float32.

    The user may have allowed TF32 or bf16 products, or be within autocast; this is put back at the end.

    Args:
        device: where the products are computed.
    """
    # torch has older and newer switches, and refuses products while they contradict each other; so both are set.
    switches = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    older, newer = torch.get_float32_matmul_precision(), [switch.fp32_precision for switch in switches]
    try:
        torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(older)
        for switch, value in zip(switches, newer, strict=True):
            switch.fp32_precision = value


def _chunks(n: int) -> Iterator[slice]:
    for start in range(0, n, _ROWS_A_CALL):
        yield slice(start, min(n, start + _ROWS_A_CALL))


# A key is (distance, index) as one integer: the bits of a float that is not negative are ordered as the float is. All
# keys of a row differ, so torch.topk, which promises no order of equal values, keeps the tie rule.
_LAST_KEY = torch.iinfo(torch.int64).max


def _keys(distances: Tensor, indices: Tensor) -> Tensor:
    return (distances.view(torch.int32).long() << 32) | indices


def _split(keys: Tensor) -> tuple[Tensor, Tensor]:
    return (keys >> 32).int().view(torch.float32), keys & 0xFFFFFFFF


def _merge(lists: NeighbourLists, rows: Tensor, keys: Tensor, distances: Tensor) -> None:
    """Enter candidates [len(rows), any number] into the lists of `rows`, which count from 0 within `lists`."""
    own = slice(int(rows[0]), int(rows[-1]) + 1)
    k = lists.distances.shape[1]
    known = _keys(lists.distances[own], lists.indices[own].long())
    nearest = keys.topk(min(k, keys.shape[1]), dim=1, largest=False)[0]
    merged = torch.cat([known, nearest], 1).topk(k, dim=1, largest=False, sorted=True)[0]
    lists.distances[own], lists.indices[own] = _split(merged)
    lists.farthest[own] = torch.maximum(lists.farthest[own], distances.amax(1))


def _smallest_keys(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    columns = torch.arange(block.shape[1], device=block.device)
    found = [_keys(part, columns).topk(k, dim=1, largest=False, sorted=True)[0] for _, part in _row_parts(block)]
    return _split(torch.cat(found))


def _row_parts(block: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows), so many rows at a time that selecting among them takes no more than `_selection_bytes`."""
    rows = max(1, _SELECTED // block.shape[1])
    return zip(range(0, len(block), rows), block.split(rows), strict=True)


def _selection_bytes(columns: int) -> int:
    """The most memory in which torch selects among the values of a block; one row is selected from at once."""
    return _SELECTION_BYTES * max(_SELECTED, columns)
