"""What the eager references of `adain` and `layer_norm` share: the normalisation, its derivative, and what follows it.

The reference works in whatever memory format x has, by sums over pixels, which torch computes at the memory's speed in
channels-last, too. torch's own instance norm, which is its batch norm of one sample, answers in contiguous format: then
each convolution behind it converts what it reads, once forwards and twice backwards, and of the two formats that meet
in a backward pass every element-wise operation becomes slow.

Tests: tests/test_adain.py, against the formulas in fp64, in both formats.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .border import reflect


def normalised(x: Tensor, scale: Tensor | None, bias: Tensor | None, eps: float, per_sample: bool) -> Tensor:
    """Normalise and apply scale and bias.

    Args:
        x: [N, C, H, W], of any float format.
        scale: [N, C]; [C] where the statistics are per sample; None: neither scale nor bias.
        bias: as scale.
        eps: added to the variance, or to the deviation where the statistics are those of a sample.
        per_sample: statistics of a sample, with the unbiased deviation, instead of statistics of a plane.

    Returns:
        [N, C, H, W] in x's memory format and in the precision of the statistics: fp64 stays, all else becomes fp32.
    """
    if torch.compiler.is_compiling():  # the compiler itself fuses the passes, and decides what to keep
        return _formula(x, scale, bias, eps, per_sample)[0]
    return _Normalised.apply(x, scale, bias, eps, per_sample)


def _formula(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, eps: float, per_sample: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The result; mean and rstd, [N, C, 1, 1] or [N, 1, 1, 1]; the factor of x, [N, C, 1, 1] or as rstd; of samples
    the deviation, as rstd."""
    # Formats mix below without a cast of their own: torch computes in the wider one.
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    mean = x.mean((2, 3), keepdim=True, dtype=dtype)
    if per_sample:
        mean = mean.mean(1, keepdim=True)
    if torch.compiler.is_compiling():
        squares = (x - mean).square()
    else:  # the same in one pass; torch's own variance takes ten times as long over pixels in channels-last
        squares = torch.ops.aten.mse_loss.default(x, mean, 0)
    var = squares.mean((2, 3), keepdim=True)
    std = None
    if per_sample:
        count = x[0].numel()
        var = var.mean(1, keepdim=True) * (count / (count - 1))
        # The root's slope at 0 is infinite. Below the clamp it is 0: a constant sample, as of an image of one colour,
        # takes no gradient through its deviation.
        std = var.clamp_min(torch.finfo(dtype).tiny).sqrt()
        rstd = (std + eps).reciprocal()
    else:
        rstd = (var + eps).rsqrt()
    if scale is None or bias is None:
        return (x - mean).mul_(rstd), mean, rstd, rstd, std
    factor = rstd * _over_pixels(scale)
    shift = torch.addcmul(_over_pixels(bias), mean, factor, value=-1)
    return torch.addcmul(shift, x, factor), mean, rstd, factor, std


def _over_pixels(rows: Tensor) -> Tensor:
    """[N, C] to [N, C, 1, 1], or [C] to [1, C, 1, 1]."""
    return rows.reshape(-1, rows.shape[-1], 1, 1)


class _Normalised(Function):
    """`_formula` with a derivative that takes few passes over the image and keeps x alone of its size.

    With d the gradient of the normalised values, and means over the m values that share statistics:

        dx = rstd * (d - mean(d) - (x - mean) * mean(d * (x - mean)) * slope)

    where slope is rstd^2, or m / (m - 1) * rstd / std for the unbiased deviation with eps outside the root.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, bias: Tensor | None, eps: float, per_sample: bool) -> Tensor:
        out, *statistics = _formula(x, scale, bias, eps, per_sample)
        ctx.save_for_backward(x, scale, bias, *statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, bias, mean, rstd, factor, std = ctx.saved_tensors
        away = x - mean
        # Of each plane; where they are those of a sample, the scale comes in with each channel.
        mean_dy = dy.mean((2, 3), keepdim=True)
        mean_dya = (away * dy).mean((2, 3), keepdim=True)
        normalised_dya = mean_dya * rstd
        if std is None:
            bent = torch.addcmul(mean_dy, away, normalised_dya * rstd, out=away)
            dx = torch.sub(dy, bent, out=bent).mul_(factor)
        else:
            m = x[0].numel()
            mean_d, bend = ((t * _over_pixels(scale)).mean(1, keepdim=True) for t in (mean_dy, normalised_dya))
            bent = torch.addcmul(mean_d, away, bend / std * (m / (m - 1)), out=away)
            dx = bent.mul_(-rstd).addcmul_(dy, factor)
        dx = dx.to(x.dtype)
        if scale is None:
            return dx, None, None, None, None
        pixels = x.shape[2] * x.shape[3]
        dscale, dbias = ((t * pixels).flatten(1) for t in (normalised_dya, mean_dy))
        if std is not None:
            dscale, dbias = dscale.sum(0), dbias.sum(0)
        return dx, dscale.to(scale.dtype), dbias.to(bias.dtype), None, None


def finish(y: Tensor, dtype: torch.dtype, residual: Tensor | None, slope: float, pad: int) -> Tensor:
    """Activate, add the residual and write the border, as the kernels do.

    Args:
        y: [N, C, H, W], fresh from a normalisation: nobody else reads it, so the activation may work in place.
        dtype: of the result.
        residual: [N, C, H, W], added after the activation.
        slope: LeakyReLU's; 1.0: no activation.
        pad: width of the border, pixels.

    Returns:
        [N, C, H + 2 pad, W + 2 pad].
    """
    if residual is not None:
        if slope != 1.0:
            y = F.leaky_relu_(y, slope)
        return reflect((y + residual).to(dtype), pad)
    # Activated behind the border, so that the tensor that the next convolution keeps is the only one kept.
    y = reflect(y.to(dtype), pad)
    return F.leaky_relu_(y, slope) if slope != 1.0 else y
