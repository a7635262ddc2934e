"""Adaptive instance normalisation, and all else that stands between two convolutions, as one operation.

Over each plane of H x W pixels, with x [N, C, H, W]:

    mean, var = mean and biased variance of x[n, c]
    y = scale[n, c, h] * (x - mean) / sqrt(var + eps) + bias[n, c, h]    (no scale and bias: plain instance norm)
    y = y if y > 0 else slope * y                                        (slope 1: no activation)
    out = reflect(y + residual, pad)                                     [N, C, H + 2 pad, W + 2 pad]

Scale and bias are given as [N, C], the same in every row h. Or they are given as [N, S, C], one pair for each of S
horizontal stripes from top to bottom; then each row takes the mean of the two stripes whose centres are next to it,
weighted by how near they are (above the first centre and below the last: that stripe's).

The next convolution reads the border of `pad` reflected pixels, so nothing pads in between.

Source: Huang & Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", ICCV 2017,
equation 8; as DG-Net's decoder uses it (CVPR 2019, section 3.1).

Here are the eager reference and the public function. The kernels, and what is known of their precision and speed, are
in `_normalise.py`, shared with `layer_norm.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._dispatch import takes_triton
from ._eager import finish, normalised
from ._normalise import normalise, unsuitable

# ---------------------------------------------------------------- eager reference


def adain_eager(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, slope: float, pad: int
) -> Tensor:
    """Compute the formula in PyTorch operations: the CPU's path and the oracle of the tests.

    Args:
        x: [N, C, H, W]; like the others as `adain` takes it.
        scale: [N, C] or [N, S, C].
        bias: as scale.
        residual: [N, C, H, W], added after the activation.
        eps: added to the variance.
        slope: of LeakyReLU; 1: none.
        pad: width of the reflected border, pixels.
    """
    if scale is None or bias is None or scale.ndim == 2:
        return finish(normalised(x, scale, bias, eps, False), x.dtype, residual, slope, pad)
    y = normalised(x, None, None, eps, False)
    y = torch.addcmul(_in_rows(bias.to(y.dtype), x.shape[2]), y, _in_rows(scale.to(y.dtype), x.shape[2]))
    return finish(y, x.dtype, residual, slope, pad)


def _in_rows(stripes: Tensor, height: int) -> Tensor:
    """Interpolate [N, S, C] between the stripes' centres: [N, C, height, 1].

    torch's linear interpolation, written as the bilinear one of an image one pixel wide, because on a GPU only that one
    has a gradient that adds up in a fixed order when torch is told to be deterministic.
    """
    image = stripes.transpose(1, 2).unsqueeze(3)
    return F.interpolate(image, size=(height, 1), mode="bilinear", align_corners=False)


# ---------------------------------------------------------------- public function

_MOST_STRIPES = 64


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
        scale: [N, C]; or [N, S, C], one row for each of S horizontal stripes (1 to 64) from top to bottom, interpolated
            along the height as `torch.nn.functional.interpolate(scale.transpose(1, 2), size=H, mode="linear",
            align_corners=False)` does; or None: plain instance norm.
        bias: of the same shape as scale, and None together with it.
        eps: added to the variance.
        slope: LeakyReLU's slope for negative values; 1.0 means no activation.
        residual: [N, C, H, W], added after the activation; layouts as x.
        pad: width in pixels of the reflected border, 0 to min(H, W) - 1.
        impl: "triton", "eager", or "auto": Triton on a GPU wherever the kernels apply, else eager, the reason in
            `fallbacks`.

    Returns:
        [N, C, H + 2 pad, W + 2 pad] in x's dtype; channels-last from Triton.

    Raises:
        ValueError: scale without bias or the reverse; shapes that do not fit; more than 64 stripes; an unknown impl, or
            "triton" where it does not apply.
    """
    if (scale is None) != (bias is None):
        raise ValueError("adain takes scale and bias together, found one of them")
    if scale is not None and bias is not None:
        _check_rows(x, scale, bias)
        if scale.ndim == 3 and scale.shape[1] == 1:
            scale, bias = scale[:, 0], bias[:, 0]  # one stripe is the whole plane
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"adain: residual has shape {tuple(residual.shape)}, expected x's {tuple(x.shape)}")
    tensors = [t for t in (x, scale, bias, residual) if t is not None]
    reason = unsuitable(x, pad)
    if reason is None and scale is not None and scale.ndim == 3 and x.shape[2] >= 2**23:
        reason = "stripes of an image of 2^23 rows"  # the interpolation counts in 32 bits
    if takes_triton("adain", impl, tensors, reason):
        return normalise(x, scale, bias, residual, eps, slope, pad, False)[0]
    return adain_eager(x, scale, bias, residual, eps, slope, pad)


def _check_rows(x: Tensor, scale: Tensor, bias: Tensor) -> None:
    """Raise ValueError unless scale and bias fit x."""
    n, c = x.shape[:2]
    for name, value in (("scale", scale), ("bias", bias)):
        if value.ndim not in (2, 3) or (value.shape[0], value.shape[-1]) != (n, c):
            raise ValueError(
                f"adain: {name} has shape {tuple(value.shape)}, expected [N, C] = {(n, c)}"
                f" or [N, stripes, C] = ({n}, stripes, {c})"
            )
    if scale.shape != bias.shape:
        raise ValueError(
            f"adain: bias has shape {tuple(bias.shape)}, expected the shape of scale, {tuple(scale.shape)}"
        )
    if scale.ndim == 3 and not 1 <= scale.shape[1] <= _MOST_STRIPES:
        raise ValueError(f"adain: scale and bias have {scale.shape[1]} stripes, expected 1 to {_MOST_STRIPES}")
