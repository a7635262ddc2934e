"""The normalisations: which way they take, what they refuse, and their kernels in Triton's interpreter."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dgfast.kernels import adain, fallbacks, layer_norm
from dgfast.kernels._dispatch import FLOATS, obstacle
from dgfast.kernels._normalise import unsuitable
from dgfast.kernels._tuning import tilings


@pytest.mark.slow
def test_kernels_in_the_interpreter():
    """In a process of its own: the interpreter must be chosen before Triton is imported, and bars compiling."""
    here = Path(__file__).parent
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", here / "interpreted" / "adain_cases.py"],
        cwd=here.parent,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0 and " passed" in found.stdout, found.stdout[-6000:] + found.stderr[-2000:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("injected", [True, False])
def test_the_reference_of_adain(dtype, pad, injected):
    x = (torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0)) * 0.1 + 5).to(dtype)
    scale, bias = (torch.randn(2, 3), torch.randn(2, 3)) if injected else (None, None)
    residual = torch.randn(2, 3, 7, 5).to(dtype)
    y = x.double()
    y = (y - y.mean((2, 3), keepdim=True)) / (y.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    if injected:
        y = y * scale.double()[..., None, None] + bias.double()[..., None, None]
    y = F.leaky_relu(y, 0.2) + residual.double()
    y = F.pad(y, (pad,) * 4, mode="reflect") if pad else y
    found = adain(x, scale, bias, slope=0.2, residual=residual, pad=pad)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(),
        y,
        rtol=2e-2 if dtype == torch.bfloat16 else 1e-4,
        atol=1e-2 if dtype == torch.bfloat16 else 1e-4,
    )


def rows_of(stripes, height):
    """[N, S, C] -> [N, C, height, 1] by the formula, row by row: the oracle of the interpolation."""
    n, s, c = stripes.shape
    rows = []
    for h in range(height):
        place = min(max((h + 0.5) * s / height - 0.5, 0.0), s - 1.0)  # in stripes; 0 is the centre of the first
        above = int(place)
        below = min(above + 1, s - 1)
        rows.append(stripes[:, above] * (above + 1 - place) + stripes[:, below] * (place - above))
    return torch.stack(rows, 2).unsqueeze(3)


@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "height", "stripes"), [(2, 7, 3), (2, 5, 8), (1, 16, 8), (1, 13, 64), (2, 9, 1)])
def test_the_reference_of_adain_in_stripes(n, height, stripes, dtype, channels_last, pad):
    """Output and gradients against the formula in fp64; heights odd, below S, and no multiple of S."""
    generator = torch.Generator().manual_seed(0)
    shapes = (n, 3, height, 5), (n, stripes, 3), (n, stripes, 3), (n, 3, height, 5)
    x, scale, bias, residual = (torch.randn(shape, generator=generator) for shape in shapes)
    inputs = [t.to(dtype) for t in (x * 0.1 + 5, scale, bias, residual)]
    if channels_last:
        inputs[0] = inputs[0].to(memory_format=torch.channels_last)
        inputs[3] = inputs[3].to(memory_format=torch.channels_last)
    inputs = [t.requires_grad_() for t in inputs]
    x, scale, bias, residual = exact = [t.detach().double().requires_grad_() for t in inputs]
    y = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    y = F.leaky_relu(y * rows_of(scale, height) + rows_of(bias, height), 0.2) + residual
    y = F.pad(y, (pad,) * 4, mode="reflect") if pad else y

    found = adain(*inputs[:3], slope=0.2, residual=inputs[3], pad=pad)
    assert found.dtype == dtype and found.shape == y.shape
    upstream = torch.randn(y.shape, generator=generator).to(dtype)
    gradients = torch.autograd.grad(found, inputs, upstream)
    expected = torch.autograd.grad(y, exact, upstream.double())
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for one, other, given in zip((found, *gradients), (y, *expected), (found, *inputs), strict=True):
        assert one.dtype == given.dtype and one.shape == other.shape
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize(("height", "stripes"), [(64, 8), (17, 3), (3, 8), (1, 2), (200, 64)])
def test_stripes_are_interpolated_as_torch_does(height, stripes):
    """Of the pixels +1 and -1 instance norm makes the same again, so that the result shows the rows of both."""
    scale, bias = torch.randn(2, 2, stripes, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(2, 4, height, 2)
    out = adain(x, scale, bias, eps=1e-30)
    rows = [F.interpolate(t.transpose(1, 2), size=height, mode="linear", align_corners=False) for t in (scale, bias)]
    torch.testing.assert_close((out[..., 0] - out[..., 1]) / 2, rows[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((out[..., 0] + out[..., 1]) / 2, rows[1], rtol=1e-12, atol=1e-12)


def test_one_stripe_is_the_whole_plane():
    x, rows = torch.randn(2, 3, 7, 5), torch.randn(2, 2, 1, 3)
    assert torch.equal(adain(x, *rows, slope=0.2, pad=1), adain(x, *rows[:, :, 0], slope=0.2, pad=1))


def test_the_reference_of_layer_norm():
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) + 5
    gamma, beta = torch.rand(3), torch.rand(3)
    y = x.double()
    std, mean = y.flatten(1).std(1), y.flatten(1).mean(1)
    y = (y - mean.view(-1, 1, 1, 1)) / (std.view(-1, 1, 1, 1) + 1e-5) * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)
    torch.testing.assert_close(layer_norm(x, gamma, beta).double(), y, rtol=1e-5, atol=1e-5)


def test_layer_norm_of_one_colour_has_finite_gradients():
    x = torch.full((2, 3, 4, 4), 0.7, requires_grad=True)
    layer_norm(x, torch.rand(3), torch.rand(3), slope=0.2).square().sum().backward()
    assert torch.isfinite(x.grad).all()


def reasons(run):
    before = Counter(fallbacks())
    run()
    return Counter(fallbacks()) - before


def test_the_cpu_takes_the_eager_path_and_says_so():
    x = torch.randn(2, 3, 4, 5)
    assert reasons(lambda: adain(x)) == {"adain: tensor on the cpu": 1}
    assert reasons(lambda: layer_norm(x, torch.ones(3), torch.zeros(3))) == {"layer_norm: tensor on the cpu": 1}
    assert reasons(lambda: adain(x, impl="eager")) == {}  # asked for: no fallback


@pytest.mark.parametrize(
    ("shape", "pad", "reason"),
    [
        ((2, 3, 4, 5), 3, None),
        ((2, 3, 4, 5), 4, "border wider than the image"),
        ((0, 3, 4, 5), 0, "no values"),
        ((2, 1, 1, 1), 0, "one value a sample"),
        ((2, 3, 4), 0, "3 dimensions"),
        ((1, 2**11, 2**10, 2**10), 0, "samples of 2^31 values"),
        ((1, 2**11, 2**10, 2**9), 0, None),
        ((1, 2**11, 2**10, 2**10 - 6), 3, "samples of 2^31 values"),  # with the border
    ],
)
def test_shapes_that_the_kernels_do_not_take(shape, pad, reason):
    assert unsuitable(torch.empty(shape, device="meta"), pad) == reason


def test_devices_and_dtypes_that_no_kernel_takes():
    x, elsewhere, double = torch.empty(2), torch.empty(2, device="meta"), torch.empty(2, dtype=torch.float64)
    assert obstacle([x], any_device=False) == "tensor on the cpu"
    assert obstacle([elsewhere], any_device=False) == "tensor on the meta"
    assert obstacle([x, elsewhere], any_device=True) == "tensors on several devices"
    assert obstacle([x, double], any_device=True) == "dtype torch.float64"
    assert obstacle([x.to(dtype) for dtype in FLOATS], any_device=True) is None


def test_wrong_arguments():
    x = torch.randn(2, 3, 4, 5)
    for one in ({"scale": torch.ones(2, 3)}, {"bias": torch.ones(2, 3)}):
        with pytest.raises(ValueError, match="together"):
            adain(x, **one)
    with pytest.raises(ValueError, match=r"scale has shape \(3,\), expected \[N, C\] = \(2, 3\)"):
        adain(x, torch.ones(3), torch.ones(2, 3))
    with pytest.raises(
        ValueError, match=r"bias has shape \(2, 2, 4\), expected \[N, C\] = \(2, 3\) or \[N, stripes, C\]"
    ):
        adain(x, torch.ones(2, 2, 3), torch.ones(2, 2, 4))
    with pytest.raises(ValueError, match=r"bias has shape \(2, 2, 3\), expected the shape of scale, \(2, 3\)"):
        adain(x, torch.ones(2, 3), torch.ones(2, 2, 3))
    for stripes in (0, 65):
        with pytest.raises(ValueError, match=f"{stripes} stripes, expected 1 to 64"):
            adain(x, torch.ones(2, stripes, 3), torch.ones(2, stripes, 3))
    with pytest.raises(ValueError, match="residual has shape"):
        adain(x, residual=torch.ones(2, 3, 4, 1))
    with pytest.raises(ValueError, match="gamma has shape"):
        layer_norm(x, torch.ones(4), torch.ones(3))
    with pytest.raises(ValueError, match="'auto', 'triton' or 'eager'"):
        adain(x, impl="cuda")
    with pytest.raises(ValueError, match="tensor on the cpu"):
        adain(x, impl="triton")


def test_the_eager_path_differentiates():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    scale, bias = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    added = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)

    def run(x, scale, bias, added):
        return adain(x, scale, bias, slope=0.2, residual=added, pad=2)

    assert torch.autograd.gradcheck(run, (x, scale, bias, added))
    stripes = (torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(run, (x, *stripes, added))
    assert torch.autograd.gradcheck(lambda *args: layer_norm(*args, slope=0.2, pad=1), (x, scale[0], bias[0]))


def test_the_eager_path_compiles_into_one_graph():
    x = torch.randn(2, 3, 4, 5)
    found = torch.compile(lambda x: adain(x, slope=0.2, pad=1), fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(found, adain(x, slope=0.2, pad=1))
    rows = torch.randn(2, 2, 3, 3)
    found = torch.compile(lambda x: adain(x, *rows, slope=0.2, pad=1), fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(found, adain(x, *rows, slope=0.2, pad=1))


def test_fake_tensors_keep_channels_last():
    """What torch.compile believes of the operator on a GPU, without one."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(2, 16, 6, 5, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        out = adain(x, slope=0.2, pad=1)
        assert (
            out.shape == (2, 16, 8, 7) and out.dtype == x.dtype and out.is_contiguous(memory_format=torch.channels_last)
        )
        rows = torch.empty(2, 16, device="cuda")
        # Not through autograd, whose engine asks for the device.
        dx, dscale, _, dresidual = torch.ops.dgfast.inject_backward(
            out, x, rows, rows, rows, rows, torch.float32, 1e-5, 0.2, 1, False
        )
        assert dx.shape == x.shape and dx.dtype == x.dtype and dx.is_contiguous(memory_format=torch.channels_last)
        assert dscale.shape == (2, 16) and dresidual.shape == x.shape and dresidual.dtype == torch.float32
        stripes = torch.empty(2, 16, 3, device="cuda").transpose(1, 2)
        assert adain(x, stripes, stripes, slope=0.2, pad=1).is_contiguous(memory_format=torch.channels_last)
        _, dscale, dbias, _ = torch.ops.dgfast.inject_backward(
            out, x, stripes, stripes, rows, rows, None, 1e-5, 0.2, 1, False
        )
        assert dscale.shape == dbias.shape == (2, 3, 16) and dscale.is_contiguous() and dbias.is_contiguous()


def test_images_too_high_for_stripes_take_the_eager_path():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        stripes = torch.empty(1, 3, 2, device="cuda")
        for height, expected in ((2**23 - 1, {}), (2**23, {"adain: stripes of an image of 2^23 rows": 1})):
            x = torch.empty(1, 2, height, 4, device="cuda").to(memory_format=torch.channels_last)
            assert reasons(lambda x=x: adain(x, stripes, stripes)) == expected


@pytest.mark.parametrize(("height", "width"), [(64, 32), (1, 5), (300, 7), (7, 3000)])
def test_tilings_in_rows(height, width):
    """A program owns a power of two of rows, no more than its tile has pixels; alone in a plane, it owns all rows."""
    for t in tilings(2, 48, 128, height * width, False):
        rows = t.rows(height, width)
        assert rows & (rows - 1) == 0 and 1 <= rows <= t.pixels
        if t.chunk:
            assert t.serves_rows(height) and rows * width <= max(t.chunk, width)
        else:
            assert t.serves_rows(height) == (rows >= height)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(
    ("samples", "channels", "pixels"), [(8, 128, 2048), (384, 128, 2048), (48, 32, 8192), (1, 3, 1), (1, 1, 10**7)]
)
def test_tilings(itemsize, samples, channels, pixels, per_sample):
    """A short list of powers of two, at most 64 chunks and a bit to merge, and no plane too long for one program."""
    found = tilings(itemsize, samples, channels, pixels, per_sample)
    assert 1 <= len(found) <= 5 and len(set(found)) == len(found)
    for t in found:
        assert t.pixels & (t.pixels - 1) == 0 and t.channels & (t.channels - 1) == 0
        assert t.chunk or (not per_sample and pixels * 32 <= 512 * 1024)
        if t.chunk:
            assert t.chunk % t.pixels == 0 and -(-pixels // t.chunk) <= 64
