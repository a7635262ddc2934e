"""The compiled module: it imports anywhere, and says truthfully how it was built."""

import re
import subprocess
import sys
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


def test_no_devices_are_seen_when_none_are_visible():
    code = "from dgfast import _rerank; print(_rerank.cuda_device_count())"
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0


def test_both_paths_offer_the_same_stages():
    declared = re.split(r"namespace (?:cpu|cuda) {", HEADER.read_text())[1:]
    cpu, cuda = (set(re.findall(r"^(?:void|int|int64_t) (\w+)\(", part, re.MULTILINE)) for part in declared)
    workspaces = {name for name in cuda if name.endswith("_workspace")} | {"longest_list"}
    assert cuda - workspaces <= cpu and cpu - cuda == {"smallest", "hit_ranks"}
    assert {name for name in dir(_rerank.cpu) if name[0] != "_"} == cpu
    if _rerank.build_info()["cuda"]:
        assert {name for name in dir(_rerank.cuda) if name[0] != "_"} == cuda
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


def lists(rows, k):
    return np.empty((rows, k), np.float32), np.empty((rows, k), np.int32), np.empty(rows, np.float32)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (
            lambda: _rerank.cpu.nearest_start(*lists(3, 2)[:2], np.empty(4, np.float32)),
            "expected distances and indices",
        ),
        (lambda: _rerank.cpu.nearest_start(np.empty((3, 2)), *lists(3, 2)[1:]), "incompatible"),
        (lambda: _rerank.cpu.nearest_start(lists(3, 4)[0][:, ::2], *lists(3, 2)[1:]), "incompatible"),
        (
            lambda: _rerank.cpu.nearest_block(
                np.ones((2, 2), np.float32), 2, 0, np.ones(3, np.float32), *lists(3, 1), 0, True
            ),
            "reaches past the norms",
        ),
        (
            lambda: _rerank.cpu.nearest_block(
                np.ones((2, 2), np.float32), 0, 0, np.ones(3, np.float32), *lists(2, 1), 0, True
            ),
            "needs the lists of all images",
        ),
        (
            lambda: _rerank.cpu.distances_block(np.ones((2, 2), np.float32), 0, 0, np.ones(3, np.float32), "sse9"),
            "'sse9' is not one that this processor runs",
        ),
        (lambda: _rerank.cpu.smallest(np.ones((2, 2), np.float32), *lists(2, 3)[:2]), "1 <= k <= columns"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(call, error):
    with pytest.raises((TypeError, ValueError), match=error):
        call()
