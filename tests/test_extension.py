"""The compiled module: it imports anywhere, and says truthfully how it was built."""

import gc
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from dgfast import _rerank

HEADER = Path(__file__).parents[1] / "csrc" / "rerank.hpp"


def test_build_info_describes_this_build():
    info = _rerank.build_info()
    assert set(info) == {"cuda", "cuda_architectures", "compiler", "instruction_set", "max_threads"}
    assert info["instruction_set"] in {"scalar", "avx2", "avx512"}
    assert info["max_threads"] >= 1
    assert bool(info["cuda_architectures"]) == info["cuda"]


def test_instruction_set_is_one_the_processor_has():
    flags = Path("/proc/cpuinfo").read_text().split()
    expected = {"avx512": {"avx512f", "avx512dq"}, "avx2": {"avx2", "fma"}, "scalar": set()}
    assert expected[_rerank.build_info()["instruction_set"]] <= set(flags)


def test_threads_follow_openmp_environment():
    code = "from dgfast import _rerank; print(_rerank.build_info()['max_threads'])"
    environment = {"OMP_NUM_THREADS": "3", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 3


def test_both_paths_offer_the_same_steps():
    declared = re.split(r"namespace (?:cpu|cuda) {", HEADER.read_text())[1:]
    cpu, cuda = (set(re.findall(r"^(?:void|int|int64_t) (\w+)\(", part, re.MULTILINE)) for part in declared)
    workspaces = {name for name in cuda if name.endswith("_workspace")} | {"longest_list"}
    assert cuda - workspaces <= cpu and cpu - cuda == {"smallest", "hit_ranks"}
    classes = {"NeighbourLists", "SparseRows"}
    assert {name for name in dir(_rerank.cpu) if name[0] != "_"} == cpu | classes
    if _rerank.build_info()["cuda"]:
        assert {name for name in dir(_rerank.cuda) if name[0] != "_"} == cuda | classes
    else:
        assert not hasattr(_rerank, "cuda")


def test_work_is_done_once_on_several_threads():
    seen = []
    _rerank.on_threads(50, seen.append)
    assert sorted(seen) == list(range(50))


def test_an_exception_in_a_thread_is_raised():
    def work(i):
        if i == 7:
            raise ValueError("seven")

    with pytest.raises(ValueError, match="seven"):
        _rerank.on_threads(50, work)


def arrays(rows, k):
    return np.empty((rows, k), np.float32), np.empty((rows, k), np.int32), np.empty(rows, np.float32)


def lists(rows, k, first=0):
    return _rerank.cpu.NeighbourLists(*arrays(rows, k), first)


def rows(offsets, entries):
    return _rerank.cpu.SparseRows(
        np.array(offsets, np.int64), np.zeros(entries, np.int32), np.zeros(entries, np.float32)
    )


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: _rerank.cpu.NeighbourLists(*arrays(3, 2)[:2], ones(4), 0), "expected distances and indices"),
        (lambda: _rerank.cpu.NeighbourLists(*arrays(3, 0), 0), "k > 0"),
        (lambda: _rerank.cpu.NeighbourLists(*arrays(3, 2), -1), "first >= 0"),
        (lambda: _rerank.cpu.NeighbourLists(np.empty((3, 2)), *arrays(3, 2)[1:], 0), "incompatible"),
        (lambda: _rerank.cpu.NeighbourLists(arrays(3, 4)[0][:, ::2], *arrays(3, 2)[1:], 0), "incompatible"),
        (lambda: rows([0, 2, 5], 4), "reach past the columns"),
        (lambda: rows([-1, 2], 4), "reach past the columns"),
        (lambda: rows([], 0), "expected offsets"),
        (lambda: _rerank.cpu.SparseRows(np.zeros(2, np.int32), *arrays(1, 1)[1:]), "incompatible"),
        (lambda: _rerank.cpu.nearest_block(ones(2, 2), 2, 0, ones(3), lists(3, 1), True, ""), "reaches past the norms"),
        (lambda: _rerank.cpu.nearest_block(ones(2, 2), 0, 0, ones(3), lists(2, 1), True, ""), "lists of all images"),
        (lambda: _rerank.cpu.nearest_block(ones(2, 2), 0, 0, ones(3), lists(2, 1, 1), False, ""), "no lists for the"),
        (lambda: _rerank.cpu.distances_block(ones(2, 2), 0, 0, ones(3), "sse9"), "'sse9' is not one that this"),
        (lambda: _rerank.cpu.distances_block(np.ones((2, 2)), 0, 0, ones(3), ""), "incompatible"),
        (lambda: _rerank.cpu.reciprocal(lists(3, 2), np.empty((3, 3), np.int32)), "near <= k"),
        (lambda: _rerank.cpu.reciprocal(lists(3, 2, 1), np.empty((3, 2), np.int32)), "reach past the images"),
        (lambda: _rerank.cpu.average_count(lists(3, 2), 3, rows([0] * 4, 0), 0, np.empty(3, int)), "k2 <= k"),
        (lambda: _rerank.cpu.average_count(lists(3, 2), 2, rows([0] * 4, 0), 1, np.empty(3, int)), "past the images"),
        (lambda: _rerank.cpu.invert_count(rows([0] * 4, 0), 0, np.empty(4, int)), "n rows of n columns"),
        (lambda: _rerank.cpu.smallest(ones(2, 2), lists(2, 3), ""), "k <= columns"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(call, error):
    with pytest.raises((TypeError, ValueError), match=error):
        call()


def test_objects_keep_their_arrays_alive():
    made = np.full((50, 2), 7, np.float32), np.full((50, 2), 7, np.int32), np.full(50, 7, np.float32)
    kept = [weakref.ref(array) for array in made]
    bound = _rerank.cpu.NeighbourLists(*made, 0)
    del made
    gc.collect()
    assert all(ref() is not None for ref in kept)
    _rerank.cpu.nearest_start(bound)
    assert np.isinf(kept[0]()).all() and (kept[2]() == 0).all()
    del bound
    gc.collect()
    assert all(ref() is None for ref in kept)
