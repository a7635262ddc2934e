"""The CUDA path of re-ranking on the CPU: csrc/cuda/ compiled against the stand-in in this folder, called with NumPy
arrays.

Run as a program (`python -m tests.cuda_on_cpu.machine LIBRARY`) it compares the steps with the dense oracle on random
cases. The AddressSanitizer test starts it in a process of its own, because the sanitizer has to be loaded first.
"""

import ctypes
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .oracle import Case, Setting, dense, distances, random_case, symmetric_products

HERE = Path(__file__).parent
SOURCES = [*sorted((HERE.parents[1] / "csrc" / "cuda").glob("*.cu")), *sorted(HERE.glob("*.cpp"))]
FLAGS = [
    "-std=c++20",
    "-O1",
    "-g",
    "-fPIC",
    "-shared",
    "-U_FORTIFY_SOURCE",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
]

_POISON = {"float32": np.nan, "int32": -(2**31) + 1, "int64": -(2**62), "uint8": 255}


def build(target: Path, *flags: str) -> Path:
    """Compile csrc/cuda/ into a shared library.

    Args:
        target: the library.
        flags: more flags for every file.
    Returns:
        target.
    """
    command = ["g++", *FLAGS, *flags, f"-I{HERE}", "-x", "c++", *map(str, SOURCES), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def poisoned(shape: int | tuple[int, ...], dtype: str) -> np.ndarray:
    """An array for results, filled with values that spoil whatever is computed from them."""
    return np.full(shape, _POISON[dtype], dtype)


_pointer, _int64 = ctypes.c_void_p, ctypes.c_int64


class _Structure(ctypes.Structure):
    @classmethod
    def of(cls, *fields: np.ndarray | int):
        """From arrays, for the pointers, and integers."""
        return cls(*map(_c, fields))


class Block(_Structure):
    _fields_ = [("values", _pointer), *((name, _int64) for name in ("stride", "row", "rows", "column", "columns"))]


class Lists(_Structure):
    _fields_ = [*((name, _pointer) for name in ("distances", "indices", "farthest")), ("first", _int64), ("k", _int64)]


class Neighbours(_Structure):
    _fields_ = [*((name, _pointer) for name in ("distances", "indices", "farthest")), ("n", _int64), ("k", _int64)]


class SparseRows(_Structure):
    _fields_ = [(name, _pointer) for name in ("offsets", "columns", "values")]


class Reach(_Structure):
    _fields_ = [("near", _int64), ("half", _int64)]


def _c(argument):
    """A Python argument as ctypes takes it."""
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return _pointer(argument.ctypes.data)
    if isinstance(argument, bool):
        return ctypes.c_bool(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return _int64(argument) if isinstance(argument, int) else argument


@dataclass
class Nearest:
    """Lists of all images, or of `rows` images from `first` on."""

    distances: np.ndarray
    indices: np.ndarray
    farthest: np.ndarray
    first: int = 0

    def lists(self):
        return Lists.of(self.distances, self.indices, self.farthest, self.first, self.distances.shape[1])

    def neighbours(self):
        return Neighbours.of(self.distances, self.indices, self.farthest, *self.distances.shape)


@dataclass
class Sparse:
    """Rows as offsets, columns and values."""

    offsets: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def rows(self):
        return SparseRows.of(self.offsets, self.columns, self.values)

    def sorted(self) -> "Sparse":
        """Every row ascending by column."""
        row = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        order = np.lexsort((self.columns, row))
        return Sparse(self.offsets, self.columns[order], self.values[order])


class Machine:
    """The steps of one library. Error codes are checked; workspaces and outputs are poisoned before a call."""

    def __init__(self, library: Path):
        self._library = ctypes.CDLL(str(library))
        self.longest_list = self.size("longest_list")

    def schedule(self, order: int) -> None:
        """The order in which threads run: 0 ascending, 1 descending, else shuffled with that seed."""
        self._library.cuda_on_cpu_schedule(order)

    def size(self, step: str, *arguments) -> int:
        """What a function returns that returns a size."""
        function = self._library[f"step_{step}"]
        function.restype = _int64
        return function(*map(_c, arguments))

    def code(self, step: str, *arguments) -> int:
        """The error code of a step."""
        return self._library[f"step_{step}"](*map(_c, arguments))

    def _call(self, step: str, *arguments) -> None:
        assert self.code(step, *arguments) == 0, step

    def _workspace(self, step: str, *arguments) -> np.ndarray:
        return poisoned(self.size(f"{step}_workspace", *arguments), "uint8")

    def nearest(
        self,
        products: np.ndarray,
        norms: np.ndarray,
        k: int,
        *,
        block: tuple[int, int],
        symmetric: bool = True,
        seed: int = 0,
        first: int = 0,
        rows: int | None = None,
        padding: int = 0,
    ) -> Nearest:
        """Lists from blocks of at most `block` rows and columns of the products [N, N], entered in the order of `seed`.

        Checks that each block comes back as distances. Of a symmetric block, what lies below the diagonal is NaN.
        """
        n = len(products)
        rows = n - first if rows is None else rows
        made = Nearest(poisoned((rows, k), "float32"), poisoned((rows, k), "int32"), poisoned(rows, "float32"), first)
        self._call("nearest_start", made.lists(), rows)
        corners = [(r, c) for r in range(first, first + rows, block[0]) for c in range(0, n, block[1])]
        if symmetric:
            corners = [(r, c) for r, c in corners if c + block[1] > r]
        for place in np.random.default_rng(seed).permutation(len(corners)):
            r, c = corners[place]
            part = products[r : min(r + block[0], first + rows), c : c + block[1]]
            counts = np.ones(part.shape, bool)
            if symmetric:
                counts = np.arange(c, c + part.shape[1]) >= np.arange(r, r + len(part))[:, None]
            values = poisoned((len(part), part.shape[1] + padding), "float32")
            values[:, : part.shape[1]] = np.where(counts, part, np.nan)
            shape = Block.of(values, values.shape[1], r, len(part), c, part.shape[1])
            self._call("nearest_block", shape, norms, made.lists(), symmetric)
            expected = distances(part, norms, r, c)
            np.testing.assert_array_equal(values[:, : part.shape[1]][counts], expected[counts])
            assert np.isnan(values[:, part.shape[1] :]).all()
        return made

    def distances(self, products: np.ndarray, norms: np.ndarray, row: int, column: int) -> np.ndarray:
        values = np.array(products)
        shape = Block.of(values, values.shape[1], row, len(values), column, values.shape[1])
        self._call("distances_block", shape, norms)
        return values

    def reciprocal(self, nearest: Nearest, near: int) -> np.ndarray:
        back = poisoned((len(nearest.indices), near), "int32")
        self._call("reciprocal", nearest.neighbours(), near, back)
        return back

    def expand(
        self, nearest: Nearest, back: np.ndarray, half: int, features: np.ndarray, squared: bool, row: int, rows: int
    ) -> Sparse:
        lists, reach = nearest.neighbours(), Reach(back.shape[1], half)
        counts = poisoned(rows, "int64")
        workspace = self._workspace("expand", reach, rows)
        self._call("expand_count", lists, back, reach, row, rows, counts, workspace)
        made = _room(counts)
        workspace = self._workspace("expand", reach, rows)
        shape = (features, features.shape[1], squared, row, rows)
        self._call("expand_fill", lists, back, reach, *shape, made.offsets, made.columns, made.values, workspace)
        return made

    def average(self, nearest: Nearest, k2: int, weights: Sparse, row: int, rows: int) -> Sparse:
        """Means over the first k2 neighbours, of `rows` images from `row` on."""
        lists, counts = nearest.neighbours(), poisoned(rows, "int64")
        self._call("average_count", lists, k2, weights.rows(), row, rows, counts)
        made = _room(counts)
        shape = (row, rows, made.offsets, made.columns, made.values)
        self._call("average_fill", lists, k2, weights.rows(), *shape)
        return made

    def invert(self, weights: Sparse, row: int) -> Sparse:
        """Lists by column of the rows from `row` on."""
        n = len(weights.offsets) - 1
        counts = poisoned(n, "int64")
        self._call("invert_count", weights.rows(), row, n - row, n, counts)
        made = _room(counts)
        workspace = self._workspace("invert_fill", n)
        shape = (row, n - row, n, made.offsets, made.columns, made.values)
        self._call("invert_fill", weights.rows(), *shape, workspace)
        return made

    def jaccard(
        self, weights: Sparse, inverted: Sparse, farthest: np.ndarray, row: int, block: np.ndarray, setting: Setting
    ) -> np.ndarray:
        out = np.array(block)
        workspace = self._workspace("jaccard", *out.shape)
        shape = (row, *out.shape, setting.lambda_, setting.squared, out)
        self._call("jaccard", weights.rows(), inverted.rows(), farthest, *shape, workspace)
        return out

    def rerank(
        self,
        features: np.ndarray,
        products: np.ndarray,
        queries: int,
        setting: Setting,
        *,
        block: tuple[int, int] = (64, 64),
        rows: int = 100,
        seed: int = 0,
    ) -> np.ndarray:
        """All steps: the final distances [Q, G]. A step that goes by rows gets `rows` images or queries at a time."""
        n, norms = len(features), products.diagonal().copy()
        nearest = self.nearest(products, norms, setting.near, block=block, seed=seed)
        back = self.reciprocal(nearest, setting.near)
        parts = [(first, min(rows, n - first)) for first in range(0, n, rows)]
        weights = _stack([self.expand(nearest, back, setting.half, features, setting.squared, *part) for part in parts])
        if setting.k2 > 1:
            weights = _stack([self.average(nearest, setting.k2, weights, *part) for part in parts])
        inverted = self.invert(weights, queries)
        out = poisoned((queries, n - queries), "float32")
        for first in range(0, queries, rows):
            part = slice(first, min(first + rows, queries))
            block_distances = self.distances(products[part, queries:], norms, first, queries)
            out[part] = self.jaccard(weights, inverted, nearest.farthest, first, block_distances, setting)
        return out


def _room(counts: np.ndarray) -> Sparse:
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Sparse(offsets, poisoned(int(offsets[-1]), "int32"), poisoned(int(offsets[-1]), "float32"))


def _stack(parts: list[Sparse]) -> Sparse:
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    return Sparse(
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([part.columns for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def main() -> None:
    machine = Machine(Path(sys.argv[1]))
    cases = [random_case(seed) for seed in range(5)]
    # Rows longer than their buffer, and sets too large for shared memory.
    for n, setting in [(300, Setting(k1=7, k2=3)), (163, Setting(k1=159, k2=1))]:
        features = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
        cases.append(Case(features, symmetric_products(features), n - 9, setting, (n, n), n))
    for schedule, case in enumerate(cases):
        machine.schedule(schedule)
        result = machine.rerank(
            case.features, case.products, case.queries, case.setting, block=case.block, rows=case.rows
        )
        np.testing.assert_allclose(result, dense(case.products, case.queries, case.setting), rtol=0, atol=2e-6)
    print("equal")


if __name__ == "__main__":
    main()
