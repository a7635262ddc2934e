"""Channels-last from the image to the structure code and on to the image: no activation of E_s and G leaves it.

Fake tensors on a CUDA device show the layout that torch's CUDA operators answer with, without a GPU.
"""

import pytest
import torch
from dgfast.kernels import reflect
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dgfast.models import DGNet
from dgfast.models.layers import inside
from tests.tiny import MODEL


class Formats(TorchDispatchMode):
    """Notes operators that write an activation [N, C, H, W] whose channels are not innermost.

    Convolutions that read one are noted, too. Views are not, since they write nothing, nor are images of one channel,
    which have both formats at once.

    Args:
        samples: N of the activations.
    """

    VIEWS = (torch.ops.aten.permute.default, torch.ops.aten.squeeze.dim)

    def __init__(self, samples: int):
        super().__init__()
        self.samples = samples
        self.seen = 0
        self.broken: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [] if func in self.VIEWS else list(out) if isinstance(out, (tuple, list)) else [out]
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
            tensors += args[:2]
        for t in tensors:
            # An activation's batch is the tests' odd number of samples, which no weight has as its first size.
            if isinstance(t, Tensor) and t.ndim == 4 and t.shape[0] == self.samples and t.shape[1] > 1:
                self.seen += 1
                if t.stride(1) != 1:
                    self.broken.append(f"{func} {tuple(t.shape)} {t.stride()}")
        return out


def channels_last(model: torch.nn.Module) -> None:
    """As `model.to(memory_format=...)`, which cannot swap fake parameters."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight = torch.nn.Parameter(layer.weight.detach().to(memory_format=torch.channels_last))


@pytest.mark.parametrize("given", [torch.channels_last, torch.contiguous_format])
def test_every_activation_is_channels_last(given):
    with FakeTensorMode(), torch.device("cuda"):
        model = DGNet(type(MODEL)(backbone=MODEL.backbone), 7)
        channels_last(model)
        images = torch.empty(7, 3, 256, 128).to(memory_format=given)
        code = torch.empty(7, model.appearance.code_length)
        with Formats(samples=7) as formats:
            image = model.decoder(model.structure(images.mean(1, keepdim=True)), code)
    assert formats.seen > 80 and image.stride(1) == 1
    assert not formats.broken, "\n".join(formats.broken)


def test_every_gradient_is_channels_last(monkeypatch):
    """Fake tensors of the CPU claim to be a GPU's: they take its way, and autograd's engine runs."""
    with FakeTensorMode():
        model = DGNet(type(MODEL)(backbone=MODEL.backbone), 7)
        channels_last(model)
        images = torch.empty(7, 3, 256, 128).to(memory_format=torch.channels_last)
        code = torch.empty(7, model.appearance.code_length, requires_grad=True)
        monkeypatch.setattr(FakeTensor, "is_cuda", True)
        image = model.decoder(model.structure(images.mean(1, keepdim=True)), code)
        with Formats(samples=7) as formats:
            image.backward(torch.empty_like(image))
    assert formats.seen > 100 and code.grad is not None
    assert not formats.broken, "\n".join(formats.broken)


class Claims(Tensor):
    """A tensor of this machine that claims to be a GPU's and takes its way."""

    is_cuda = True


@pytest.mark.parametrize("there", [False, True], ids=["cpu", "gpu's way"])
@pytest.mark.parametrize("pad", [1, 3])
@pytest.mark.parametrize("given", [torch.channels_last, torch.contiguous_format])
def test_reflection_keeps_the_format_and_is_exact(monkeypatch, there, pad, given):
    x = torch.randn(3, 4, 7, 5, dtype=torch.float64).to(memory_format=given).requires_grad_()
    y = x.detach().clone().requires_grad_()
    upstream = torch.randn(3, 4, 7 + 2 * pad, 5 + 2 * pad, dtype=torch.float64).to(memory_format=given)
    expected = torch.nn.functional.pad(y, (pad,) * 4, mode="reflect")
    if there:
        x = x.detach().as_subclass(Claims).requires_grad_()
        upstream = upstream.as_subclass(Claims)
    found = reflect(x, pad)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last if there else given)
    (grad,) = torch.autograd.grad(found, x, upstream, create_graph=True)
    (right,) = torch.autograd.grad(expected, y, upstream.as_subclass(Tensor), create_graph=True)
    torch.testing.assert_close(grad.as_subclass(Tensor), right)
    assert grad.is_contiguous(memory_format=torch.channels_last if there else given)


def test_reflection_is_differentiable_twice_and_keeps_nothing():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x: reflect(x, 2) ** 2, x)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        reflect(x, 1)
    assert not kept


def test_inside_is_the_inverse_of_a_border():
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(inside(x), x[..., 1:-1, 1:-1])
    upstream = torch.full((2, 3, 4, 3), 3.0, dtype=x.dtype).to(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(inside(x), x, upstream)
    assert grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(grad, torch.nn.functional.pad(upstream, (1,) * 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_border_keeps_autocasts_number_format(dtype):
    """A CPU's autocast pads in fp32, and the next convolution would convert it back."""
    x = torch.randn(2, 3, 6, 5).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = reflect(x, 1)
    assert y.dtype == dtype
    (grad,) = torch.autograd.grad(y.float().sum(), x)
    assert grad.dtype == dtype
