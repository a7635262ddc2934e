"""`dgfast._rerank.cuda` on the CPU: the functions of csrc/bindings.cpp with their arguments, for tensors in host
memory."""

import numpy as np
from torch import Tensor

from .machine import Block, Lists, Machine, Neighbours, Reach, SparseRows


def _arrays(tensors: tuple[Tensor, ...]) -> list[np.ndarray]:
    assert all(tensor.is_contiguous() for tensor in tensors)
    return [tensor.numpy() for tensor in tensors]


def _array(tensor: Tensor) -> np.ndarray:
    return _arrays((tensor,))[0]


class Extension:
    """As the extension does, it refuses a workspace that is too small, and what is not contiguous."""

    def __init__(self, machine: Machine):
        self._machine = machine
        self.called: set[str] = set()

    def _call(self, stage: str, *arguments) -> None:
        self.called.add(stage)
        assert self._machine.code(stage, *arguments) == 0, stage

    def _room(self, workspace: Tensor, needed: int) -> np.ndarray:
        assert workspace.numel() >= needed
        return _array(workspace.fill_(255))

    def longest_list(self):
        return self._machine.longest_list

    def nearest_start(self, distances, indices, farthest, stream):
        self._call(
            "nearest_start",
            Lists.of(*_arrays((distances, indices, farthest)), 0, distances.shape[1]),
            distances.shape[0],
        )

    def nearest_block_workspace(self, rows, columns, k, symmetric):
        shape = Block(None, columns, 0, rows, 0, columns)
        return self._machine.size("nearest_block_workspace", shape, Lists(None, None, None, 0, k), symmetric)

    def nearest_block(
        self, values, row, column, norms, distances, indices, farthest, first, symmetric, workspace, stream
    ):
        shape = Block.of(_array(values), values.shape[1], row, values.shape[0], column, values.shape[1])
        lists = Lists.of(*_arrays((distances, indices, farthest)), first, distances.shape[1])
        space = self._room(workspace, self.nearest_block_workspace(*values.shape, distances.shape[1], symmetric))
        self._call("nearest_block", shape, _array(norms), lists, symmetric, space)

    def distances_block(self, values, row, column, norms, stream):
        shape = Block.of(_array(values), values.shape[1], row, values.shape[0], column, values.shape[1])
        self._call("distances_block", shape, _array(norms))

    def reciprocal(self, distances, indices, farthest, back, stream):
        self._call("reciprocal", _neighbours(distances, indices, farthest), back.shape[1], _array(back))

    def expand_workspace(self, n, k, near, half, rows):
        return self._machine.size("expand_workspace", Neighbours(None, None, None, n, k), Reach(near, half), rows)

    def expand_count(self, distances, indices, farthest, back, half, row, counts, workspace, stream):
        reach = Reach(back.shape[1], half)
        space = self._room(workspace, self.expand_workspace(*indices.shape, reach.near, half, len(counts)))
        shape = (_array(back), reach, row, len(counts), _array(counts))
        self._call("expand_count", _neighbours(distances, indices, farthest), *shape, space)

    def expand_fill(
        self,
        distances,
        indices,
        farthest,
        back,
        half,
        features,
        squared,
        row,
        offsets,
        columns,
        values,
        workspace,
        stream,
    ):
        reach, rows = Reach(back.shape[1], half), len(offsets) - 1
        space = self._room(workspace, self.expand_workspace(*indices.shape, reach.near, half, rows))
        shape = (_array(back), reach, _array(features), features.shape[1], squared, row, rows)
        made = _arrays((offsets, columns, values))
        self._call("expand_fill", _neighbours(distances, indices, farthest), *shape, *made, space)

    def average_workspace(self, k2, longest, rows):
        return self._machine.size("average_workspace", k2, longest, rows)

    def average_count(
        self, distances, indices, farthest, k2, offsets, columns, values, longest, row, counts, workspace, stream
    ):
        lists, weights = _neighbours(distances, indices, farthest), _sparse(offsets, columns, values)
        space = self._room(workspace, self.average_workspace(k2, longest, len(counts)))
        self._call("average_count", lists, k2, weights, longest, row, len(counts), _array(counts), space)

    def average_fill(
        self, distances, indices, farthest, k2, offsets, columns, values, longest, row, new_offsets, new_columns, new_values,
        workspace, stream,
    ):  # fmt: skip
        lists, weights, rows = (
            _neighbours(distances, indices, farthest),
            _sparse(offsets, columns, values),
            len(new_offsets) - 1,
        )
        space = self._room(workspace, self.average_workspace(k2, longest, rows))
        made = _arrays((new_offsets, new_columns, new_values))
        self._call("average_fill", lists, k2, weights, longest, row, rows, *made, space)

    def invert_count(self, offsets, columns, values, row, counts, stream):
        n = len(counts)
        self._call("invert_count", _sparse(offsets, columns, values), row, n - row, n, _array(counts))

    def invert_fill_workspace(self, n, entries):
        return self._machine.size("invert_fill_workspace", n, entries)

    def invert_fill(self, offsets, columns, values, row, list_offsets, rows_of, list_values, workspace, stream):
        n, entries = len(offsets) - 1, len(rows_of)
        space = self._room(workspace, self.invert_fill_workspace(n, entries))
        made = _arrays((list_offsets, rows_of, list_values))
        self._call("invert_fill", _sparse(offsets, columns, values), row, n - row, n, entries, *made, space)

    def jaccard_workspace(self, rows, gallery):
        return self._machine.size("jaccard_workspace", rows, gallery)

    def jaccard(
        self, offsets, columns, values, list_offsets, rows_of, list_values, farthest, row, lambda_, squared, block, workspace,
        stream,
    ):  # fmt: skip
        space = self._room(workspace, self.jaccard_workspace(*block.shape))
        rows = _sparse(offsets, columns, values), _sparse(list_offsets, rows_of, list_values)
        self._call("jaccard", *rows, _array(farthest), row, *block.shape, lambda_, squared, _array(block), space)


def _neighbours(*tensors: Tensor) -> Neighbours:
    return Neighbours.of(*_arrays(tensors), *tensors[0].shape)


def _sparse(*tensors: Tensor) -> SparseRows:
    return SparseRows.of(*_arrays(tensors))
