"""Freed memory is kept for the next iteration: counted in pages that the system hands out."""

import ctypes
import subprocess
import sys

import pytest

from dgfast.training import heap

FAULTS = """
import resource, sys, torch
from dgfast.training.heap import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def work():
    tensors = [torch.ones(size) for size in (10_000, 300_000, 9_000_000)]
    del tensors
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="needs glibc")
def test_iterations_get_the_pages_of_the_one_before():
    new, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True, text=True).stdout)
        for how in ("new", "kept")
    )
    # Where the system uses large pages by itself, each of the ten rounds still gets its 36 MB anew.
    assert new > 10 * 36_000_000 / 2**21 and kept < new / 100 and kept < 100, (new, kept)


def test_other_systems_keep_their_allocator(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not heap.keep_freed_memory()
    monkeypatch.undo()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not heap.keep_freed_memory()
