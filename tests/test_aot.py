"""The normalising kernels compiled for GPUs that are not here: no spills, 16-byte accesses, registers as in the table.

The table is tests/goldens/kernels_normalise.md. By default a part of the launches is compiled; with DGFAST_AOT=all
every one that tuning may choose at the networks' shapes, and the table is written anew.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import triton
from dgfast.kernels import _normalise, _tuning
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.ahead_of_time import CAPABILITIES, EVERYTHING, TOOLS, Resources, resources

TABLE = Path(__file__).parent / "goldens" / "kernels_normalise.md"
FORMATS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


class Case(NamedTuple):
    """A call in the networks for images of 256 x 128, or 128 x 64 where it says quick start.

    name: who makes it.
    shape: x's [C, H, W].
    pad: width of the border, pixels.
    injected: with scale and bias.
    stripes: of scale and bias; 0: one pair for the whole plane.
    residual: with a residual.
    activate: with LeakyReLU.
    per_sample: layer norm.
    """

    name: str
    shape: tuple[int, int, int]
    pad: int
    injected: bool = False
    residual: bool = False
    activate: bool = True
    per_sample: bool = False
    stripes: int = 0


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
    Case("stripes, G block 1st", (128, 64, 32), 1, injected=True, stripes=8),
    Case("stripes, G block 2nd", (128, 64, 32), 0, injected=True, residual=True, activate=False, stripes=8),
    Case("stripes, G block 2nd, bordered", (128, 64, 32), 1, injected=True, residual=True, activate=False, stripes=8),
    Case("stripes, quick start", (32, 32, 16), 1, injected=True, stripes=8),
    Case("G upsample 1", (64, 128, 64), 0, per_sample=True),
    Case("G upsample 2", (32, 256, 128), 0, per_sample=True),
]


def launches(case, dtype, samples, tiling):
    """The kernels of a forward and a backward call with their arguments, from tensors without memory."""
    c, h, w = case.shape
    pad = case.pad

    def image(border=0, dtype=dtype):
        shape = (samples, c, h + 2 * border, w + 2 * border)
        return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)

    scale = bias = None
    if case.injected:
        rows = (case.stripes,) if case.stripes else ()
        scale = bias = torch.empty(samples, *rows, 2 * c, dtype=dtype, device="meta")[..., :c]
    elif case.per_sample:
        scale = bias = torch.empty(c, device="meta")
    residual = image(1)[..., 1:-1, 1:-1] if case.residual else None
    slope = 0.2 if case.activate else 1.0
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_normalise, "tilings", lambda *_: [tiling])
        patch.setattr(_normalise, "launch", lambda kernel, _, *args, **kw: found.append((kernel, args, kw)))
        _, mean, rstd = _normalise.forward(image(), scale, bias, residual, 1e-5, slope, pad, case.per_sample)
        folded = dtype if case.residual and pad else None
        _normalise.backward(image(pad), image(), scale, bias, mean, rstd, folded, 1e-5, slope, pad, case.per_sample)
    return found


def specialised(kernel, args, constants):
    """Signature, constants and attributes as a launch on a GPU would derive them from these arguments."""
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


def compiled(kernel, args, constants, capability, seen={}) -> Resources:  # noqa: B006 (what is known, on purpose)
    """What the kernel takes on a GPU, once its accesses are checked."""
    signature, fixed, attributes = specialised(kernel, args, constants)
    key = (kernel.__name__, constants["num_warps"], capability, *map(str, (signature, fixed, attributes)))
    if key not in seen:
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
        options = {name: constants[name] for name in ("num_warps", "maxnreg")}
        target = GPUTarget("cuda", capability, 32)
        binary, seen[key] = resources(lambda: triton.compile(source, target=target, options=options))
        check(kernel, seen[key], Counter(re.findall(r"((?:ld|st)\.global[\w.:]*)", binary.asm["ptx"])))
    return seen[key]


def check(kernel, found: Resources, accesses: Counter) -> None:
    assert found.spilled == 0
    wide = [name for name in accesses if name.endswith(".v4.b32")]
    assert any(name.startswith("ld") for name in wide)
    writes = kernel.__name__.endswith(("plane_forward", "plane_backward", "split_forward", "split_backward"))
    # striped_split_sums writes no image, but the sums of rows, of which a thread may have several adjacent channels.
    assert any(name.startswith("st") for name in wide) == writes or kernel.__name__ == "striped_split_sums"
    # What is left is one value a channel: scale, bias, statistics. An image read value by value would make eight loads
    # of one.
    assert sum(n for name, n in accesses.items() if name not in wide) <= 8, accesses


def label(case, dtype, tiling, kernel, constants) -> str:
    """The cells of the table before the figures."""
    cut = f"{constants['BLOCK_S']} x {tiling.channels}, {tiling.warps} warps" + (
        f", {tiling.chunk} a program" if tiling.chunk else ""
    )
    return f"| {kernel.__name__.removeprefix('_')} | {case.name} | {FORMATS[dtype]} | {cut} |"


def figures(found: Resources) -> str:
    return f"{found.registers} / {found.shared}"


def cuts(case, dtype, sizes=(8, 48, 384)):
    c, h, w = case.shape
    found = {}
    for samples in sizes:
        for tiling in _tuning.tilings(dtype.itemsize, samples, c, h * w, case.per_sample):
            if tiling.serves_rows(h) or not case.stripes:
                found.setdefault(tiling, samples)
    return found.items()


HEADER = f"""# Registers and shared memory of the normalising kernels

Written by `DGFAST_AOT=all python -m pytest tests/test_aot.py` with {TOOLS}; do not edit.
Each cell: registers a thread / bytes of shared memory a program. Nothing spills; every tensor of images is read and
written 16 bytes at a time.

| kernel | call | format | tile: pixels x channels | {" | ".join(f"sm_{capability}" for capability in CAPABILITIES)} |
|{"---|" * (4 + len(CAPABILITIES))}
"""


@pytest.fixture(autouse=True)
def _own_triton_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))


@pytest.mark.skipif(EVERYTHING, reason="everything is compiled below")
@pytest.mark.parametrize(
    ("dtype", "capabilities"), [(torch.bfloat16, CAPABILITIES), (torch.float32, (100,))], ids=["bf16", "fp32"]
)
@pytest.mark.parametrize(
    "name", ["E_s block 2nd", "G block 1st", "G upsample 2", "stripes, G block 1st", "stripes, quick start"]
)
def test_part(name, dtype, capabilities):
    """The most promising tiling of five calls, which between them launch every kernel, against the table."""
    case = next(c for c in CASES if c.name == name)
    tiling, samples = next(iter(cuts(case, dtype, sizes=(48,))))
    table = TABLE.read_text()
    for kernel, args, constants in launches(case, dtype, samples, tiling):
        found = {capability: compiled(kernel, args, constants, capability) for capability in capabilities}
        if TOOLS not in table:
            continue  # another compiler may use other registers
        start = label(case, dtype, tiling, kernel, constants)
        (row,) = [row for row in table.splitlines() if row.startswith(start)]
        cells = dict(zip(CAPABILITIES, row.removeprefix(start).strip(" |").split(" | "), strict=True))
        assert {capability: figures(one) for capability, one in found.items()} == {
            capability: cells[capability] for capability in capabilities
        }, "the kernel has changed: DGFAST_AOT=all writes the table"


@pytest.mark.slow
@pytest.mark.skipif(not EVERYTHING, reason="DGFAST_AOT=all compiles everything, in about a quarter of an hour")
def test_everything():
    lines = []
    for case in CASES:
        for dtype in FORMATS:
            for tiling, samples in cuts(case, dtype):
                for kernel, args, constants in launches(case, dtype, samples, tiling):
                    found = [compiled(kernel, args, constants, capability) for capability in CAPABILITIES]
                    lines.append(f"{label(case, dtype, tiling, kernel, constants)} {' | '.join(map(figures, found))} |")
    TABLE.write_text(HEADER + "\n".join(sorted(dict.fromkeys(lines))) + "\n")
