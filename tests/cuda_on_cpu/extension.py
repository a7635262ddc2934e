"""Stands in for `dgfast._rerank.cuda`: the functions of csrc/bindings_cuda.cpp, for tensors in the CPU's memory."""

import numpy as np
from torch import Tensor

from .machine import Block, Machine, Nearest, Reach, Sparse


def _array(tensor: Tensor) -> np.ndarray:
    assert tensor.is_contiguous()
    return tensor.numpy()


class NeighbourLists(Nearest):
    """As the class of that name in the extension."""

    def __init__(self, distances: Tensor, indices: Tensor, farthest: Tensor, first: int):
        super().__init__(*map(_array, (distances, indices, farthest)), first)
        assert self.distances.shape == self.indices.shape and len(self.farthest) == len(self.indices)


class SparseRows(Sparse):
    """As the class of that name in the extension."""

    def __init__(self, offsets: Tensor, columns: Tensor, values: Tensor):
        super().__init__(*map(_array, (offsets, columns, values)))
        assert len(self.columns) == len(self.values) >= self.offsets[-1]

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a step fills."""
        return self.offsets, self.columns, self.values


class Extension:
    """The module's functions. Like these, they refuse a workspace that is too small, and arrays with gaps."""

    NeighbourLists = NeighbourLists
    SparseRows = SparseRows

    def __init__(self, machine: Machine):
        self._machine = machine
        self.called: set[str] = set()

    def _call(self, step: str, *arguments) -> None:
        self.called.add(step)
        assert self._machine.code(step, *arguments) == 0, step

    def _room(self, workspace: Tensor, needed: int) -> np.ndarray:
        assert workspace.numel() >= needed
        return _array(workspace.fill_(255))

    def longest_list(self):
        return self._machine.longest_list

    def nearest_start(self, lists, stream):
        self._call("nearest_start", lists.lists(), len(lists.indices))

    def nearest_block(self, values, row, column, norms, lists, symmetric, stream):
        self._call("nearest_block", _block(values, row, column), _array(norms), lists.lists(), symmetric)

    def distances_block(self, values, row, column, norms, stream):
        self._call("distances_block", _block(values, row, column), _array(norms))

    def reciprocal(self, lists, back, stream):
        self._call("reciprocal", lists.neighbours(), back.shape[1], _array(back))

    def expand_workspace(self, near, half, rows):
        return self._machine.size("expand_workspace", Reach(near, half), rows)

    def expand_count(self, lists, back, half, row, counts, workspace, stream):
        reach = Reach(back.shape[1], half)
        space = self._room(workspace, self.expand_workspace(reach.near, half, len(counts)))
        given = lists.neighbours(), _array(back), reach
        self._call("expand_count", *given, row, len(counts), _array(counts), space)

    def expand_fill(self, lists, back, half, features, squared, row, out, workspace, stream):
        reach, rows = Reach(back.shape[1], half), len(out.offsets) - 1
        space = self._room(workspace, self.expand_workspace(reach.near, half, rows))
        given = lists.neighbours(), _array(back), reach, _array(features), features.shape[1], squared
        self._call("expand_fill", *given, row, rows, *out.arrays(), space)

    def average_count(self, lists, k2, weights, row, counts, stream):
        given = lists.neighbours(), k2, weights.rows()
        self._call("average_count", *given, row, len(counts), _array(counts))

    def average_fill(self, lists, k2, weights, row, out, stream):
        given = lists.neighbours(), k2, weights.rows()
        self._call("average_fill", *given, row, len(out.offsets) - 1, *out.arrays())

    def invert_count(self, weights, row, counts, stream):
        n = len(counts)
        self._call("invert_count", weights.rows(), row, n - row, n, _array(counts))

    def invert_fill_workspace(self, n):
        return self._machine.size("invert_fill_workspace", n)

    def invert_fill(self, weights, row, out, workspace, stream):
        n = len(out.offsets) - 1
        space = self._room(workspace, self.invert_fill_workspace(n))
        self._call("invert_fill", weights.rows(), row, n - row, n, *out.arrays(), space)

    def jaccard_workspace(self, rows, gallery):
        return self._machine.size("jaccard_workspace", rows, gallery)

    def jaccard(self, weights, inverted, farthest, row, lambda_, squared, block, workspace, stream):
        space = self._room(workspace, self.jaccard_workspace(*block.shape))
        given = weights.rows(), inverted.rows(), _array(farthest)
        self._call("jaccard", *given, row, *block.shape, lambda_, squared, _array(block), space)


def _block(values: Tensor, row: int, column: int) -> Block:
    return Block.of(_array(values), values.shape[1], row, values.shape[0], column, values.shape[1])
