"""Appearance injection: instance norm with an injected scale and bias, activation, residual and reflected border, as one operation.

    mean, var = mean and biased variance of x[n, c] over its H x W pixels
    y = scale[n, c] * (x - mean) / sqrt(var + eps) + bias[n, c]          (no scale and bias: plain instance norm)
    y = y if y > 0 else slope * y                                        (slope 1: no activation)
    out = reflect(y + residual, pad)

Source: adaptive instance normalisation, Huang & Belongie, ICCV 2017, equation 8; as DG-Net's decoder uses it (CVPR 2019,
section 3.1). The border of `pad` reflected pixels is what the next convolution reads, so nothing pads in between.
`layer_norm` is the same idea for the decoder's upsampling blocks, whose statistics run over the whole sample.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def adain(
    x: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    slope: float = 1.0,
    residual: Tensor | None = None,
    pad: int = 0,
) -> Tensor:
    """Normalise each plane of x, inject the appearance, activate, add the residual and write a reflected border.

    Args:
        x: [N, C, H, W], any floating dtype; statistics are always fp32.
        scale, bias: [N, C] each, or None for both (plain instance norm).
        eps: added to the variance.
        slope: LeakyReLU's slope for negative values; 1.0 means no activation.
        residual: [N, C, H, W], added after the activation.
        pad: width in pixels of the reflected border, at most min(H, W) - 1.
    Returns:
        [N, C, H + 2 pad, W + 2 pad] in x's dtype.
    Raises:
        ValueError: scale without bias or the reverse.
    """
    if (scale is None) != (bias is None):
        raise ValueError("adain takes scale and bias together, found one of them")
    n, c = x.shape[:2]
    weight = None if scale is None else scale.float().reshape(-1)
    shift = None if bias is None else bias.float().reshape(-1)
    # Every plane is a channel of one batch of size 1: that is instance norm with one scale and bias a plane.
    planes = x.float().reshape(1, n * c, *x.shape[2:])
    y = F.batch_norm(planes, None, None, weight, shift, training=True, eps=eps).view(x.shape)
    return _finish(y, x, slope, residual, pad)


def layer_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, *, eps: float = 1e-5, slope: float = 1.0, pad: int = 0
) -> Tensor:
    """Normalise each sample over (C, H, W) with the unbiased deviation, eps outside the root; then as `adain`.

    y = (x - mean) / (std + eps) * gamma[c] + beta[c]   (method, section 1)

    Args:
        x: [N, C, H, W]; gamma, beta: [C]; eps, slope, pad: as in `adain`.
    Returns:
        [N, C, H + 2 pad, W + 2 pad] in x's dtype.
    """
    std, mean = torch.std_mean(x.float(), dim=(1, 2, 3), keepdim=True)
    factor = gamma.float().view(1, -1, 1, 1) / (std + eps)
    y = torch.addcmul(beta.float().view(1, -1, 1, 1) - mean * factor, x.float(), factor)
    return _finish(y, x, slope, None, pad)


def _finish(y: Tensor, x: Tensor, slope: float, residual: Tensor | None, pad: int) -> Tensor:
    if slope != 1.0:
        y = F.leaky_relu(y, slope)
    if residual is not None:
        y = y + residual
    y = y.to(x.dtype)
    return F.pad(y, (pad,) * 4, mode="reflect") if pad else y
