"""The compiled module: it imports anywhere, and says truthfully how it was built."""

import subprocess
import sys
from pathlib import Path

from dgfast import _rerank


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
