"""Adaptive instance normalisation, and all else that stands between two convolutions, as one operation.

Over each plane of H x W pixels, with x [N, C, H, W] and scale and bias [N, C]:

    mean, var = mean and biased variance of x[n, c]
    y = scale[n, c] * (x - mean) / sqrt(var + eps) + bias[n, c]          (no scale and bias: plain instance norm)
    y = y if y > 0 else slope * y                                        (slope 1: no activation)
    out = reflect(y + residual, pad)                                     [N, C, H + 2 pad, W + 2 pad]

The next convolution reads the border of `pad` reflected pixels, so nothing pads in between.

Source: Huang & Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", ICCV 2017,
equation 8; as DG-Net's decoder uses it (CVPR 2019, section 3.1).

Here are the eager reference and the public function. The kernels, and what is known of their precision and speed, are
in `_normalise.py`, shared with `layer_norm.py`.
"""

import torch.nn.functional as F
from torch import Tensor

from ._dispatch import takes_triton
from ._normalise import finish, normalise, unsuitable, wide

# ---------------------------------------------------------------- eager reference


def adain_eager(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, slope: float, pad: int
) -> Tensor:
    """Compute the formula in PyTorch operations: the CPU's path and the oracle of the tests.

    Args:
        x: [N, C, H, W]; like the others as `adain` takes it.
        scale: [N, C].
        bias: [N, C].
        residual: [N, C, H, W], added after the activation.
        eps: added to the variance.
        slope: of LeakyReLU; 1: none.
        pad: width of the reflected border, pixels.
    """
    n, c = x.shape[:2]
    values = wide(x)
    weight = None if scale is None else scale.to(values.dtype).reshape(-1)
    shift = None if bias is None else bias.to(values.dtype).reshape(-1)
    # Every plane becomes a channel of one batch of size 1: instance norm with a scale and a bias for each plane. A
    # single sample is such a batch already, and must not be reshaped: the strides that it would get lead torch 2.11's
    # CPU backward astray.
    planes = values if n == 1 else values.reshape(1, n * c, *x.shape[2:])
    y = F.batch_norm(planes, None, None, weight, shift, training=True, eps=eps)
    return finish(y if n == 1 else y.view(x.shape), x.dtype, residual, slope, pad)


# ---------------------------------------------------------------- public function


def adain(
    x: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    slope: float = 1.0,
    residual: Tensor | None = None,
    pad: int = 0,
    impl: str = "auto",
) -> Tensor:
    """Normalise each plane of x, inject the appearance, activate, add the residual and write a reflected border.

    Args:
        x: [N, C, H, W], any floating dtype; statistics are fp32 (fp64 for fp64). Best channels-last or the inside of a
            channels-last tensor, `padded[..., 1:-1, 1:-1]`; the kernels' other layouts are converted first and counted
            in `fallbacks`.
        scale: [N, C], or None together with bias: plain instance norm.
        bias: [N, C], or None together with scale.
        eps: added to the variance.
        slope: LeakyReLU's slope for negative values; 1.0 means no activation.
        residual: [N, C, H, W], added after the activation; layouts as x.
        pad: width in pixels of the reflected border, 0 to min(H, W) - 1.
        impl: "triton", "eager", or "auto": Triton on a GPU wherever the kernels apply, else eager, the reason in
            `fallbacks`.

    Returns:
        [N, C, H + 2 pad, W + 2 pad] in x's dtype; channels-last from Triton.

    Raises:
        ValueError: scale without bias or the reverse; shapes that do not fit; an unknown impl, or "triton" where it
            does not apply.
    """
    if (scale is None) != (bias is None):
        raise ValueError("adain takes scale and bias together, found one of them")
    for name, value in (("scale", scale), ("bias", bias)):
        if value is not None and value.shape != x.shape[:2]:
            raise ValueError(f"adain: {name} has shape {tuple(value.shape)}, expected [N, C] = {tuple(x.shape[:2])}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"adain: residual has shape {tuple(residual.shape)}, expected x's {tuple(x.shape)}")
    tensors = [t for t in (x, scale, bias, residual) if t is not None]
    if takes_triton("adain", impl, tensors, unsuitable(x, pad)):
        return normalise(x, scale, bias, residual, eps, slope, pad, False)[0]
    return adain_eager(x, scale, bias, residual, eps, slope, pad)
