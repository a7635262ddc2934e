"""How fast the decoder's 5x5 convolutions behind an upsampling are: plain, and on the small image; both directions.

What counts is the ratio of the two: 25 taps against 9, at best 2.8. Nothing is timed before its result agrees with the
plain form in fp64.
"""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from dgfast.models.upsampled_convolution import fold_matrix, upsampled_convolution

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
SHAPES = [(8, 128, 64, 32), (8, 64, 128, 64), *([(48, 128, 64, 32), (48, 64, 128, 64)] if ON_GPU else [])]
TOLERANCE = {torch.float32: 1e-2 if ON_GPU else 1e-5, torch.bfloat16: 2e-2}  # of the largest value; a GPU may use TF32


def plain(x, weight, bias, fold):
    return F.conv2d(F.pad(F.interpolate(x, scale_factor=2), (2, 2, 2, 2), mode="reflect"), weight, bias)


@pytest.mark.parametrize("convolution", [plain, upsampled_convolution], ids=["plain", "small"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_upsampled_convolution(benchmark, shape, dtype, convolution):
    generator = torch.Generator(DEVICE).manual_seed(0)

    def random(*size):
        return torch.randn(size, device=DEVICE, generator=generator)

    x = random(*shape).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    weight = random(shape[1] // 2, shape[1], 5, 5).requires_grad_()
    bias, fold = random(shape[1] // 2).requires_grad_(), fold_matrix().to(DEVICE)
    n, outputs = shape[0], shape[1] // 2
    upstream = random(n, outputs, 2 * shape[2], 2 * shape[3]).to(dtype).to(memory_format=torch.channels_last)

    def step(inputs=(x, weight, bias)):
        mixed = torch.autocast(DEVICE.type, dtype=dtype) if dtype != torch.float32 else contextlib.nullcontext()
        with mixed:
            out = convolution(*inputs, fold)
        gradients = torch.autograd.grad(out, inputs, upstream[: len(out)])
        if ON_GPU:
            torch.cuda.synchronize()
        return out, gradients

    few = (x[:1].detach().requires_grad_(), weight, bias)
    exact = [t.detach().double().requires_grad_() for t in few]
    expected = plain(*exact, fold)
    found, gradients = step(few)
    wanted = torch.autograd.grad(expected, exact, upstream[:1].double())
    for a, b in zip((found, *gradients), (expected, *wanted), strict=True):
        assert (a.double() - b).abs().max() < TOLERANCE[dtype] * b.abs().max()
    benchmark.pedantic(step, rounds=20 if ON_GPU else 3, warmup_rounds=3 if ON_GPU else 1)
