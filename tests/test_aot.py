"""The normalising kernels compiled for GPUs that are not here: no spills, 16-byte accesses, registers as in
docs/kernels_table.md.

By default a part of the configurations; with DGFAST_AOT=all every one that tuning may choose at the networks' shapes,
and the table is written anew.
"""

import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import triton
from dgfast.kernels import _normalise, _tuning
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TABLE = Path(__file__).parent.parent / "docs" / "kernels_table.md"
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
CAPABILITIES = (80, 90, 100)
FORMATS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


class Case(NamedTuple):
    """A call in the networks at 256 x 128: who makes it, x's [C, H, W], and what is on."""

    name: str
    shape: tuple[int, int, int]
    pad: int
    injected: bool = False
    residual: bool = False
    activate: bool = True
    per_sample: bool = False


CASES = [
    Case("E_s stem 1", (16, 128, 64), 1),
    Case("E_s stem 2, 3", (32, 128, 64), 1),
    Case("E_s block 1st", (64, 64, 32), 1),
    Case("E_s block 2nd", (64, 64, 32), 1, residual=True, activate=False),
    Case("E_s context, pad 3", (32, 64, 32), 3),
    Case("E_s context, pad 6", (32, 64, 32), 6),
    Case("E_s context, pad 9", (32, 64, 32), 9),
    Case("E_s context out", (32, 64, 32), 0, activate=False),
    Case("E_s fuse", (128, 64, 32), 0, activate=False),
    Case("G block 1st", (128, 64, 32), 1, injected=True),
    Case("G block 2nd", (128, 64, 32), 0, injected=True, residual=True, activate=False),
    Case("G block 2nd, bordered", (128, 64, 32), 1, injected=True, residual=True, activate=False),
    Case("G upsample 1", (64, 128, 64), 0, per_sample=True),
    Case("G upsample 2", (32, 256, 128), 0, per_sample=True),
]


class Compiled(NamedTuple):
    registers: int
    shared: int
    spilled: int
    accesses: Counter


def launches(case, dtype, samples, tiling):
    """The kernels of a forward and a backward call with their arguments, from tensors without memory."""
    c, h, w = case.shape
    pad = case.pad

    def image(border=0, dtype=dtype):
        shape = (samples, c, h + 2 * border, w + 2 * border)
        return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)

    scale = bias = None
    if case.injected:
        scale = bias = torch.empty(samples, 2 * c, dtype=dtype, device="meta")[:, :c]
    elif case.per_sample:
        scale = bias = torch.empty(c, device="meta")
    residual = image(1)[..., 1:-1, 1:-1] if case.residual else None
    slope = 0.2 if case.activate else 1.0
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_normalise, "tilings", lambda *_: [tiling])
        patch.setattr(_normalise, "launch", lambda kernel, _, *args, **constants: found.append((kernel, args, constants)))
        _, mean, rstd = _normalise.forward(image(), scale, bias, residual, 1e-5, slope, pad, case.per_sample)
        folded = dtype if case.residual and pad else None
        _normalise.backward(image(pad), image(), scale, bias, mean, rstd, folded, 1e-5, slope, pad, case.per_sample)
    return found


def specialised(kernel, args, constants):
    """Signature, constants and attributes, as a launch on a GPU would derive them from these arguments."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | constants
    signature, fixed, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[name], fixed[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(i,)] = f"*{FORMATS[value.dtype]}", [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    return signature, fixed, attributes


def compiled(kernel, args, constants, capability, tmp_path, seen={}) -> Compiled:  # noqa: B006
    signature, fixed, attributes = specialised(kernel, args, constants)
    key = (kernel.__name__, constants["num_warps"], capability, *map(str, (signature, fixed, attributes)))
    if key not in seen:
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
        options = {name: constants[name] for name in ("num_warps", "maxnreg")}
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        ptx = tmp_path / "kernel.ptx"
        ptx.write_text(binary.asm["ptx"])
        tool = PTXAS / ("ptxas-blackwell" if capability >= 100 else "ptxas")
        arch = f"sm_{capability}{'a' if capability >= 90 else ''}"
        command = [tool, "-v", f"-arch={arch}", ptx, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said).groups()
        accesses = Counter(re.findall(r"((?:ld|st)\.global[\w.:]*)", binary.asm["ptx"]))
        registers = int(re.search(r"Used (\d+) registers", said)[1])
        seen[key] = Compiled(registers, binary.metadata.shared, int(stores) + int(loads), accesses)
    return seen[key]


def check(kernel, found: Compiled) -> None:
    assert found.spilled == 0
    wide = [name for name in found.accesses if name.endswith(".v4.b32")]
    assert any(name.startswith("ld") for name in wide)
    writes = kernel.__name__ in ("_plane_forward", "_plane_backward", "_split_forward", "_split_backward")
    assert any(name.startswith("st") for name in wide) == writes
    # What is left is one value a channel: scale, bias, statistics. An image read value by value would make eight loads
    # of one.
    assert sum(n for name, n in found.accesses.items() if name not in wide) <= 8, found.accesses


def line(case, dtype, tiling, kernel, found: dict[int, Compiled]) -> str:
    cut = f"{tiling.pixels} x {tiling.channels}, {tiling.warps} warps" + (
        f", {tiling.chunk} a program" if tiling.chunk else ""
    )
    used = " | ".join(f"{found[cc].registers} / {found[cc].shared}" for cc in found)
    return f"| {kernel.__name__.removeprefix('_')} | {case.name} | {FORMATS[dtype]} | {cut} | {used} |"


def cuts(case, dtype, sizes=(8, 48, 384)):
    c, h, w = case.shape
    found = {}
    for samples in sizes:
        for tiling in _tuning.tilings(dtype.itemsize, samples, c, h * w, case.per_sample):
            found.setdefault(tiling, samples)
    return found.items()


HEADER = f"""# Registers and shared memory of the normalising kernels

Written by `DGFAST_AOT=all python -m pytest tests/test_aot.py` with triton {triton.__version__}; do not edit. Each cell: registers a
thread / bytes of shared memory a program. Nothing spills; every tensor of images is read and written 16 bytes at a time.

| kernel | call | format | tile: pixels x channels | sm_80 | sm_90 | sm_100 |
|---|---|---|---|---|---|---|
"""


@pytest.fixture(autouse=True)
def _own_triton_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))


@pytest.mark.skipif(os.environ.get("DGFAST_AOT") == "all", reason="everything is compiled below")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=FORMATS.get)
@pytest.mark.parametrize("name", ["E_s block 2nd", "G block 1st", "G upsample 2"])
def test_part(name, dtype, tmp_path):
    """The most promising tiling of three calls on every GPU, against the table."""
    case = next(c for c in CASES if c.name == name)
    tiling, samples = next(iter(cuts(case, dtype, sizes=(48,))))
    table = TABLE.read_text() if TABLE.exists() else ""
    same_tools = f"triton {triton.__version__};" in table  # another compiler may use other registers
    for kernel, args, constants in launches(case, dtype, samples, tiling):
        found = {cc: compiled(kernel, args, constants, cc, tmp_path) for cc in CAPABILITIES}
        for one in found.values():
            check(kernel, one)
        if same_tools:
            row = line(case, dtype, tiling, kernel, found)
            assert row in table.splitlines(), "the kernel has changed: DGFAST_AOT=all writes the table"


@pytest.mark.skipif(
    os.environ.get("DGFAST_AOT") != "all", reason="DGFAST_AOT=all compiles everything, in some ten minutes"
)
def test_everything(tmp_path):
    lines = []
    for case in CASES:
        for dtype in FORMATS:
            for tiling, samples in cuts(case, dtype):
                for kernel, args, constants in launches(case, dtype, samples, tiling):
                    found = {cc: compiled(kernel, args, constants, cc, tmp_path) for cc in CAPABILITIES}
                    for one in found.values():
                        check(kernel, one)
                    lines.append(line(case, dtype, tiling, kernel, found))
    TABLE.write_text(HEADER + "\n".join(sorted(dict.fromkeys(lines))) + "\n")
