"""Everything between two convolutions as one operation: normalise, inject the appearance, activate, add, write a
reflected border.

adain, over each plane of H x W pixels:

    mean, var = mean and biased variance of x[n, c]
    y = scale[n, c] * (x - mean) / sqrt(var + eps) + bias[n, c]          (no scale and bias: plain instance norm)
    y = y if y > 0 else slope * y                                        (slope 1: no activation)
    out = reflect(y + residual, pad)

Source: adaptive instance normalisation, Huang & Belongie, ICCV 2017, equation 8; as DG-Net's decoder uses it (CVPR
2019, section 3.1). The border of `pad` reflected pixels is what the next convolution reads, so nothing pads in between.
`layer_norm` is the same for the decoder's upsampling blocks: statistics over the whole sample, unbiased deviation, eps
outside the root, one affine a channel.

On the GPU everything is channels-last. Two ways to work, between which a timing chooses once for each shape:

    plane   one launch: a program owns one sample's block of channels, reads its plane for the statistics and once more
            (from L1 or L2) to write the result
    split   two launches: programs read chunks of pixels and leave partial statistics; the next launch merges them
        (Chan's
            formula, always in the same order) and writes; for large planes and small batches

Statistics are Welford's, in fp32. The backward pass reuses them and recomputes the activation's sign.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .border import reflect

# ---------------------------------------------------------------- eager reference


def _adain_eager(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, slope: float, pad: int
) -> Tensor:
    n, c = x.shape[:2]
    wide = _wide(x)
    weight = None if scale is None else scale.to(wide.dtype).reshape(-1)
    shift = None if bias is None else bias.to(wide.dtype).reshape(-1)
    # Every plane is a channel of one batch of size 1: that is instance norm with one scale and bias a plane. One sample
    # is such a batch as it stands, and must stay untouched: the strides that reshaping gives it lead torch 2.11's CPU
    # backward astray.
    planes = wide if n == 1 else wide.reshape(1, n * c, *x.shape[2:])
    y = F.batch_norm(planes, None, None, weight, shift, training=True, eps=eps)
    y = y if n == 1 else y.view(x.shape)
    return _finish(y, x, residual, slope, pad)


def _layer_norm_eager(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, slope: float, pad: int) -> Tensor:
    wide = _wide(x)
    var, mean = torch.var_mean(wide, dim=(1, 2, 3), keepdim=True)
    # The root's slope at 0 is infinite: a constant sample (an image of one colour) takes no gradient through its
    # deviation.
    std = var.clamp_min(torch.finfo(wide.dtype).tiny).sqrt()
    factor = gamma.to(wide.dtype).view(1, -1, 1, 1) / (std + eps)
    y = torch.addcmul(beta.to(wide.dtype).view(1, -1, 1, 1) - mean * factor, wide, factor)
    return _finish(y, x, None, slope, pad)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _finish(y: Tensor, x: Tensor, residual: Tensor | None, slope: float, pad: int) -> Tensor:
    # y is a normalisation's output, which nobody keeps: the activation works in place, and behind the border where it
    # can, so that the tensor that the next convolution keeps is the only one.
    if residual is not None:
        if slope != 1.0:
            y = F.leaky_relu_(y, slope)
        return reflect((y + residual).to(x.dtype), pad)
    y = reflect(y.to(x.dtype), pad)
    return F.leaky_relu_(y, slope) if slope != 1.0 else y


# ---------------------------------------------------------------- kernels
#
# Pointers, the shape behind each, and its strides:
#   x, residual   [N, H, W, C]           sample, row, column: *_n, *_h, *_w; channel 1 (so the inside of a padded tensor
# works)
#   out           [N, H + 2 PAD, W + 2 PAD, C]   dense
#   grad          as out, with strides grad_n, grad_h, grad_w, 1
#   dx, dresidual [N, H, W, C]           dense
#   scale, bias   [N, C], strides scale_n, bias_n, 1 (stride 0 for layer norm's [C]); None: plain instance norm
#   mean, rstd    [N, C], or [N] where the statistics are PER_SAMPLE
# A tile is BLOCK_S pixels x BLOCK_C channels. A sample starts at an int64 offset; within a sample, whose span the
# launch checks, offsets are int32. W is a constant of the compilation, which turns every division by it into a
# multiplication.


@triton.jit
def _reflected(i, size):
    """The pixel that border pixel i shows, -size < i < 2 size - 1; inside, i itself."""
    i = tl.abs(i)
    return tl.minimum(i, 2 * (size - 1) - i)


@triton.jit
def _place(i, size, PAD: tl.constexpr, side):
    """Where pixel i is written along one axis, and whether: 0 inside, 1 in the border before, 2 in the border after."""
    place = tl.where(side == 0, i + PAD, tl.where(side == 1, PAD - i, 2 * (size - 1) - i + PAD))
    before = (i >= 1) & (i <= PAD)
    after = (i >= size - 1 - PAD) & (i <= size - 2)
    return place, (side == 0) | ((side == 1) & before) | ((side == 2) & after)


@triton.jit
def _welford(x_ptr, x_h, x_w, c, C, start, stop, W: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    """Count [BLOCK_S], mean and sum of squared deviations [BLOCK_S, BLOCK_C] of pixels start..stop: each place of the
    tile follows its own series, so the loop needs no reduction across threads."""
    mean = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    m2 = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    s = tl.arange(0, BLOCK_S)
    for block in range(0, tl.cdiv(stop - start, BLOCK_S)):
        pixel = start + block * BLOCK_S + s
        there = (pixel < stop)[:, None] & (c < C)[None, :]
        offset = (pixel // W) * x_h + (pixel % W) * x_w
        x = tl.load(x_ptr + offset[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        delta = tl.where(there, x - mean, 0.0)
        mean += delta * (1.0 / (block + 1))
        m2 += delta * (x - mean)
    count = tl.maximum((stop - start - s + BLOCK_S - 1) // BLOCK_S, 0).to(tl.float32)
    return count, mean, m2


@triton.jit
def _merge(count, mean, m2, total):
    """Chan's formula along the first axis: count broadcasts against mean and m2; total is the sum of the counts."""
    merged = tl.sum(count * mean, 0) / total
    away = mean - merged[None]
    return merged, tl.sum(m2 + count * away * away, 0)


@triton.jit
def _affine(scale_ptr, bias_ptr, n, scale_n, bias_n, c, C, rstd, BLOCK_C: tl.constexpr):
    """factor = scale * rstd and bias, [BLOCK_C] each."""
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + n * scale_n + c, mask=c < C, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + n * bias_n + c, mask=c < C, other=0.0).to(tl.float32)
        return scale * rstd, bias
    return rstd, tl.zeros((BLOCK_C,), tl.float32)


@triton.jit
def _write_output(
    x_ptr, x_h, x_w, residual_ptr, residual_h, residual_w, out_ptr, c, C, H, start, stop, mean, factor, bias, slope,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Pixels start..stop of the bordered output, each gathered from the pixel that it shows."""
    blocks = tl.cdiv(stop - start, BLOCK_S)
    for i in range(0, blocks):
        # From the last block to the first: what the statistics read last is still in the cache.
        pixel = start + (blocks - 1 - i) * BLOCK_S + tl.arange(0, BLOCK_S)
        there = (pixel < stop)[:, None] & (c < C)[None, :]
        h = pixel // (W + 2 * PAD)
        w = pixel % (W + 2 * PAD)
        if PAD > 0:
            h = _reflected(h - PAD, H)
            w = _reflected(w - PAD, W)
        x = tl.load(x_ptr + (h * x_h + w * x_w)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        y = (x - mean[None, :]) * factor[None, :] + bias[None, :]
        if ACTIVATE:
            y = tl.where(y > 0, y, y * slope)
        if residual_ptr is not None:
            offset = h * residual_h + w * residual_w
            y += tl.load(residual_ptr + offset[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        tl.store(out_ptr + (pixel * C)[:, None] + c[None, :], y.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _sum_gradients(
    x_ptr, x_h, x_w, grad_ptr, grad_h, grad_w, c, C, H, start, stop, mean, factor, bias, slope,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums over pixels start..stop of the bordered output of d and d * (x - mean), [BLOCK_C] each, where d is the
    gradient before the activation. A border pixel counts for the pixel that it shows, so nothing is folded here."""
    sum_d = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    sum_dx = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    for i in range(0, tl.cdiv(stop - start, BLOCK_S)):
        pixel = start + i * BLOCK_S + tl.arange(0, BLOCK_S)
        there = (pixel < stop)[:, None] & (c < C)[None, :]
        h = pixel // (W + 2 * PAD)
        w = pixel % (W + 2 * PAD)
        d = tl.load(grad_ptr + (h * grad_h + w * grad_w)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        if PAD > 0:
            h = _reflected(h - PAD, H)
            w = _reflected(w - PAD, W)
        x = tl.load(x_ptr + (h * x_h + w * x_w)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        away = x - mean[None, :]
        if ACTIVATE:
            d = tl.where(away * factor[None, :] + bias[None, :] > 0, d, d * slope)
        sum_d += d
        sum_dx += d * away
    return tl.sum(sum_d, 0), tl.sum(sum_dx, 0)


@triton.jit
def _write_gradient(
    x_ptr, x_h, x_w, grad_ptr, grad_h, grad_w, dx_ptr, dresidual_ptr, c, C, H, start, stop,
    mean, factor, bias, linear, constant, slope,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx = factor * d + linear * (x - mean) + constant for pixels start..stop, the border's gradients folded into d."""
    blocks = tl.cdiv(stop - start, BLOCK_S)
    for block in range(0, blocks):
        first = start + (blocks - 1 - block) * BLOCK_S
        pixel = first + tl.arange(0, BLOCK_S)
        inside = pixel < stop
        there = inside[:, None] & (c < C)[None, :]
        h = pixel // W
        w = pixel % W
        x = tl.load(x_ptr + (h * x_h + w * x_w)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        d = tl.load(
            grad_ptr + ((h + PAD) * grad_h + (w + PAD) * grad_w)[:, None] + c[None, :], mask=there, other=0.0
        ).to(tl.float32)
        if PAD > 0:
            for side in tl.static_range(1, 3):
                column, shown = _place(w, W, PAD, side)
                offset = (h + PAD) * grad_h + column * grad_w
                mask = (inside & shown)[:, None] & (c < C)[None, :]
                d += tl.load(grad_ptr + offset[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
            # Few tiles touch the rows that the borders above and below show: the others skip these six loads, which a
            # loop that is not unrolled keeps from costing the others registers.
            if (first // W <= PAD) | ((first + BLOCK_S - 1) // W >= H - 1 - PAD):
                for i in range(3, 9):
                    row, row_shown = _place(h, H, PAD, i // 3)
                    column, shown = _place(w, W, PAD, i % 3)
                    offset = row * grad_h + column * grad_w
                    mask = (inside & row_shown & shown)[:, None] & (c < C)[None, :]
                    d += tl.load(grad_ptr + offset[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
        if dresidual_ptr is not None:
            at = dresidual_ptr + (pixel * C)[:, None] + c[None, :]
            tl.store(at, d.to(dresidual_ptr.dtype.element_ty), mask=there)
        away = x - mean[None, :]
        if ACTIVATE:
            d = tl.where(away * factor[None, :] + bias[None, :] > 0, d, d * slope)
        dx = factor[None, :] * d + (linear[None, :] * away + constant[None, :])
        tl.store(dx_ptr + (pixel * C)[:, None] + c[None, :], dx.to(dx_ptr.dtype.element_ty), mask=there)


@triton.jit
def _plane_forward(
    x_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, mean_ptr, rstd_ptr,
    x_n, x_h, x_w, scale_n, bias_n, residual_n, residual_h, residual_w, C, H, eps, slope,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program = sample x block of channels."""
    n = (tl.program_id(0) // tl.cdiv(C, BLOCK_C)).to(tl.int64)
    c = tl.program_id(0) % tl.cdiv(C, BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    x_ptr += n * x_n
    count, means, m2 = _welford(x_ptr, x_h, x_w, c, C, 0, H * W, W, BLOCK_S, BLOCK_C)
    mean, m2 = _merge(count[:, None], means, m2, H * W)
    rstd = tl.rsqrt(m2 / (H * W) + eps)
    tl.store(mean_ptr + n * C + c, mean, mask=c < C)
    tl.store(rstd_ptr + n * C + c, rstd, mask=c < C)
    factor, bias = _affine(scale_ptr, bias_ptr, n, scale_n, bias_n, c, C, rstd, BLOCK_C)
    if residual_ptr is not None:
        residual_ptr += n * residual_n
    pixels = (H + 2 * PAD) * (W + 2 * PAD)
    _write_output(
        x_ptr, x_h, x_w, residual_ptr, residual_h, residual_w, out_ptr + n * pixels * C, c, C, H, 0, pixels,
        mean, factor, bias, slope, W, PAD, ACTIVATE, BLOCK_S, BLOCK_C,
    )  # fmt: skip


@triton.jit
def _plane_backward(
    x_ptr, grad_ptr, scale_ptr, bias_ptr, mean_ptr, rstd_ptr, dx_ptr, dscale_ptr, dbias_ptr, dresidual_ptr,
    x_n, x_h, x_w, grad_n, grad_h, grad_w, scale_n, bias_n, C, H, slope,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program = sample x block of channels."""
    n = (tl.program_id(0) // tl.cdiv(C, BLOCK_C)).to(tl.int64)
    c = tl.program_id(0) % tl.cdiv(C, BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    x_ptr += n * x_n
    grad_ptr += n * grad_n
    mean = tl.load(mean_ptr + n * C + c, mask=c < C, other=0.0)
    rstd = tl.load(rstd_ptr + n * C + c, mask=c < C, other=0.0)
    factor, bias = _affine(scale_ptr, bias_ptr, n, scale_n, bias_n, c, C, rstd, BLOCK_C)
    sum_d, sum_dx = _sum_gradients(
        x_ptr, x_h, x_w, grad_ptr, grad_h, grad_w, c, C, H, 0, (H + 2 * PAD) * (W + 2 * PAD),
        mean, factor, bias, slope, W, PAD, ACTIVATE, BLOCK_S, BLOCK_C,
    )  # fmt: skip
    if dscale_ptr is not None:
        tl.store(dscale_ptr + n * C + c, (sum_dx * rstd).to(dscale_ptr.dtype.element_ty), mask=c < C)
        tl.store(dbias_ptr + n * C + c, sum_d.to(dbias_ptr.dtype.element_ty), mask=c < C)
    linear = -factor * rstd * rstd * sum_dx / (H * W)
    constant = -factor * sum_d / (H * W)
    if dresidual_ptr is not None:
        dresidual_ptr += n * H * W * C
    _write_gradient(
        x_ptr, x_h, x_w, grad_ptr, grad_h, grad_w, dx_ptr + n * H * W * C, dresidual_ptr, c, C, H, 0, H * W,
        mean, factor, bias, linear, constant, slope, W, PAD, ACTIVATE, BLOCK_S, BLOCK_C,
    )  # fmt: skip


@triton.jit
def _split_statistics(
    x_ptr, part_mean_ptr, part_m2_ptr, x_n, x_h, x_w, C, H, chunk,
    W: tl.constexpr, PER_SAMPLE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program = sample x chunk of pixels x block of channels, leaving part_mean and part_m2 [N, chunks, C], or
    [N, chunks, blocks of channels] where PER_SAMPLE."""
    blocks = tl.cdiv(C, BLOCK_C)
    chunks = tl.cdiv(H * W, chunk)
    n = (tl.program_id(0) // (blocks * chunks)).to(tl.int64)
    piece = tl.program_id(0) // blocks % chunks
    block = tl.program_id(0) % blocks
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    start = piece * chunk
    stop = tl.minimum(start + chunk, H * W)
    count, means, m2 = _welford(x_ptr + n * x_n, x_h, x_w, c, C, start, stop, W, BLOCK_S, BLOCK_C)
    mean, m2 = _merge(count[:, None], means, m2, stop - start)
    if PER_SAMPLE:
        own = tl.minimum(C - block * BLOCK_C, BLOCK_C)
        weight = tl.where(c < C, (stop - start).to(tl.float32), 0.0)
        mean, m2 = _merge(weight, mean, m2, own * (stop - start))
        at = (n * chunks + piece) * blocks + block
        tl.store(part_mean_ptr + at, mean)
        tl.store(part_m2_ptr + at, m2)
    else:
        at = (n * chunks + piece) * C + c
        tl.store(part_mean_ptr + at, mean, mask=c < C)
        tl.store(part_m2_ptr + at, m2, mask=c < C)


@triton.jit
def _split_forward(
    x_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, mean_ptr, rstd_ptr, part_mean_ptr, part_m2_ptr,
    x_n, x_h, x_w, scale_n, bias_n, residual_n, residual_h, residual_w, C, H, eps, slope, chunk,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, PER_SAMPLE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program = sample x chunk of bordered pixels x block of channels; BLOCK_P holds the partial statistics of one
    sample."""
    pixels = (H + 2 * PAD) * (W + 2 * PAD)
    blocks = tl.cdiv(C, BLOCK_C)
    pieces = tl.cdiv(pixels, chunk)
    # Last sample first: it is what the statistics left in L2.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n = (program // (blocks * pieces)).to(tl.int64)
    piece = program // blocks % pieces
    block = program % blocks
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    chunks = tl.cdiv(H * W, chunk)
    p = tl.arange(0, BLOCK_P)
    if PER_SAMPLE:
        count = tl.minimum(H * W - p // blocks * chunk, chunk) * tl.minimum(C - p % blocks * BLOCK_C, BLOCK_C)
        known = p < chunks * blocks
        at = n * chunks * blocks + p
        total = (H * W).to(tl.float32) * C
        count = tl.where(known, count, 0).to(tl.float32)
        mean, m2 = _merge(
            count,
            tl.load(part_mean_ptr + at, mask=known, other=0.0),
            tl.load(part_m2_ptr + at, mask=known, other=0.0),
            total,
        )
        rstd = 1.0 / (tl.sqrt(m2 / (total - 1.0)) + eps)
        if (piece == 0) & (block == 0):
            tl.store(mean_ptr + n, mean)
            tl.store(rstd_ptr + n, rstd)
        mean += tl.zeros((BLOCK_C,), tl.float32)
        rstd += tl.zeros((BLOCK_C,), tl.float32)
    else:
        count = tl.maximum(tl.minimum(H * W - p * chunk, chunk), 0).to(tl.float32)
        known = (p < chunks)[:, None] & (c < C)[None, :]
        at = (n * chunks + p)[:, None] * C + c[None, :]
        mean, m2 = _merge(
            count[:, None],
            tl.load(part_mean_ptr + at, mask=known, other=0.0),
            tl.load(part_m2_ptr + at, mask=known, other=0.0),
            H * W,
        )
        rstd = tl.rsqrt(m2 / (H * W) + eps)
        if piece == 0:
            tl.store(mean_ptr + n * C + c, mean, mask=c < C)
            tl.store(rstd_ptr + n * C + c, rstd, mask=c < C)
    factor, bias = _affine(scale_ptr, bias_ptr, n, scale_n, bias_n, c, C, rstd, BLOCK_C)
    if residual_ptr is not None:
        residual_ptr += n * residual_n
    start = piece * chunk
    _write_output(
        x_ptr + n * x_n, x_h, x_w, residual_ptr, residual_h, residual_w, out_ptr + n * pixels * C, c, C, H,
        start, tl.minimum(start + chunk, pixels), mean, factor, bias, slope, W, PAD, ACTIVATE, BLOCK_S, BLOCK_C,
    )  # fmt: skip


@triton.jit
def _split_sums(
    x_ptr, grad_ptr, scale_ptr, bias_ptr, mean_ptr, rstd_ptr, part_scale_ptr, part_bias_ptr, part_sample_ptr,
    x_n, x_h, x_w, grad_n, grad_h, grad_w, scale_n, bias_n, C, H, slope, chunk,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, PER_SAMPLE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program = sample x chunk of bordered pixels x block of channels, leaving its share of the scale's and bias's
    gradients, part_scale and part_bias [N, pieces, C]; where PER_SAMPLE also both, weighted by gamma and summed over
    its channels, in part_sample [2, N, pieces, blocks of channels]."""
    pixels = (H + 2 * PAD) * (W + 2 * PAD)
    blocks = tl.cdiv(C, BLOCK_C)
    pieces = tl.cdiv(pixels, chunk)
    n = (tl.program_id(0) // (blocks * pieces)).to(tl.int64)
    piece = tl.program_id(0) // blocks % pieces
    block = tl.program_id(0) % blocks
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    if PER_SAMPLE:
        mean = tl.load(mean_ptr + n) + tl.zeros((BLOCK_C,), tl.float32)
        rstd = tl.load(rstd_ptr + n) + tl.zeros((BLOCK_C,), tl.float32)
    else:
        mean = tl.load(mean_ptr + n * C + c, mask=c < C, other=0.0)
        rstd = tl.load(rstd_ptr + n * C + c, mask=c < C, other=0.0)
    factor, bias = _affine(scale_ptr, bias_ptr, n, scale_n, bias_n, c, C, rstd, BLOCK_C)
    start = piece * chunk
    sum_d, sum_dx = _sum_gradients(
        x_ptr + n * x_n, x_h, x_w, grad_ptr + n * grad_n, grad_h, grad_w, c, C, H, start, tl.minimum(start + chunk, pixels),
        mean, factor, bias, slope, W, PAD, ACTIVATE, BLOCK_S, BLOCK_C,
    )  # fmt: skip
    at = (n * pieces + piece) * C + c
    tl.store(part_scale_ptr + at, sum_dx * rstd, mask=c < C)
    tl.store(part_bias_ptr + at, sum_d, mask=c < C)
    if PER_SAMPLE:
        at = (n * pieces + piece) * blocks + block
        # factor = gamma * rstd: both sums carry one rstd here.
        tl.store(part_sample_ptr + at, tl.sum(factor * sum_dx, 0))
        tl.store(part_sample_ptr + tl.num_programs(0) + at, tl.sum(factor * sum_d, 0))


@triton.jit
def _split_backward(
    x_ptr, grad_ptr, scale_ptr, bias_ptr, mean_ptr, rstd_ptr, part_scale_ptr, part_bias_ptr, part_sample_ptr,
    dx_ptr, dscale_ptr, dbias_ptr, dresidual_ptr,
    x_n, x_h, x_w, grad_n, grad_h, grad_w, scale_n, bias_n, C, H, eps, slope, chunk, samples,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, PER_SAMPLE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program = sample x chunk of pixels x block of channels; BLOCK_P holds the partial sums of one sample."""
    blocks = tl.cdiv(C, BLOCK_C)
    chunks = tl.cdiv(H * W, chunk)
    pieces = tl.cdiv((H + 2 * PAD) * (W + 2 * PAD), chunk)
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n = (program // (blocks * chunks)).to(tl.int64)
    piece = program // blocks % chunks
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    if PER_SAMPLE:
        mean = tl.load(mean_ptr + n)
        rstd = tl.load(rstd_ptr + n)
        known = p < pieces * blocks
        at = n * pieces * blocks + p
        sum_dx = tl.sum(tl.load(part_sample_ptr + at, mask=known, other=0.0), 0)
        sum_d = tl.sum(tl.load(part_sample_ptr + samples * pieces * blocks + at, mask=known, other=0.0), 0)
        total = (H * W).to(tl.float32) * C
        # The deviation's share of 1 / rstd = deviation + eps; a constant sample has none, and no gradient through it.
        share = 1.0 - eps * rstd
        linear = tl.where(share > 0, -rstd * rstd * sum_dx / (share * (total - 1.0)), 0.0)
        linear += tl.zeros((BLOCK_C,), tl.float32)
        constant = -sum_d / total + tl.zeros((BLOCK_C,), tl.float32)
        mean += tl.zeros((BLOCK_C,), tl.float32)
        rstd += tl.zeros((BLOCK_C,), tl.float32)
        factor, bias = _affine(scale_ptr, bias_ptr, n, scale_n, bias_n, c, C, rstd, BLOCK_C)
    else:
        mean = tl.load(mean_ptr + n * C + c, mask=c < C, other=0.0)
        rstd = tl.load(rstd_ptr + n * C + c, mask=c < C, other=0.0)
        known = (p < pieces)[:, None] & (c < C)[None, :]
        at = (n * pieces + p)[:, None] * C + c[None, :]
        dscale = tl.sum(tl.load(part_scale_ptr + at, mask=known, other=0.0), 0)
        dbias = tl.sum(tl.load(part_bias_ptr + at, mask=known, other=0.0), 0)
        factor, bias = _affine(scale_ptr, bias_ptr, n, scale_n, bias_n, c, C, rstd, BLOCK_C)
        linear = -factor * rstd * dscale / (H * W)
        constant = -factor * dbias / (H * W)
        if dscale_ptr is not None:
            if piece == 0:
                tl.store(dscale_ptr + n * C + c, dscale.to(dscale_ptr.dtype.element_ty), mask=c < C)
                tl.store(dbias_ptr + n * C + c, dbias.to(dbias_ptr.dtype.element_ty), mask=c < C)
    if dresidual_ptr is not None:
        dresidual_ptr += n * H * W * C
    start = piece * chunk
    _write_gradient(
        x_ptr + n * x_n, x_h, x_w, grad_ptr + n * grad_n, grad_h, grad_w, dx_ptr + n * H * W * C, dresidual_ptr, c, C, H,
        start, tl.minimum(start + chunk, H * W), mean, factor, bias, linear, constant, slope,
        W, PAD, ACTIVATE, BLOCK_S, BLOCK_C,
    )  # fmt: skip


# ---------------------------------------------------------------- launch


class Tiling(NamedTuple):
    """How a launch cuts its work: tiles of `pixels` x `channels`, `warps` to a program, `chunk` pixels to a program."""

    pixels: int
    channels: int
    warps: int
    chunk: int  # 0: the whole plane

    def constants(self) -> dict[str, int]:
        """As the kernels take them. 128 registers are what 16 warps can have; unasked, ptxas may spill to keep 64."""
        return {"BLOCK_S": self.pixels, "BLOCK_C": self.channels, "num_warps": self.warps, "maxnreg": 128}


def tilings(itemsize: int, samples: int, channels: int, pixels: int, per_sample: bool) -> list[Tiling]:
    """The tilings among which timing chooses for x of `itemsize` bytes a value, the most promising first.

    Args:
        itemsize: 2 or 4. samples, channels: N, C. pixels: H * W. per_sample: layer norm.
    """
    sector = 32 // itemsize  # values in what DRAM and L2 hand out at once
    plane, split = [], []
    for width, warps in ((sector, 8), (2 * sector, 16), (sector, 16)):
        width = min(width, triton.next_power_of_2(channels))
        # Two 16-byte loads a thread in flight for each tensor.
        rows = min(warps * 2 * sector * 16 // width, max(16, triton.next_power_of_2(pixels)))
        plane.append(Tiling(rows, width, warps, 0))
    for width, warps in ((4 * sector, 4), (2 * sector, 8)):
        width = min(width, triton.next_power_of_2(channels))
        rows = warps * 2 * sector * 16 // width
        # At most 64 chunks a sample, which keeps the merge small.
        chunk = max(4 * rows, triton.cdiv(triton.cdiv(pixels, 64), rows) * rows)
        split.append(Tiling(rows, width, warps, chunk))
    plane, split = list(dict.fromkeys(plane)), list(dict.fromkeys(split))
    if per_sample:
        return split
    # 128 kB stay in L1; a plane far beyond is better read by many programs.
    few = samples * triton.cdiv(channels, plane[0].channels) < 128
    if pixels * 32 > 512 * 1024:
        return split
    return split + plane if few or pixels * 32 > 128 * 1024 else plane + split


_chosen: dict[tuple, Tiling] = {}


def _run_fastest(key: tuple, candidates: list[Tiling], run: Callable[[Tiling], None]) -> None:
    """Run with the tiling that was fastest for this key, timing the candidates the first time.

    The choice decides the order of summation; where torch is told to be deterministic the first candidate is taken
    untimed.
    """
    timed = key[0].type == "cuda" and len(candidates) > 1
    if not timed or torch.are_deterministic_algorithms_enabled():
        return run(candidates[0])
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return run(candidates[0])
        _chosen[key] = min(candidates, key=lambda tiling: _milliseconds(lambda: run(tiling)))
    return run(_chosen[key])


def _milliseconds(run: Callable[[], None]) -> float:
    run()  # compiles
    times = []
    for _ in range(5):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(4):
            run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return min(times)


def _launch(kernel, programs: int, *args, **constants) -> None:
    kernel[(programs,)](*args, **constants)


def _channels_last(x: Tensor, name: str) -> Tensor:
    """x with channels innermost: itself wherever the kernels can read it through its strides."""
    span = sum((size - 1) * step for size, step in zip(x.shape[1:], x.stride()[1:], strict=True))
    if (x.stride(1) == 1 or x.shape[1] == 1) and span < 2**31:
        return x
    _count(f"{name} converted to channels-last")
    return x.contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor | None) -> Tensor | None:
    """[N, C] or [C] with its channels adjacent."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _sample_stride(x: Tensor | None) -> int:
    return x.stride(0) if x is not None and x.ndim == 2 else 0


def _strides(x: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if x is None else (x.stride(0), x.stride(2), x.stride(3))


def _forward(
    x: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    slope: float,
    pad: int,
    per_sample: bool,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [N, C, H + 2 pad, W + 2 pad] and the statistics mean, rstd; `tiling` overrides the choice."""
    out, mean, rstd = _empty_forward(x, pad, per_sample)
    x = _channels_last(x, "x")
    residual = residual if residual is None else _channels_last(residual, "residual")
    scale, bias = _rows(scale), _rows(bias)
    n, c, h, w = x.shape
    strides = (*_strides(x), _sample_stride(scale), _sample_stride(bias), *_strides(residual))
    constants = {"W": w, "PAD": pad, "ACTIVATE": slope != 1.0}

    def run(t: Tiling) -> None:
        blocks = triton.cdiv(c, t.channels)
        tile = t.constants()
        tensors = (x, scale, bias, residual, out, mean, rstd)
        if not t.chunk:
            _launch(_plane_forward, n * blocks, *tensors, *strides, c, h, eps, slope, **constants, **tile)
            return
        chunks = triton.cdiv(h * w, t.chunk)
        shape = (n, chunks, blocks if per_sample else c)
        part = [torch.empty(shape, dtype=torch.float32, device=x.device) for _ in range(2)]
        _launch(
            _split_statistics,
            n * chunks * blocks,
            x,
            *part,
            *_strides(x),
            c,
            h,
            t.chunk,
            W=w,
            PER_SAMPLE=per_sample,
            **tile,
        )
        pieces = triton.cdiv((h + 2 * pad) * (w + 2 * pad), t.chunk)
        held = triton.next_power_of_2(chunks * blocks if per_sample else chunks)
        _launch(
            _split_forward, n * pieces * blocks, *tensors, *part, *strides, c, h, eps, slope, t.chunk,
            **constants, PER_SAMPLE=per_sample, BLOCK_P=held, **tile,
        )  # fmt: skip

    candidates = [tiling] if tiling else tilings(x.element_size(), n, c, h * w, per_sample)
    key = (x.device, "forward", x.dtype, c, (h * w).bit_length(), n.bit_length(), pad, per_sample, residual is None)
    _run_fastest(key, candidates, run)
    return out, mean, rstd


def _backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    residual_dtype: torch.dtype | None,
    eps: float,
    slope: float,
    pad: int,
    per_sample: bool,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, scale, bias and residual; those that nobody wants have no values. `residual_dtype` None: not
    wanted."""
    dx, dscale, dbias, dresidual = _empty_backward(x, scale, bias, residual_dtype)
    grad, x = _channels_last(grad, "gradient"), _channels_last(x, "x")
    scale, bias = _rows(scale), _rows(bias)
    n, c, h, w = x.shape
    strides = (*_strides(x), *_strides(grad), _sample_stride(scale), _sample_stride(bias))
    constants = {"W": w, "PAD": pad, "ACTIVATE": slope != 1.0}
    outputs = (
        dx,
        None if scale is None or per_sample else dscale,
        None if scale is None or per_sample else dbias,
        None if residual_dtype is None else dresidual,
    )

    def run(t: Tiling) -> None:
        blocks = triton.cdiv(c, t.channels)
        tile = t.constants()
        tensors = (x, grad, scale, bias, mean, rstd)
        if not t.chunk:
            _launch(_plane_backward, n * blocks, *tensors, *outputs, *strides, c, h, slope, **constants, **tile)
            return
        chunks = triton.cdiv(h * w, t.chunk)
        pieces = triton.cdiv((h + 2 * pad) * (w + 2 * pad), t.chunk)
        constants["PER_SAMPLE"] = per_sample
        part = torch.empty((2, n, pieces, c), dtype=torch.float32, device=x.device)
        sample = torch.empty((2, n, pieces, blocks), dtype=torch.float32, device=x.device) if per_sample else None
        parts = (part[0], part[1], sample)
        _launch(_split_sums, n * pieces * blocks, *tensors, *parts, *strides, c, h, slope, t.chunk, **constants, **tile)
        held = triton.next_power_of_2(pieces * blocks if per_sample else pieces)
        _launch(
            _split_backward, n * chunks * blocks, *tensors, *parts, *outputs, *strides, c, h, eps, slope, t.chunk, n,
            **constants, BLOCK_P=held, **tile,
        )  # fmt: skip
        if per_sample:
            dscale.copy_(part[0].sum((0, 1)))
            dbias.copy_(part[1].sum((0, 1)))

    candidates = [tiling] if tiling else tilings(x.element_size(), n, c, h * w, per_sample)
    key = (x.device, "backward", x.dtype, c, (h * w).bit_length(), n.bit_length(), pad, per_sample, residual_dtype)
    _run_fastest(key, candidates, run)
    return dx, dscale, dbias, dresidual


# ---------------------------------------------------------------- custom operators


def _empty_forward(x: Tensor, pad: int, per_sample: bool) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    shape = (n, c, h + 2 * pad, w + 2 * pad)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    mean, rstd = (torch.empty((n,) if per_sample else (n, c), dtype=torch.float32, device=x.device) for _ in range(2))
    return out, mean, rstd


def _empty_backward(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, residual_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def empty(shape, dtype) -> Tensor:
        form = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device=x.device, memory_format=form)

    return (
        empty(x.shape, x.dtype),
        x.new_empty(0) if scale is None else empty(scale.shape, scale.dtype),
        x.new_empty(0) if bias is None else empty(bias.shape, bias.dtype),
        x.new_empty(0) if residual_dtype is None else empty(x.shape, residual_dtype),
    )


@torch.library.custom_op("dgfast::inject", mutates_args=())
def _inject(
    x: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    slope: float,
    pad: int,
    per_sample: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(x, scale, bias, residual, eps, slope, pad, per_sample)


@_inject.register_fake
def _(x, scale, bias, residual, eps, slope, pad, per_sample):
    return _empty_forward(x, pad, per_sample)


@torch.library.custom_op("dgfast::inject_backward", mutates_args=())
def _inject_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    residual_dtype: torch.dtype | None,
    eps: float,
    slope: float,
    pad: int,
    per_sample: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _backward(grad, x, scale, bias, mean, rstd, residual_dtype, eps, slope, pad, per_sample)


@_inject_backward.register_fake
def _(grad, x, scale, bias, mean, rstd, residual_dtype, eps, slope, pad, per_sample):
    return _empty_backward(x, scale, bias, residual_dtype)


def _save(ctx, inputs, output) -> None:
    x, scale, bias, residual, ctx.eps, ctx.slope, ctx.pad, ctx.per_sample = inputs
    _, mean, rstd = output
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.save_for_backward(x, scale, bias, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # no launches for the statistics' zero gradients


def _differentiate(ctx, grad, *_):
    if grad is None:
        return (None,) * 8
    x, scale, bias, mean, rstd = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    # Without a border the residual's gradient is the incoming one; with a border the kernel folds it.
    folded = ctx.residual_dtype if wanted[3] and ctx.pad else None
    dx = dscale = dbias = dresidual = None
    if any(wanted[:3]) or folded is not None:
        dx, dscale, dbias, dresidual = torch.ops.dgfast.inject_backward(
            grad, x, scale, bias, mean, rstd, folded, ctx.eps, ctx.slope, ctx.pad, ctx.per_sample
        )
    if wanted[3] and not ctx.pad:
        dresidual = grad.to(ctx.residual_dtype)
    found = (dx, dscale, dbias, dresidual)
    return *(g if want else None for g, want in zip(found, wanted, strict=False)), None, None, None, None


_inject.register_autograd(_differentiate, setup_context=_save)


# ---------------------------------------------------------------- public functions

_counts: Counter[str] = Counter()


def _count(reason: str) -> None:
    if not torch.compiler.is_compiling():
        _counts[reason] += 1


def fallbacks() -> dict[str, int]:
    """Why inputs took a slower way than the kernels, or were converted first, and how often in this process.

    Calls inside a graph that `torch.compile` made are counted where the kernels convert a layout, not where the eager
    path was
    chosen: that is decided when the graph is made.
    """
    return dict(_counts)


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
            channels-last tensor, `padded[..., 1:-1, 1:-1]`; other layouts are converted first and counted in
            `fallbacks`.
        scale, bias: [N, C] each, or None for both (plain instance norm).
        eps: added to the variance.
        slope: LeakyReLU's slope for negative values; 1.0 means no activation.
        residual: [N, C, H, W], added after the activation; layouts as x.
        pad: width in pixels of the reflected border, at most min(H, W) - 1.
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
    if _use_triton(impl, x, (scale, bias, residual), pad):
        return _inject(x, scale, bias, residual, eps, slope, pad, False)[0]
    return _adain_eager(x, scale, bias, residual, eps, slope, pad)


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
    """Normalise each sample over (C, H, W) with the unbiased deviation, eps outside the root; then as `adain`.

    y = (x - mean) / (std + eps) * gamma[c] + beta[c]   (method, section 1)

    Args:
        x: [N, C, H, W]; gamma, beta: [C]; eps: added to the deviation; slope, pad, impl: as in `adain`.
    Returns:
        [N, C, H + 2 pad, W + 2 pad] in x's dtype; channels-last from Triton.
    Raises:
        ValueError: shapes that do not fit; an unknown impl, or "triton" where it does not apply.
    """
    for name, value in (("gamma", gamma), ("beta", beta)):
        if value.shape != x.shape[1:2]:
            raise ValueError(f"layer_norm: {name} has shape {tuple(value.shape)}, expected [C] = {tuple(x.shape[1:2])}")
    if _use_triton(impl, x, (gamma, beta), pad):
        return _inject(x, gamma, beta, None, eps, slope, pad, True)[0]
    return _layer_norm_eager(x, gamma, beta, eps, slope, pad)


def _use_triton(impl: str, x: Tensor, others: tuple[Tensor | None, ...], pad: int) -> bool:
    if impl == "eager":
        return False
    if impl not in ("auto", "triton"):
        raise ValueError(f"impl is {impl!r}, expected 'auto', 'triton' or 'eager'")
    reason = _obstacle(x, others, pad, cpu=impl == "triton" and INTERPRETED)
    if reason is None:
        return True
    if impl == "triton":
        raise ValueError(f"impl='triton' does not apply: {reason}; use impl='auto'")
    _count(reason)
    return False


# In Triton's interpreter, which the tests use, kernels are no JITFunctions and run on the CPU.
INTERPRETED = not isinstance(_reflected, triton.JITFunction)


def _obstacle(x: Tensor, others: tuple[Tensor | None, ...], pad: int, cpu: bool) -> str | None:
    """Why the kernels do not apply, or None."""
    tensors = [x, *(t for t in others if t is not None)]
    if not x.is_cuda and not cpu:
        return f"tensor on the {x.device.type}"
    if any(t.device != x.device for t in tensors):
        return "tensors on several devices"
    for t in tensors:
        if t.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"dtype {t.dtype}"
    if x.ndim != 4:
        return f"{x.ndim} dimensions"
    if x.numel() == 0:
        return "no values"
    if not 0 <= pad < min(x.shape[2:]):
        return "border wider than the image"
    # One value less than nothing to divide by in layer norm, and nothing to gain anywhere.
    if x.numel() == x.shape[0]:
        return "one value a sample"
    if (x.shape[2] + 2 * pad) * (x.shape[3] + 2 * pad) * x.shape[1] >= 2**31:
        return "samples of 2^31 values"
    return None
