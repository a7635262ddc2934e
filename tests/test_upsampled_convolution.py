"""The convolution on the small image against the plain one on the enlarged image: values, gradients, work, layout."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dgfast.models.upsampled_convolution import UpsampledConvolution, fold_matrix, upsampled_convolution


def plain(x, weight, bias):
    return F.conv2d(F.pad(F.interpolate(x, scale_factor=2), (2, 2, 2, 2), mode="reflect"), weight, bias)


def tensors(n, channels, outputs, height, width, dtype=torch.float64, form=torch.contiguous_format):
    g = torch.Generator().manual_seed(height * 100 + width)
    shapes = (n, channels, height, width), (outputs, channels, 5, 5), (outputs,)
    x, weight, bias = (torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes)
    return x.to(memory_format=form).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "outputs"), [(1, 1), (2, 3), (5, 2)])
@pytest.mark.parametrize("height", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("width", [2, 3, 5, 6])
def test_equals_the_plain_form(height, width, channels, outputs, form):
    inputs = tensors(2, channels, outputs, height, width, form=form)
    expected, found = plain(*inputs), upsampled_convolution(*inputs, fold_matrix())
    upstream = torch.randn_like(expected)
    gradients = (torch.autograd.grad(out, inputs, upstream) for out in (expected, found))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-10)
    assert found.is_contiguous(memory_format=form)


def test_input_that_is_no_dense_tensor_and_has_other_readers():
    """The inside of a bordered tensor; its gradient must hold what the other reader sends, before and after."""
    inputs = tensors(2, 3, 2, 8, 7, form=torch.channels_last)

    def both(convolution):
        x = inputs[0][..., 1:-1, 1:-1]
        out = x.square().sum() + convolution(x, *inputs[1:]).sin().sum() + x.exp().sum()
        return torch.autograd.grad(out, inputs)

    for mine, theirs in zip(both(lambda *a: upsampled_convolution(*a, fold_matrix())), both(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("height", "width"), [(2, 3), (4, 3)])
def test_second_derivatives(height, width):
    inputs = tensors(1, 2, 1, height, width)
    assert torch.autograd.gradgradcheck(lambda *a: upsampled_convolution(*a, fold_matrix()), inputs)


def test_gradients_of_some_inputs_alone():
    """Frozen weights, as of a frozen network; an input that takes no gradient."""
    x, weight, bias = tensors(1, 2, 2, 5, 4)
    (wanted,) = torch.autograd.grad(plain(x, weight, bias).sin().sum(), x)
    out = upsampled_convolution(x, weight.detach(), bias.detach(), fold_matrix()).sin().sum()
    torch.testing.assert_close(torch.autograd.grad(out, x)[0], wanted, rtol=1e-10, atol=1e-10)
    (wanted,) = torch.autograd.grad(plain(x, weight, bias).sin().sum(), weight)
    out = upsampled_convolution(x.detach(), weight, bias, fold_matrix()).sin().sum()
    torch.testing.assert_close(torch.autograd.grad(out, weight)[0], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_precision(dtype, tolerance, offset):
    """Error relative to the largest value; not worse for inputs far from 0."""
    inputs = tensors(2, 8, 4, 12, 9, dtype, torch.channels_last)
    inputs[0].data.add_(offset)
    found = upsampled_convolution(*inputs, fold_matrix())
    expected = plain(*(t.double() for t in inputs))
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < tolerance * expected.abs().max()


def test_autocast_rounds_sums_of_taps_once():
    x, weight, bias = tensors(2, 8, 4, 12, 9, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = upsampled_convolution(x, weight, bias, fold_matrix())
    assert found.dtype == torch.bfloat16
    expected = plain(x.double(), weight.double(), bias.double())
    assert (found.double() - expected).abs().max() < 1e-2 * expected.abs().max()
    found.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32


def test_module_is_a_plain_convolution_to_its_checkpoint():
    torch.manual_seed(0)
    layer, original = UpsampledConvolution(3, 2), torch.nn.Conv2d(3, 2, 5)
    assert set(layer.state_dict()) == {"weight", "bias"}
    layer.load_state_dict(original.state_dict())
    x = torch.randn(1, 3, 6, 5)
    torch.testing.assert_close(layer(x), plain(x, original.weight, original.bias), rtol=1e-5, atol=1e-5)


def test_compiles_without_a_graph_break():
    torch.manual_seed(0)
    layer = UpsampledConvolution(4, 3).double()
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    inputs = (x, *layer.parameters())
    expected = torch.autograd.grad(layer(x).square().sum(), inputs)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(torch.autograd.grad(compiled(x).square().sum(), inputs), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("n", "channels", "outputs", "height", "width"), [(2, 4, 3, 9, 6), (1, 1, 2, 2, 5)])
def test_work(n, channels, outputs, height, width):
    """(3H - 2)(3W - 2) taps a phase instead of 25 HW, and the kernels' making, which no image sees."""
    x, weight, bias = tensors(n, channels, outputs, height, width)
    convolution = n * 4 * (3 * height - 2) * (3 * width - 2) * 2 * channels * outputs
    with FlopCounterMode(display=False) as counter:
        out = upsampled_convolution(x, weight.detach(), bias.detach(), fold_matrix())
    assert counter.get_total_flops() == convolution + 2 * 196 * 25 * channels * outputs
    with FlopCounterMode(display=False) as counter:  # of the weight's gradient it counts a grouped convolution too high
        out.sum().backward()
    assert counter.get_total_flops() == convolution


class Calls(TorchDispatchMode):
    """ATen calls, and the strides of what they return where it is as large as `large`."""

    def __init__(self, large: int):
        super().__init__()
        self.number, self.large, self.strides = 0, large, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func.namespace == "aten"
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor) and value.ndim == 4 and value.numel() >= self.large:
                self.strides.append((str(func), value.stride(1)))
        return result


def channels_last_calls(device: str, backward: bool) -> Calls:
    with torch.device(device):
        layer = UpsampledConvolution(16, 8).requires_grad_(backward)
        x = torch.empty(2, 16, 32, 24).to(memory_format=torch.channels_last).requires_grad_(backward)
    with Calls(large=2 * 16 * 28 * 20) as calls:
        out = layer(x)
        if backward:
            torch.autograd.grad(out, (x, *layer.parameters()), torch.empty_like(out))
    assert len(calls.strides) >= 3
    assert all(stride == 1 for _, stride in calls.strides), calls.strides
    assert out.is_contiguous(memory_format=torch.channels_last)
    return calls


def test_every_large_tensor_is_channels_last_on_a_gpu():
    with FakeTensorMode():  # shapes and strides of the GPU's operators, without a GPU; autograd's engine would need one
        channels_last_calls("cuda", backward=False)


def test_every_large_tensor_is_channels_last_both_ways_and_launches_are_few():
    assert channels_last_calls("cpu", backward=False).number <= 60
    assert channels_last_calls("cpu", backward=True).number <= 160


def test_images_too_small_to_reflect():
    with pytest.raises(ValueError, match="1 x 4 pixels, expected at least 2 x 2"):
        upsampled_convolution(*tensors(1, 1, 1, 1, 4), fold_matrix())
