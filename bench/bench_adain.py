"""How fast the normalisations are at the networks' shapes: eager, torch.compile and Triton; forward, backward, both.

On a GPU a CUDA graph repeats the call over sets of tensors that together exceed the L2 cache, so that neither the host
nor a warm cache is measured. The bytes that must move at least, divided by the time, are given as a fraction of the
card's own copy bandwidth. On a CPU eager and torch.compile run at the smallest batch. Nothing is timed before its
result agrees with the reference in fp64.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from dgfast.kernels import adain, layer_norm
from torch import Tensor

from bench.timing import captured, sets_beyond_l2

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"


class Call(NamedTuple):
    """One use in the networks.

    name: who makes it.
    shape: x's [N, C, H, W].
    injected: with scale and bias.
    stripes: of scale and bias; 0: one pair for the whole plane.
    residual: with a residual.
    slope: LeakyReLU's; 1.0: no activation.
    pad: width of the border, pixels.
    per_sample: layer norm.
    """

    name: str
    shape: tuple[int, int, int, int]
    injected: bool = False
    residual: bool = False
    slope: float = 1.0
    pad: int = 0
    per_sample: bool = False
    stripes: int = 0


CALLS = [
    *(Call(f"G block 1st, N={n}", (n, 128, 64, 32), injected=True, slope=0.2, pad=1) for n in (8, 48, 384)),
    *(Call(f"G block 2nd, N={n}", (n, 128, 64, 32), injected=True, residual=True) for n in (8, 48, 384)),
    *(Call(f"8 stripes, N={n}", (n, 128, 64, 32), injected=True, slope=0.2, pad=1, stripes=8) for n in (8, 48, 384)),
    *(Call(f"E_s stem, N={n}", (n, 32, 128, 64), slope=0.2, pad=1) for n in (8, 48)),
    *(Call(f"E_s block, N={n}", (n, 64, 64, 32), residual=True, pad=1) for n in (8, 48)),
    *(Call(f"G upsample 1, N={n}", (n, 64, 128, 64), slope=0.2, per_sample=True) for n in (8, 48)),
]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of the reference's largest value


class Tensors(NamedTuple):
    """What a call takes.

    inputs: in the order of `operation`'s arguments.
    upstream: the gradient that comes back.
    """

    inputs: tuple[Tensor, ...]
    upstream: Tensor


def tensors(call: Call, dtype: torch.dtype, seed: int) -> Tensors:
    n, c, h, w = call.shape
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def random(*shape: int) -> Tensor:
        x = torch.randn(shape, device=DEVICE, dtype=dtype, generator=generator)
        return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x

    row = (c,) if call.per_sample else (n, call.stripes, c) if call.stripes else (n, c)
    rows = [row] * 2 if call.per_sample or call.injected else []
    shapes = [call.shape, *rows, *([call.shape] if call.residual else [])]
    inputs = tuple(random(*shape).requires_grad_() for shape in shapes)
    return Tensors(inputs, random(n, c, h + 2 * call.pad, w + 2 * call.pad))


def operation(call: Call, impl: str) -> Callable[..., Tensor]:
    def run(x: Tensor, *others: Tensor) -> Tensor:
        way = "triton" if impl == "triton" else "eager"
        if call.per_sample:
            return layer_norm(x, *others, slope=call.slope, pad=call.pad, impl=way)
        scale, bias = others[:2] if call.injected else (None, None)
        residual = others[-1] if call.residual else None
        return adain(x, scale, bias, slope=call.slope, residual=residual, pad=call.pad, impl=way)

    if impl != "compile":
        return run
    torch.compiler.reset()  # every case specialises the same function, and torch gives up on the ninth
    return torch.compile(run, fullgraph=True, dynamic=False)


def check(call: Call, run: Callable[..., Tensor], data: Tensors) -> None:
    """Compare output and gradients of the first two samples with fp64; no sample depends on another."""
    out = run(*data.inputs)
    found = torch.autograd.grad(out, data.inputs, data.upstream)
    few = [t[:2] if t.shape[0] == call.shape[0] and not (call.per_sample and t.ndim == 1) else t for t in data.inputs]
    exact = [t.detach().double().requires_grad_() for t in few]
    expected = operation(call, "eager")(*exact)
    gradients = torch.autograd.grad(expected, exact, data.upstream[:2].double())
    dtype = data.upstream.dtype
    for name, a, b in zip(("output", "x", "2nd", "3rd", "4th"), (out, *found), (expected, *gradients), strict=False):
        if call.per_sample and a.ndim == 1:
            continue  # a sum over all samples; the tests compare it
        error = (a[:2].double() - b).abs().max() / b.abs().max()
        assert error < TOLERANCE[dtype], f"{call.name}: {name} is off by {error:.1e}"


def least_bytes(call: Call, itemsize: int, direction: str) -> int:
    """Bytes if every image moves once: x, residual, out; x, gradient, dx and a bordered residual's gradient."""
    n, c, h, w = call.shape
    plain, bordered = n * c * h * w * itemsize, n * c * (h + 2 * call.pad) * (w + 2 * call.pad) * itemsize
    forward = plain + bordered + plain * call.residual
    backward = 2 * plain + bordered + plain * (call.residual and call.pad > 0)
    return {"forward": forward, "backward": backward, "both": forward + backward}[direction]


def step(run: Callable[..., Tensor], data: Tensors, direction: str) -> Callable[[], object]:
    if direction == "forward":
        inputs = tuple(t.detach() for t in data.inputs)
        return lambda: run(*inputs)
    if direction == "both":
        return lambda: torch.autograd.grad(run(*data.inputs), data.inputs, data.upstream)
    out = run(*data.inputs)
    return lambda: torch.autograd.grad(out, data.inputs, data.upstream, retain_graph=True)


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("impl", ["eager", "compile", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_normalise(benchmark, capsys, copy_bandwidth, call, dtype, impl, direction):
    if not ON_GPU:
        if impl == "triton":
            pytest.skip("Triton's kernels need a GPU")
        if call.shape[0] > 8 or dtype != torch.float32:
            pytest.skip("a CPU runs the smallest batch in fp32")
    run = operation(call, impl)
    data = tensors(call, dtype, seed=0)
    check(call, run, data)
    least = least_bytes(call, dtype.itemsize, direction)
    if not ON_GPU:
        benchmark.pedantic(step(run, data, direction), rounds=3, warmup_rounds=1)
        return
    sets = [data, *(tensors(call, dtype, seed) for seed in range(1, sets_beyond_l2(least)))]
    replay = captured(lambda: [step(run, one, direction) for one in sets])
    benchmark.pedantic(replay, rounds=20, warmup_rounds=3)
    if benchmark.disabled:
        return
    seconds = benchmark.stats.stats.median / len(sets)
    fraction = least / seconds / copy_bandwidth
    benchmark.extra_info.update(microseconds_a_call=1e6 * seconds, fraction_of_copy_bandwidth=fraction)
    with capsys.disabled():
        print(f"\n{call.name} {impl} {direction}: {1e6 * seconds:.1f} us, {100 * fraction:.0f} % of the copy bandwidth")
