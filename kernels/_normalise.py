"""The kernels of both normalisations, `adain` and `layer_norm`: statistics, affine, activation, residual, border.

    y   = factor * (x - mean) + bias        factor = scale * rstd
    y   = y if y > 0 else slope * y
    out = reflect(y + residual, pad)

The two differ in the statistics alone: mean and rstd of each plane [N, C], or of each sample [N] (PER_SAMPLE). The
formulas of rstd, and the eager references, stand in `adaptive_norm.py` and `layer_norm.py`.

There are two ways to cut the work, between which a timing chooses once for each kind of call (`_tuning.py`):

    plane   one launch: a program owns one sample's block of channels, reads its plane for the statistics, and reads it
            again, from L1 or L2, to write the result
    split   two launches: in the first, programs read chunks of pixels and leave partial statistics; the second merges
            them by Chan's formula, always in the same order, and writes. For large planes, for small batches, and for
            the statistics of a sample, which no program can hold

`adain` with a scale and a bias for each of several stripes of the image has kernels of its own, in `_stripes.py`, which
are cut in the same two ways. They are launched here.

Statistics are Welford's, in fp32. The backward pass reuses them, and computes again on which side of the activation
each value lies. On a GPU all images are channels-last.

Tests: tests/test_adain.py runs the kernels in Triton's interpreter against fp64, within the TOLERANCE of
tests/interpreted/adain_cases.py; tests/test_aot.py compiles them for three GPUs. Speed: bench/bench_adain.py. No
fraction of a card's bandwidth has been measured yet (docs/benchmarks.md).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._dispatch import count, on_device_of
from ._pixels import merge, place, reflected, welford
from ._stripes import (
    striped_plane_backward,
    striped_plane_forward,
    striped_split_backward,
    striped_split_forward,
    striped_split_sums,
)
from ._tuning import Tiling, run_fastest, tilings

# ---------------------------------------------------------------- kernels
#
# Pointers, the shape behind each, and its strides:
#   x, residual   [N, H, W, C]   strides *_n, *_h, *_w, 1; so the inside of a padded tensor can be read in place
#   out           [N, H + 2 PAD, W + 2 PAD, C]   dense
#   grad          as out, with strides grad_n, grad_h, grad_w, 1
#   dx, dresidual [N, H, W, C]   dense
#   scale, bias   [N, C], strides scale_n, bias_n, 1; of layer norm [C], strides 0, 1; None: plain instance norm
#   mean, rstd    [N, C], or [N] where the statistics are PER_SAMPLE
# A tile is BLOCK_S pixels x BLOCK_C channels. Where a sample begins is an int64 offset. Within a sample offsets are
# int32; the dispatch and `_channels_last` see to it that they suffice. W is a constant of the compilation, which turns
# every division by it into a multiplication.


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
    """Write pixels start .. stop - 1 of the bordered output, each from the pixel that it shows."""
    blocks = tl.cdiv(stop - start, BLOCK_S)
    for i in range(0, blocks):
        # From the last block to the first: what the statistics read last is still in the cache.
        pixel = start + (blocks - 1 - i) * BLOCK_S + tl.arange(0, BLOCK_S)
        there = (pixel < stop)[:, None] & (c < C)[None, :]
        h = pixel // (W + 2 * PAD)
        w = pixel % (W + 2 * PAD)
        if PAD > 0:
            h = reflected(h - PAD, H)
            w = reflected(w - PAD, W)
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
    """Sums of d and of d * (x - mean), [BLOCK_C] each, over pixels start .. stop - 1 of the bordered output.

    d is the gradient before the activation. A pixel of the border counts for the pixel that it shows, so the border's
    gradients need not be added to the image's first.
    """
    sum_d = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    sum_dx = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    for i in range(0, tl.cdiv(stop - start, BLOCK_S)):
        pixel = start + i * BLOCK_S + tl.arange(0, BLOCK_S)
        there = (pixel < stop)[:, None] & (c < C)[None, :]
        h = pixel // (W + 2 * PAD)
        w = pixel % (W + 2 * PAD)
        d = tl.load(grad_ptr + (h * grad_h + w * grad_w)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        if PAD > 0:
            h = reflected(h - PAD, H)
            w = reflected(w - PAD, W)
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
    """Write dx = factor * d + linear * (x - mean) + constant of pixels start .. stop - 1.

    d holds the gradient of the pixel and of all places in the border that show it.
    """
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
                column, shown = place(w, W, PAD, side)
                offset = (h + PAD) * grad_h + column * grad_w
                mask = (inside & shown)[:, None] & (c < C)[None, :]
                d += tl.load(grad_ptr + offset[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
            # Few tiles touch the rows that the borders above and below show; the others skip these six loads. The loop
            # is not unrolled, so that the loads cost those others no registers.
            if (first // W <= PAD) | ((first + BLOCK_S - 1) // W >= H - 1 - PAD):
                for i in range(3, 9):
                    row, row_shown = place(h, H, PAD, i // 3)
                    column, shown = place(w, W, PAD, i % 3)
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
    count, means, m2 = welford(x_ptr, x_h, x_w, c, C, 0, H * W, W, BLOCK_S, BLOCK_C)
    mean, m2 = merge(count[:, None], means, m2, H * W)
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
    """Program = sample x chunk of pixels x block of channels.

    part_mean, part_m2: [N, chunks, C], or [N, chunks, blocks of channels] where PER_SAMPLE.
    """
    blocks = tl.cdiv(C, BLOCK_C)
    chunks = tl.cdiv(H * W, chunk)
    n = (tl.program_id(0) // (blocks * chunks)).to(tl.int64)
    piece = tl.program_id(0) // blocks % chunks
    block = tl.program_id(0) % blocks
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    start = piece * chunk
    stop = tl.minimum(start + chunk, H * W)
    count, means, m2 = welford(x_ptr + n * x_n, x_h, x_w, c, C, start, stop, W, BLOCK_S, BLOCK_C)
    mean, m2 = merge(count[:, None], means, m2, stop - start)
    if PER_SAMPLE:
        own = tl.minimum(C - block * BLOCK_C, BLOCK_C)
        weight = tl.where(c < C, (stop - start).to(tl.float32), 0.0)
        mean, m2 = merge(weight, mean, m2, own * (stop - start))
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
    """Program = sample x chunk of bordered pixels x block of channels.

    BLOCK_P: at least as many as the partial statistics of one sample.
    """
    pixels = (H + 2 * PAD) * (W + 2 * PAD)
    blocks = tl.cdiv(C, BLOCK_C)
    pieces = tl.cdiv(pixels, chunk)
    # The last sample first: the launch before read it last, so it is still in L2.
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
        mean, m2 = merge(
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
        mean, m2 = merge(
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
    """Program = sample x chunk of bordered pixels x block of channels.

    part_scale, part_bias: [N, pieces, C], the shares of the gradients of scale and bias.
    part_sample: [2, N, pieces, blocks of channels], both, weighted by gamma and summed over the channels (PER_SAMPLE).
    """
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
        x_ptr + n * x_n, x_h, x_w, grad_ptr + n * grad_n, grad_h, grad_w, c, C, H,
        start, tl.minimum(start + chunk, pixels), mean, factor, bias, slope, W, PAD, ACTIVATE, BLOCK_S, BLOCK_C,
    )  # fmt: skip
    at = (n * pieces + piece) * C + c
    tl.store(part_scale_ptr + at, sum_dx * rstd, mask=c < C)
    tl.store(part_bias_ptr + at, sum_d, mask=c < C)
    if PER_SAMPLE:
        at = (n * pieces + piece) * blocks + block
        # Both sums carry one rstd, since factor = gamma * rstd.
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
    """Program = sample x chunk of pixels x block of channels.

    BLOCK_P: at least as many as the partial sums of one sample.
    """
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
        # 1 / rstd is deviation + eps, and this is the deviation's share of it. That of a constant sample is 0, and no
        # gradient passes through it.
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
        x_ptr + n * x_n, x_h, x_w, grad_ptr + n * grad_n, grad_h, grad_w, dx_ptr + n * H * W * C, dresidual_ptr,
        c, C, H, start, tl.minimum(start + chunk, H * W), mean, factor, bias, linear, constant, slope,
        W, PAD, ACTIVATE, BLOCK_S, BLOCK_C,
    )  # fmt: skip


# ---------------------------------------------------------------- launch


def unsuitable(x: Tensor, pad: int) -> str | None:
    """Name what keeps these kernels from x, beyond its device and dtype.

    Args:
        x: input of the operation, of any shape.
        pad: width of the border, pixels.

    Returns:
        The first reason found, or None.
    """
    if x.ndim != 4:
        return f"{x.ndim} dimensions"
    _, channels, height, width = x.shape
    if x.numel() == 0:
        return "no values"
    if not 0 <= pad < min(height, width):
        return "border wider than the image"
    # The unbiased deviation of a single value divides by 0.
    if channels * height * width == 1:
        return "one value a sample"
    if (height + 2 * pad) * (width + 2 * pad) * channels >= 2**31:
        return "samples of 2^31 values"
    return None


def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """Start a kernel. Every launch passes here, so that the tests can count them.

    Args:
        kernel: a jitted function.
        programs: size of the grid, which has one axis.
        args: the kernel's arguments.
        constants: its compile-time constants, and Triton's own (num_warps and the like).
    """
    kernel[(programs,)](*args, **constants)


def _channels_last(x: Tensor, name: str, per_sample: bool) -> Tensor:
    """x with its channels innermost: itself, if the kernels can read it through its strides."""
    span = sum((size - 1) * step for size, step in zip(x.shape[1:], x.stride()[1:], strict=True))
    if (x.stride(1) == 1 or x.shape[1] == 1) and span < 2**31:
        return x
    count("layer_norm" if per_sample else "adain", f"{name} converted to channels-last")
    return x.contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor | None) -> Tensor | None:
    """[N, S, C], [N, C] or [C] with its channels adjacent."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _row_strides(x: Tensor | None) -> tuple[int, ...]:
    """Strides of sample and stripe of [N, S, C]; of the sample alone of [N, C], and of [C], where it is 0."""
    return (0,) if x is None or x.ndim == 1 else x.stride()[:-1]


def _stripes_of(scale: Tensor | None) -> int:
    """The number of stripes of [N, S, C]; 0 where scale is the same in the whole plane."""
    return scale.shape[1] if scale is not None and scale.ndim == 3 else 0


def _strides(x: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if x is None else (x.stride(0), x.stride(2), x.stride(3))


def _candidates(x: Tensor, stripes: int, per_sample: bool, backward: bool) -> list[Tiling]:
    """The tilings worth timing."""
    n, c, h, w = x.shape
    found = tilings(x.element_size(), n, c, h * w, per_sample)
    if not stripes:
        return found
    if backward and x.element_size() == 2:
        # A thread keeps factor, bias and two sums of every value in its part of the tile. Of 16 values, as in 16-bit
        # formats, that is more than its registers hold.
        found = [t._replace(pixels=t.pixels // 2) for t in found]
    return [t for t in found if t.serves_rows(h)]


def forward(
    x: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    slope: float,
    pad: int,
    per_sample: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward kernels.

    Args:
        x: [N, C, H, W].
        scale: [N, C], [N, S, C], or [C] where the statistics are those of a sample; None: plain instance norm.
        bias: as scale.
        residual: [N, C, H, W], added after the activation.
        eps: added to the variance, or to the deviation where the statistics are those of a sample.
        slope: LeakyReLU's; 1.0: no activation.
        pad: width of the border, pixels.
        per_sample: statistics of a sample, with the unbiased deviation, instead of statistics of a plane.

    Returns:
        The output [N, C, H + 2 pad, W + 2 pad], channels-last, and mean and rstd, [N, C] or [N], fp32.
    """
    out, mean, rstd = _empty_forward(x, pad, per_sample)
    x = _channels_last(x, "x", per_sample)
    residual = residual if residual is None else _channels_last(residual, "residual", per_sample)
    scale, bias = _rows(scale), _rows(bias)
    n, c, h, w = x.shape
    tensors = (x, scale, bias, residual, out, mean, rstd)
    strides = (*_strides(x), *_row_strides(scale), *_row_strides(bias), *_strides(residual))
    stripes = _stripes_of(scale)
    constants = {"W": w, "PAD": pad, "ACTIVATE": slope != 1.0}

    def run(t: Tiling) -> None:
        blocks = triton.cdiv(c, t.channels)
        tile = t.constants()
        rows = t.rows(h, w)
        if not t.chunk and stripes:
            launch(
                striped_plane_forward, n * blocks, *tensors, *strides, c, h, stripes, eps, slope,
                ROWS=rows, **constants, **tile,
            )  # fmt: skip
            return
        if not t.chunk:
            launch(_plane_forward, n * blocks, *tensors, *strides, c, h, eps, slope, **constants, **tile)
            return
        chunks = triton.cdiv(h * w, t.chunk)
        pieces = triton.cdiv((h + 2 * pad) * (w + 2 * pad), t.chunk)
        shape = (n, chunks, blocks if per_sample else c)
        part = [torch.empty(shape, dtype=torch.float32, device=x.device) for _ in range(2)]
        launch(
            _split_statistics, n * chunks * blocks, x, *part, *_strides(x), c, h, t.chunk,
            W=w, PER_SAMPLE=per_sample, **tile,
        )  # fmt: skip
        held = triton.next_power_of_2(chunks * blocks if per_sample else chunks)
        if stripes:
            launch(
                striped_split_forward, n * triton.cdiv(h, rows) * blocks, *tensors, *part, *strides, c, h, stripes,
                eps, slope, t.chunk, CHUNKS=held, ROWS=rows, **constants, **tile,
            )  # fmt: skip
            return
        launch(
            _split_forward, n * pieces * blocks, *tensors, *part, *strides, c, h, eps, slope, t.chunk,
            PER_SAMPLE=per_sample, BLOCK_P=held, **constants, **tile,
        )  # fmt: skip

    # Where there are stripes, the rows decide which tilings there are.
    rows = (h, stripes) if stripes else ()
    call = ("forward", x.dtype, c, (h * w).bit_length(), n.bit_length(), pad, per_sample, residual is None, *rows)
    with on_device_of(x):
        run_fastest(x.device, call, _candidates(x, stripes, per_sample, False), run)
    return out, mean, rstd


def backward(
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
    """Launch the backward kernels.

    Args:
        grad: [N, C, H + 2 pad, W + 2 pad], gradient of the output.
        x: [N, C, H, W], the input of `forward`.
        scale: as given to `forward`.
        bias: as given to `forward`.
        mean: [N, C] or [N], as `forward` returned it.
        rstd: [N, C] or [N], as `forward` returned it.
        residual_dtype: dtype of the residual's gradient; None: that is not wanted.
        eps: as given to `forward`.
        slope: as given to `forward`.
        pad: as given to `forward`, pixels.
        per_sample: as given to `forward`.

    Returns:
        Gradients of x, scale, bias and residual. Those of scale and bias are empty, [0], where these are None, and the
        residual's where it is not wanted.
    """
    dx, dscale, dbias, dresidual = _empty_backward(x, scale, bias, residual_dtype)
    grad, x = _channels_last(grad, "gradient", per_sample), _channels_last(x, "x", per_sample)
    scale, bias = _rows(scale), _rows(bias)
    n, c, h, w = x.shape
    tensors = (x, grad, scale, bias, mean, rstd)
    # Gamma and beta belong to all samples: their gradients are summed below, and no program writes them.
    own_rows = scale is not None and not per_sample
    outputs = (
        dx,
        dscale if own_rows else None,
        dbias if own_rows else None,
        None if residual_dtype is None else dresidual,
    )
    strides = (*_strides(x), *_strides(grad), *_row_strides(scale), *_row_strides(bias))
    stripes = _stripes_of(scale)
    constants = {"W": w, "PAD": pad, "ACTIVATE": slope != 1.0}

    def run(t: Tiling) -> None:
        blocks = triton.cdiv(c, t.channels)
        tile = t.constants()
        rows = t.rows(h, w)
        if not t.chunk and stripes:
            launch(
                striped_plane_backward, n * blocks, *tensors, *outputs, *strides, c, h, stripes, slope,
                ROWS=rows, **constants, **tile,
            )  # fmt: skip
            return
        if stripes:
            pieces = triton.cdiv(h, rows)
            sums = [
                torch.empty((n, length, c), dtype=torch.float32, device=x.device) for length in (h, h, pieces, pieces)
            ]
            launch(
                striped_split_sums, n * pieces * blocks, *tensors, *sums, *strides, c, h, stripes, slope,
                ROWS=rows, **constants, **tile,
            )  # fmt: skip
            launch(
                striped_split_backward, n * pieces * blocks, *tensors, *sums, *outputs, *strides, c, h, stripes, slope,
                ROWS=rows, **constants, **tile,
            )  # fmt: skip
            return
        if not t.chunk:
            launch(_plane_backward, n * blocks, *tensors, *outputs, *strides, c, h, slope, **constants, **tile)
            return
        chunks = triton.cdiv(h * w, t.chunk)
        pieces = triton.cdiv((h + 2 * pad) * (w + 2 * pad), t.chunk)
        part = torch.empty((2, n, pieces, c), dtype=torch.float32, device=x.device)
        sample = torch.empty((2, n, pieces, blocks), dtype=torch.float32, device=x.device) if per_sample else None
        parts = (part[0], part[1], sample)
        launch(
            _split_sums, n * pieces * blocks, *tensors, *parts, *strides, c, h, slope, t.chunk,
            PER_SAMPLE=per_sample, **constants, **tile,
        )  # fmt: skip
        held = triton.next_power_of_2(pieces * blocks if per_sample else pieces)
        launch(
            _split_backward, n * chunks * blocks, *tensors, *parts, *outputs, *strides, c, h, eps, slope, t.chunk, n,
            PER_SAMPLE=per_sample, BLOCK_P=held, **constants, **tile,
        )  # fmt: skip
        if per_sample:
            dscale.copy_(part[0].sum((0, 1)))
            dbias.copy_(part[1].sum((0, 1)))

    # Where there are stripes, the rows decide which tilings there are.
    rows = (h, stripes) if stripes else ()
    call = ("backward", x.dtype, c, (h * w).bit_length(), n.bit_length(), pad, per_sample, residual_dtype, *rows)
    with on_device_of(x):
        run_fastest(x.device, call, _candidates(x, stripes, per_sample, True), run)
    return dx, dscale, dbias, dresidual


# ---------------------------------------------------------------- custom operators and their derivative


def _empty_forward(x: Tensor, pad: int, per_sample: bool) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    shape = (n, c, h + 2 * pad, w + 2 * pad)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    mean, rstd = (torch.empty((n,) if per_sample else (n, c), dtype=torch.float32, device=x.device) for _ in range(2))
    return out, mean, rstd


def _empty_backward(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, residual_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def image(dtype: torch.dtype) -> Tensor:
        return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)

    def row(like: Tensor | None) -> Tensor:
        if like is None:
            return x.new_empty(0)
        return torch.empty(like.shape, dtype=like.dtype, device=x.device)

    dresidual = x.new_empty(0) if residual_dtype is None else image(residual_dtype)
    return image(x.dtype), row(scale), row(bias), dresidual


# The arguments of both operators are those of `forward` and `backward`.
normalise = torch.library.custom_op("dgfast::inject", forward, mutates_args=())
normalise_backward = torch.library.custom_op("dgfast::inject_backward", backward, mutates_args=())


@normalise.register_fake
def _(x: Tensor, scale: Any, bias: Any, residual: Any, eps: float, slope: float, pad: int, per_sample: bool) -> Any:
    return _empty_forward(x, pad, per_sample)


@normalise_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: Any, bias: Any, mean: Any, rstd: Any, residual_dtype: Any, *_: Any) -> Any:
    return _empty_backward(x, scale, bias, residual_dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, scale, bias, residual, *ctx.settings = inputs
    _, mean, rstd = output
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.save_for_backward(x, scale, bias, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # else zeros would be launched for the gradients of the statistics


def _differentiate(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    x, scale, bias, mean, rstd = ctx.saved_tensors
    eps, slope, pad, per_sample = ctx.settings
    wanted = ctx.needs_input_grad
    # Without a border the residual's gradient is the incoming one. With a border the kernel adds the border's to it.
    folded = ctx.residual_dtype if wanted[3] and pad else None
    found: tuple[Tensor | None, ...] = (None,) * 4
    if any(wanted[:3]) or folded is not None:
        found = normalise_backward(grad, x, scale, bias, mean, rstd, folded, eps, slope, pad, per_sample)
    if wanted[3] and not pad:
        found = (*found[:3], grad.to(ctx.residual_dtype))
    gradients = (value if want else None for value, want in zip(found, wanted[:4], strict=True))
    return *gradients, None, None, None, None


normalise.register_autograd(_differentiate, setup_context=_save)
