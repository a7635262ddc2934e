"""The normalising kernels in Triton's interpreter; tests/test_adain.py runs this file."""

import functools
from collections import Counter

import pytest
import torch
from dgfast.kernels import _normalise, adain, fallbacks, layer_norm
from dgfast.kernels._tuning import Tiling
from dgfast.kernels.adaptive_norm import adain_eager
from dgfast.kernels.layer_norm import layer_norm_eager

from dgfast.models import decoder, layers, structure

# Largest error of outputs and of gradients, as a share of the reference's largest value. In fp32 it is set by the
# inputs' mean, 50 deviations from 0: one rounding of that mean is 2e-6 of every normalised value, and gradients sum
# over them (eager fp32 reaches 1e-4). In 16 bits it is the output's rounding, and the interpreter truncates where a GPU
# rounds.
TOLERANCE = {torch.float32: (2e-5, 1e-4), torch.float16: (2e-3, 2e-3), torch.bfloat16: (1.6e-2, 1.6e-2)}
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
PLANE = Tiling(32, 16, 4, 0)
SPLIT = Tiling(16, 16, 4, 32)
LARGE, LARGE_SPLIT = Tiling(512, 32, 4, 0), Tiling(512, 16, 4, 1024)  # few programs: quick in the interpreter


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels that were launched."""
    names, launch = [], _normalise.launch

    def counting(kernel, *args, **constants):
        names.append(kernel.__name__)
        launch(kernel, *args, **constants)

    monkeypatch.setattr(_normalise, "launch", counting)
    return names


@pytest.fixture
def cut(monkeypatch):
    """A function that has all further launches use one tiling."""
    return lambda tiling: monkeypatch.setattr(_normalise, "tilings", lambda *_: [tiling])


def random(*shape, dtype=FP32, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def inside(x):
    """The same values as the inside of a tensor with a border of one pixel."""
    n, c, h, w = x.shape
    padded = torch.full((n, c, h + 2, w + 2), torch.nan, dtype=x.dtype).to(memory_format=torch.channels_last)
    padded[..., 1:-1, 1:-1] = x
    return padded[..., 1:-1, 1:-1]


def check(found, expected, dtype, what):
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[dtype][what != "output"], f"{what}: {error:.2e}"  # NaN fails too


@pytest.mark.parametrize(
    ("shape", "dtype", "tiling", "pad", "injected", "residual", "slope"),
    [
        ((2, 16, 8, 6), FP32, PLANE, 1, True, True, 0.2),
        ((2, 16, 8, 6), FP32, SPLIT, 1, True, True, 0.2),
        ((1, 17, 5, 3), FP32, PLANE, 2, True, False, 1.0),
        ((1, 17, 5, 3), FP32, SPLIT, 0, False, True, 0.2),
        ((3, 33, 7, 9), FP32, Tiling(16, 64, 4, 0), 0, True, True, 0.2),
        ((2, 3, 3, 4), FP32, PLANE, 2, False, True, 0.2),  # every row lies in both borders
        ((1, 5, 1, 13), FP32, PLANE, 0, True, False, 0.2),
        ((2, 17, 9, 5), BF16, PLANE, 1, True, True, 0.2),
        ((1, 17, 9, 5), BF16, SPLIT, 3, True, False, 0.2),
        ((1, 17, 9, 5), FP16, PLANE, 1, False, True, 1.0),
        ((1, 17, 9, 5), FP16, SPLIT, 1, True, True, 0.2),
        ((1, 8, 67, 61), FP32, Tiling(512, 8, 4, 0), 1, True, False, 0.2),
        ((1, 8, 67, 61), BF16, Tiling(512, 8, 4, 1024), 1, True, True, 0.2),
    ],
)
def test_adain_against_fp64(cut, shape, dtype, tiling, pad, injected, residual, slope):
    cut(tiling)
    n, c = shape[:2]
    x = (random(*shape) * 0.1 + 5).to(dtype)  # an offset that E[x^2] - E[x]^2 would not survive
    scale, bias = (random(n, c, dtype=dtype, seed=1), random(n, c, dtype=dtype, seed=2)) if injected else (None, None)
    added = random(*shape, dtype=dtype, seed=3) if residual else None
    exact = [None if t is None else t.double().requires_grad_() for t in (x, scale, bias, added)]
    expected = adain_eager(*exact, 1e-5, slope, pad)
    upstream = random(*expected.shape, dtype=dtype, seed=4)
    expected.backward(upstream.double())

    out, mean, rstd = _normalise.forward(x, scale, bias, added, 1e-5, slope, pad, False)
    folded = dtype if residual and pad else None
    found = _normalise.backward(upstream, x, scale, bias, mean, rstd, folded, 1e-5, slope, pad, False)

    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    check(out, expected, dtype, "output")
    for name, gradient, reference in zip(("x", "scale", "bias", "residual"), found, exact, strict=True):
        if reference is not None and (name != "residual" or folded):
            assert gradient.dtype == dtype and gradient.shape == reference.shape
            check(gradient, reference.grad, dtype, name)


@pytest.mark.parametrize(
    ("shape", "stripes", "dtype", "tiling", "pad", "residual", "slope"),
    [
        ((2, 16, 8, 6), 3, FP32, PLANE, 1, True, 0.2),
        ((2, 16, 8, 6), 3, FP32, SPLIT, 1, True, 0.2),
        ((2, 16, 8, 6), 1, FP32, PLANE, 0, True, 1.0),
        ((2, 16, 8, 6), 1, FP32, SPLIT, 1, False, 0.2),
        ((1, 17, 13, 5), 8, FP32, PLANE, 2, False, 1.0),  # two blocks of channels; H no multiple of S
        ((1, 17, 13, 5), 8, FP32, Tiling(16, 16, 4, 32), 0, True, 0.2),  # chunks that are no whole rows
        ((3, 33, 7, 9), 3, FP32, Tiling(16, 64, 4, 0), 0, True, 0.2),
        ((2, 3, 3, 4), 8, FP32, PLANE, 2, True, 0.2),  # fewer rows than stripes; every row lies in both borders
        ((2, 3, 3, 4), 8, FP32, SPLIT, 2, True, 0.2),
        ((1, 5, 1, 13), 3, FP32, PLANE, 0, False, 0.2),
        ((1, 4, 21, 3), 8, FP32, Tiling(4, 8, 4, 4), 1, True, 0.2),  # one row a program: more than BLOCK_P pieces
        ((1, 4, 130, 3), 2, FP32, Tiling(16, 8, 4, 64), 1, False, 0.2),  # more than BLOCK_P rows have a share
        ((1, 4, 5, 40), 64, FP32, Tiling(16, 8, 4, 32), 1, False, 0.2),  # rows longer than a chunk
        ((2, 17, 9, 5), 3, BF16, PLANE, 1, True, 0.2),
        ((1, 17, 9, 5), 8, BF16, SPLIT, 3, False, 0.2),
        ((1, 17, 9, 5), 8, FP16, PLANE, 1, True, 1.0),
        ((1, 17, 9, 5), 3, FP16, SPLIT, 1, True, 0.2),
        ((1, 8, 67, 61), 8, FP32, Tiling(512, 8, 4, 0), 1, False, 0.2),
        ((1, 8, 67, 61), 8, BF16, Tiling(512, 8, 4, 1024), 1, True, 0.2),
    ],
)
def test_adain_in_stripes_against_fp64(launches, cut, shape, stripes, dtype, tiling, pad, residual, slope):
    cut(tiling)
    n, c = shape[:2]
    x = (random(*shape) * 0.1 + 5).to(dtype)
    # Both come out of one layer, as the halves of its output, so their rows are not dense.
    scale, bias = random(n, stripes, 2 * c, dtype=dtype, seed=1).chunk(2, 2)
    added = random(*shape, dtype=dtype, seed=3) if residual else None
    exact = [None if t is None else t.double().requires_grad_() for t in (x, scale, bias, added)]
    expected = adain_eager(*exact, 1e-5, slope, pad)
    upstream = random(*expected.shape, dtype=dtype, seed=4)
    expected.backward(upstream.double())

    out, mean, rstd = _normalise.forward(x, scale, bias, added, 1e-5, slope, pad, False)
    folded = dtype if residual and pad else None
    found = _normalise.backward(upstream, x, scale, bias, mean, rstd, folded, 1e-5, slope, pad, False)

    assert all(name.startswith("striped") or name == "_split_statistics" for name in launches)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    check(out, expected, dtype, "output")
    for name, gradient, reference in zip(("x", "scale", "bias", "residual"), found, exact, strict=True):
        if reference is not None and (name != "residual" or folded):
            assert gradient.dtype == dtype and gradient.shape == reference.shape
            check(gradient, reference.grad, dtype, name)


@pytest.mark.parametrize("tiling", [PLANE, SPLIT])
def test_equal_stripes_are_the_whole_plane(cut, tiling):
    """Values and gradients of x as with [N, C]; the gradients of the stripes add up to that of the plane."""
    cut(tiling)
    inputs = [t.requires_grad_() for t in (random(2, 16, 8, 6), random(2, 16, seed=1), random(2, 16, seed=2))]
    x, *rows = inputs
    stripes = [t.detach()[:, None].repeat(1, 3, 1).requires_grad_() for t in rows]
    expected = adain(x, *rows, slope=0.2, pad=1, impl="triton")
    found = adain(x, *stripes, slope=0.2, pad=1, impl="triton")
    upstream = random(*expected.shape, seed=4)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, (x, *stripes), upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one.sum(1) if one.ndim == 3 else one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "dtype", "tiling", "pad", "slope"),
    [
        ((2, 16, 8, 6), FP32, SPLIT, 0, 0.2),
        ((1, 17, 5, 3), FP32, SPLIT, 2, 1.0),  # two blocks of channels, the second with one channel
        ((2, 17, 9, 5), BF16, SPLIT, 1, 0.2),
        ((2, 20, 9, 11), FP16, Tiling(32, 32, 4, 64), 0, 0.2),
        ((1, 8, 67, 61), FP32, Tiling(512, 8, 4, 1024), 1, 0.2),
    ],
)
def test_layer_norm_against_fp64(cut, shape, dtype, tiling, pad, slope):
    cut(tiling)
    x = (random(*shape) * 0.1 + 5).to(dtype)
    gamma, beta = random(shape[1], seed=1), random(shape[1], seed=2)
    exact = [t.double().requires_grad_() for t in (x, gamma, beta)]
    expected = layer_norm_eager(*exact, 1e-5, slope, pad)
    upstream = random(*expected.shape, dtype=dtype, seed=4)
    expected.backward(upstream.double())
    out, mean, rstd = _normalise.forward(x, gamma, beta, None, 1e-5, slope, pad, True)
    found = _normalise.backward(upstream, x, gamma, beta, mean, rstd, None, 1e-5, slope, pad, True)
    check(out, expected, dtype, "output")
    for name, gradient, reference in zip(("x", "gamma", "beta"), found, exact, strict=False):
        check(gradient, reference.grad, dtype, name)


def test_a_constant_sample_has_a_gradient():
    x = torch.full((1, 4, 3, 3), 5.0).requires_grad_()
    out = layer_norm(x, torch.ones(4), torch.zeros(4), impl="triton")
    out.backward(random(*out.shape))
    assert out.abs().max() == 0 and x.grad.isfinite().all()


def test_border_is_the_reflection_of_the_inside():
    x = random(2, 16, 6, 5)
    bare = adain(x, slope=0.2, impl="triton")
    assert torch.equal(
        adain(x, slope=0.2, pad=3, impl="triton"), torch.nn.functional.pad(bare, (3,) * 4, mode="reflect")
    )


@pytest.mark.parametrize("stripes", [0, 3])
def test_views_are_read_in_place_and_other_layouts_converted(stripes):
    x, added = random(2, 16, 6, 5), random(2, 16, 6, 5, seed=1)
    upstream = random(2, 16, 8, 7, seed=2)
    # Rows whose channels are not adjacent are small enough to be copied unsaid.
    rows = random(2, 2, 16, stripes, seed=3).transpose(2, 3).unbind() if stripes else (None, None)

    def run(x, added, upstream):
        x, added = x.detach().requires_grad_(), added.detach().requires_grad_()
        before = Counter(fallbacks())
        out = adain(x, *rows, slope=0.2, residual=added, pad=1, impl="triton")
        out.backward(upstream)
        return (out, x.grad, added.grad), Counter(fallbacks()) - before

    expected, counted = run(x, added, upstream)
    assert not counted
    found, counted = run(inside(x), inside(added), inside(upstream))
    assert not counted and all(map(torch.equal, found, expected))
    found, counted = run(x.contiguous(), added.contiguous(), upstream.contiguous())
    assert all(map(torch.equal, found, expected))
    assert counted == {
        # Once in the forward and once in the backward pass: the converted copy is not kept.
        "adain: x converted to channels-last": 2,
        "adain: residual converted to channels-last": 1,
        "adain: gradient converted to channels-last": 1,
    }


def test_launches(launches, cut):
    """One launch each way where a program holds a plane, two where the reduction is split, none for the residual."""
    x = random(2, 16, 6, 5).requires_grad_()
    added = random(2, 16, 6, 5, seed=1).requires_grad_()
    scale, bias = random(2, 16, seed=2).requires_grad_(), random(2, 16, seed=3).requires_grad_()
    for tiling, forward, backward in (
        (PLANE, ["_plane_forward"], ["_plane_backward"]),
        (SPLIT, ["_split_statistics", "_split_forward"], ["_split_sums", "_split_backward"]),
    ):
        cut(tiling)
        out = adain(x, scale, bias, slope=0.2, residual=added, pad=1, impl="triton")
        assert launches == forward
        launches.clear()
        out.backward(out.detach())
        assert launches == backward
        launches.clear()
    scale, bias = random(2, 3, 16, seed=2).requires_grad_(), random(2, 3, 16, seed=3).requires_grad_()
    for tiling, forward, backward in (
        (PLANE, ["striped_plane_forward"], ["striped_plane_backward"]),
        (SPLIT, ["_split_statistics", "striped_split_forward"], ["striped_split_sums", "striped_split_backward"]),
    ):
        cut(tiling)
        out = adain(x, scale, bias, slope=0.2, residual=added, pad=1, impl="triton")
        assert launches == forward
        launches.clear()
        out.backward(out.detach())
        assert launches == backward
        launches.clear()
    out = layer_norm(x, scale[0, 0], bias[0, 0], slope=0.2, impl="triton")
    out.backward(out.detach())
    assert launches == ["_split_statistics", "_split_forward", "_split_sums", "_split_backward"]


@pytest.fixture
def take_kernels(monkeypatch):
    """A function that has the networks take the kernels from then on."""

    def take():
        for module in (layers, structure, decoder):
            monkeypatch.setattr(module, "adain", functools.partial(adain, impl="triton"))
        monkeypatch.setattr(decoder, "layer_norm", functools.partial(layer_norm, impl="triton"))
        # The last argument of `tilings` tells whether the statistics are those of a sample.
        monkeypatch.setattr(_normalise, "tilings", lambda *args: [LARGE_SPLIT if args[-1] else LARGE])

    return take


def test_launches_of_a_residual_block(launches, take_kernels):
    take_kernels()
    for block, inputs in (
        (decoder.InjectedBlock(16, 8, 4), (random(2, 16, 8, 7), random(2, 8, seed=1), 1)),
        (layers.InstanceNormBlock(16), (random(2, 16, 8, 7), 1)),
    ):
        launches.clear()
        block(*inputs).sum().backward()
        assert launches == ["_plane_forward"] * 2 + ["_plane_backward"] * 2


def test_the_networks_take_the_kernels(launches, take_kernels):
    """All that E_s and G do between convolutions is in these launches; the image is the eager one."""
    torch.manual_seed(0)
    encode = structure.StructureEncoder(width=4, blocks=1)
    decode = decoder.Decoder(channels=32, code=8, blocks=1, hidden=4)

    def image():
        with torch.no_grad():
            return decode(encode(random(1, 1, 48, 44)), random(1, 8, seed=1))

    expected = image()
    take_kernels()
    check(image(), expected.double(), FP32, "output")
    # Stem 4, its block 2, context 8, G's block 2; G's two layer norms are split.
    assert Counter(launches) == {"_plane_forward": 16, "_split_statistics": 2, "_split_forward": 2}


def test_only_wanted_gradients(launches):
    x, added = random(1, 8, 4, 4), random(1, 8, 4, 4, seed=1).requires_grad_()
    out = adain(x, residual=added, impl="triton")
    launches.clear()
    out.backward(2 * out.detach())
    assert not launches and torch.equal(added.grad, 2 * out.detach())


@pytest.mark.parametrize("per_sample", [True, False], ids=["layer norm", "stripes"])
def test_same_bits_twice(cut, per_sample):
    cut(SPLIT)
    x = random(2, 16, 10, 7)  # three chunks
    scale, bias = (random(*(() if per_sample else (2, 3)), 16, seed=seed) for seed in (1, 2))

    def run():
        out, mean, rstd = _normalise.forward(x, scale, bias, None, 1e-5, 0.2, 1, per_sample)
        return out, *_normalise.backward(out, x, scale, bias, mean, rstd, None, 1e-5, 0.2, 1, per_sample)

    assert all(map(torch.equal, run(), run()))


@pytest.mark.parametrize("case", ["injected", "stripes", "plain", "layer norm"])
def test_opcheck(case):
    torch.use_deterministic_algorithms(False)  # its own comparisons read the NaN of unused outputs
    x = random(2, 16, 6, 5).requires_grad_()
    if case in ("injected", "stripes"):
        shape = (2, 3, 16) if case == "stripes" else (2, 16)
        rows = random(*shape, seed=1).requires_grad_(), random(*shape, seed=2).requires_grad_()
        args = (x, *rows, inside(random(2, 16, 6, 5, seed=3)).requires_grad_(), 1e-5, 0.2, 1, False)
    elif case == "plain":
        args = (x, None, None, None, 1e-5, 1.0, 0, False)
    else:
        args = (x, random(16, seed=1).requires_grad_(), random(16, seed=2), None, 1e-5, 0.2, 1, True)
    torch.library.opcheck(torch.ops.dgfast.inject.default, args)


def test_compiles_into_one_graph():
    x, added = random(2, 16, 6, 5).requires_grad_(), random(2, 16, 6, 5, seed=1).requires_grad_()
    rows = random(2, 16, seed=2).requires_grad_(), random(2, 16, seed=3).requires_grad_()

    def block(x, added, *rows):
        y = adain(x * 2, *rows, slope=0.2, residual=added, pad=1, impl="triton")
        y = adain(y, *(torch.stack((one, 2 * one), 1) for one in rows), slope=0.2, impl="triton")
        return layer_norm(y, rows[0][0], rows[1][0], impl="triton")

    out = block(x, added, *rows)
    again = torch.compile(block, fullgraph=True, backend="aot_eager")(x, added, *rows)
    upstream = random(*out.shape, seed=4)
    expected = torch.autograd.grad(out, (x, added, *rows), upstream)
    found = torch.autograd.grad(again, (x, added, *rows), upstream)
    torch.testing.assert_close([again, *found], [out, *expected])
    assert again.is_contiguous(memory_format=torch.channels_last)


def test_autocast_keeps_formats():
    x = (random(2, 16, 6, 5) * 0.1 + 5).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        half = torch.nn.functional.conv2d(x, torch.eye(16).view(16, 16, 1, 1))
        rows = torch.nn.functional.linear(random(2, 4), random(32, 4, seed=1)).chunk(2, 1)
        out = adain(half, *rows, slope=0.2, impl="triton")
        eager = adain(half, *rows, slope=0.2, impl="eager")
    assert half.dtype == rows[0].dtype == out.dtype == BF16
    out.backward(random(*out.shape, dtype=BF16))
    assert x.grad.dtype == FP32 and x.grad.isfinite().all()
    check(out, eager.double(), BF16, "output")
