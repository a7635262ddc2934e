"""The convolution under D's gradient penalty: the values and gradients of the plain one, for filters of a filter's
size."""

import pytest
import torch
from torch import nn

from dgfast.config import LossConfig
from dgfast.models import Discriminator
from dgfast.models.layers import kaiming_fan_in
from dgfast.models.penalised_convolution import penalised_convolution
from dgfast.training import losses
from dgfast.training.step import weights_at
from tests.counting import Filters

CASES = [(1, 1), (3, 1), (3, 2)]  # filter, stride: those of D


def made(size, stride, dtype, layout):
    g = torch.Generator().manual_seed(size + stride)
    conv = nn.Conv2d(5, 7, size, stride).to(dtype)
    for p in conv.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64).to(dtype)
    conv = conv.to(memory_format=layout)
    x = torch.randn(3, 5, 11, 9, generator=g, dtype=torch.float64).to(dtype).contiguous(memory_format=layout)
    return conv, x.requires_grad_()


def penalty(convolve, conv, x):
    """Output, penalty, and all gradients of their sum, as D's update forms it."""
    y = convolve(conv, x).sin()
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    loss = dx.float().square().sum() + y.float().square().sum()
    return y, dx, *torch.autograd.grad(loss, [x, *conv.parameters()])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("size", "stride"), CASES)
def test_the_same_in_double_precision(size, stride, layout):
    things = made(size, stride, torch.float64, layout)
    results = (penalty(convolve, *things) for convolve in (penalised_convolution, nn.Conv2d.__call__))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("size", "stride"), CASES)
def test_derivatives_agree_with_differences(size, stride):
    conv, x = made(size, stride, torch.float64, torch.contiguous_format)
    x = x.detach()[:1, :, :5, :5].requires_grad_()

    def of(x, weight, bias):
        return torch.func.functional_call(_Applied(conv), {"conv.weight": weight, "conv.bias": bias}, x)

    things = x, conv.weight, conv.bias
    assert torch.autograd.gradcheck(of, things)
    assert torch.autograd.gradgradcheck(of, things)


class _Applied(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return penalised_convolution(self.conv, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "stride"), CASES)
def test_autocast_computes_in_its_format_and_returns_the_weights_own(size, stride, dtype):
    conv, x = made(size, stride, torch.float32, torch.channels_last)
    exact = penalty(nn.Conv2d.__call__, conv, x)
    with torch.autocast("cpu", dtype):
        assert penalised_convolution(conv, x).dtype == dtype
        found = penalty(penalised_convolution, conv, x)
        rounded = penalty(nn.Conv2d.__call__, conv, x)
    for a, b, c in zip(found, rounded, exact, strict=True):
        assert a.dtype == b.dtype
        error, usual = ((t.float() - c).norm() / c.norm() for t in (a, b))
        assert error <= 1.5 * usual + 1e-3
    assert [p.dtype for p in conv.parameters()] == [torch.float32] * 2


def test_no_weight_gradient_where_the_image_gradient_is_asked_for():
    conv, x = made(3, 1, torch.float32, torch.channels_last)
    y = penalised_convolution(conv, x)
    with Filters() as seen:
        torch.autograd.grad(y.sum(), x, create_graph=True)
    assert len(seen.sizes) == 1
    assert seen.weight_gradients == 0


def test_a_compiler_takes_the_plain_convolution_without_a_break():
    torch.compiler.reset()
    torch.manual_seed(0)
    d = Discriminator(4, 1, 2)
    x = torch.randn(2, 3, 32, 16, requires_grad=True)
    compiled = torch.compile(lambda x: d(x, penalised=True), backend="eager", fullgraph=True)
    for found, expected in zip(compiled(x), d(x), strict=True):
        torch.testing.assert_close(found, expected)


def update(d, images, penalised):
    """D's losses at real images with the penalty, and its gradients."""
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    maps = d(images, penalised=penalised)
    r1 = losses.gradient_penalty(maps, images)
    total = losses.real(maps) + weights_at(LossConfig(), 0).r1 * r1
    return total.detach(), torch.autograd.grad(total, list(d.parameters()))


def test_the_gradients_of_the_whole_discriminator_are_the_same():
    torch.manual_seed(0)
    d = Discriminator(8, 2, 3)
    kaiming_fan_in(d)
    d = d.to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 64, 32).to(memory_format=torch.channels_last)
    (found, gradients), (expected, right) = (update(d, images, way) for way in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for (name, _), a, b in zip(d.named_parameters(), gradients, right, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm().clamp_min(1e-6), name


def test_the_plain_way_would_need_filters_as_large_as_feature_maps():
    """That `Filters` sees what it is for."""
    d = Discriminator(4, 1, 1).to("meta")
    with Filters() as plain:
        update(d, torch.empty(8, 3, 64, 32, device="meta"), penalised=False)
    with Filters() as ours:
        update(d, torch.empty(8, 3, 64, 32, device="meta"), penalised=True)
    assert max(plain.sizes) == (64, 32)
    assert max(max(size) for size in ours.sizes) == 3
