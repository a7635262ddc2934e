"""Kernels compiled for GPUs that are not here, and what the compiler says of them.

Not in one process with Triton's interpreter. By default the tests compile a part of all launches; DGFAST_AOT=all has
them compile every one, in about a quarter of an hour, and write the tables of tests/goldens anew.
"""

import contextlib
import io
import os
import re
from collections.abc import Callable
from typing import NamedTuple

import triton
from triton.compiler import CompiledKernel

CAPABILITIES = (80, 90, 100)
EVERYTHING = os.environ.get("DGFAST_AOT") == "all"
TOOLS = f"triton {triton.__version__}"  # tables tell it: another compiler may use other registers


class Resources(NamedTuple):
    """What one compiled kernel takes.

    registers: of a thread.
    spilled: bytes of registers that a thread stores to memory, and loads from it.
    shared: bytes of shared memory of a program.
    """

    registers: int
    spilled: int
    shared: int


_known: dict[str, Resources] = {}


def resources(compile: Callable[[], CompiledKernel]) -> tuple[CompiledKernel, Resources]:
    """Return what `compile` returns, with what ptxas reports of it.

    Args:
        compile: compiles a kernel, or finds one again that was compiled here.
    """
    report = io.StringIO()
    with triton.knobs.nvidia.scope(), contextlib.redirect_stdout(report):
        triton.knobs.nvidia.dump_ptxas_log = True
        kernel = compile()
    if said := report.getvalue():
        registers = re.search(r"Used (\d+) registers", said)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
        assert registers and spills, said
        spilled = int(spills[1]) + int(spills[2])
        _known[kernel.hash] = Resources(int(registers[1]), spilled, kernel.metadata.shared)
    return kernel, _known[kernel.hash]
