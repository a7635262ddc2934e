"""Layer normalisation over whole samples, activation and border as one operation: for G's upsampling blocks.

Over all values of each sample, with x [N, C, H, W] and gamma and beta [C]:

    mean, std = mean and unbiased deviation of x[n]
    y = (x - mean) / (std + eps) * gamma[c] + beta[c]                    (eps outside the root)
    y = y if y > 0 else slope * y                                        (slope 1: no activation)
    out = reflect(y, pad)                                                [N, C, H + 2 pad, W + 2 pad]

Source: Ba et al., "Layer Normalization", 2016, with the deviation and eps of the public reference system
(docs/method.md, section 1).

Here are the eager reference and the public function. The kernels, and what is known of their precision and speed, are
in `_normalise.py`, shared with `adaptive_norm.py`.
"""

from torch import Tensor

from ._dispatch import takes_triton
from ._eager import finish, normalised
from ._normalise import normalise, unsuitable

# ---------------------------------------------------------------- eager reference


def layer_norm_eager(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, slope: float, pad: int) -> Tensor:
    """Compute the formula in PyTorch operations: the CPU's path and the oracle of the tests.

    Args:
        x: [N, C, H, W]; like the others as `layer_norm` takes it.
        gamma: [C].
        beta: [C].
        eps: added to the deviation.
        slope: of LeakyReLU; 1: none.
        pad: width of the reflected border, pixels.
    """
    return finish(normalised(x, gamma, beta, eps, True), x.dtype, None, slope, pad)


# ---------------------------------------------------------------- public function


def layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    eps: float = 1e-5,
    slope: float = 1.0,
    pad: int = 0,
    impl: str = "auto",
) -> Tensor:
    """Normalise each sample of x over channels and pixels, activate and write a reflected border.

    Args:
        x: [N, C, H, W]; dtypes and layouts as in `adain`.
        gamma: [C], gain.
        beta: [C], offset.
        eps: added to the deviation.
        slope: LeakyReLU's slope for negative values; 1.0 means no activation.
        pad: width in pixels of the reflected border, 0 to min(H, W) - 1.
        impl: "triton", "eager", or "auto", as in `adain`.

    Returns:
        [N, C, H + 2 pad, W + 2 pad] in x's dtype; channels-last from Triton.

    Raises:
        ValueError: shapes that do not fit; an unknown impl, or "triton" where it does not apply.
    """
    for name, value in (("gamma", gamma), ("beta", beta)):
        if value.shape != x.shape[1:2]:
            raise ValueError(f"layer_norm: {name} has shape {tuple(value.shape)}, expected [C] = {tuple(x.shape[1:2])}")
    if takes_triton("layer_norm", impl, [x, gamma, beta], unsuitable(x, pad)):
        return normalise(x, gamma, beta, None, eps, slope, pad, True)[0]
    return layer_norm_eager(x, gamma, beta, eps, slope, pad)
