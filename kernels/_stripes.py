"""The kernels of `adain` with scale and bias [N, S, C]: one row for each of S horizontal stripes of the image.

    place     = max((h + 1/2) S / H - 1/2, 0)              of row h, in stripes; 0 is the centre of the first
    above     = floor(place), below = min(above + 1, S - 1), weight = place - above
    scale[h]  = scale[above] + weight (scale[below] - scale[above])          and likewise bias[h]
    factor[h] = scale[h] rstd
    y         = factor[h] (x - mean) + bias[h]

The rest is as in `_normalise.py`, which launches these kernels and has their pointers, strides and names.

Scale and bias differ from row to row, so the tile is ROWS x columns: a program owns ROWS rows of one sample, and walks
over their columns. So each thread stays in its rows. It interpolates once, before it walks, and its sums over the walk
are sums of its rows, which is what the gradients of scale and bias are made of. The rows of the border belong to the
program of the row that they show. The walk over the columns crosses the border.

    plane   one launch; ROWS is at least H
    split   two launches. The backward pass keeps, between both, each row's sums [N, H, C] for scale and bias, and for
            dx each program's sums, weighted by factor, [N, pieces, C]

Sums are formed in a fixed order.
"""

import triton
import triton.language as tl

from ._pixels import merge, place, reflected, welford

BLOCK_P = tl.constexpr(32)  # partial sums that are read at once


@triton.jit
def _neighbours(h, H, S):
    """The stripes whose centres are next to row h above and below, and the weight of the one below."""
    # 2 H times the place, in integers, so that it is exact; below 2^31, since the operation takes less than 2^23 rows.
    steps = tl.maximum((2 * h + 1) * S - H, 0)
    above = tl.minimum(steps // (2 * H), S - 1)
    weight = (steps - above * (2 * H)).to(tl.float32) / (2 * H)
    return above, tl.minimum(above + 1, S - 1), weight


@triton.jit
def _share(h, H, S, s):
    """What row h takes of stripe s."""
    above, below, weight = _neighbours(h, H, S)
    return tl.where(above == s, 1.0 - weight, 0.0) + tl.where(below == s, weight, 0.0)


@triton.jit
def _interpolate(ptr, stride, above, below, weight, c, there):
    """Values of the rows, [BLOCK_S, BLOCK_C], from those of the stripes at ptr."""
    one = tl.load(ptr + above.to(tl.int64)[:, None] * stride + c[None, :], mask=there, other=0.0).to(tl.float32)
    other = tl.load(ptr + below.to(tl.int64)[:, None] * stride + c[None, :], mask=there, other=0.0).to(tl.float32)
    return one + weight[:, None] * (other - one)


@triton.jit
def _affine(scale_ptr, bias_ptr, scale_s, bias_s, h, H, S, c, C, rstd):
    """factor = scale * rstd and bias of rows h, [BLOCK_S, BLOCK_C] each; the pointers are at the sample."""
    above, below, weight = _neighbours(h, H, S)
    there = (h < H)[:, None] & (c < C)[None, :]
    scale = _interpolate(scale_ptr, scale_s, above, below, weight, c, there)
    return scale * rstd[None, :], _interpolate(bias_ptr, bias_s, above, below, weight, c, there)


@triton.jit
def _write_output(
    x_ptr, x_h, x_w, residual_ptr, residual_h, residual_w, out_ptr, c, C, h, H, mean, factor, bias, slope,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, ROWS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Write rows h of the output, and the rows of the border that show them."""
    COLUMNS: tl.constexpr = BLOCK_S // ROWS
    for i in range(0, tl.cdiv(W + 2 * PAD, COLUMNS)):
        column = i * COLUMNS + tl.arange(0, BLOCK_S) % COLUMNS
        there = ((h < H) & (column < W + 2 * PAD))[:, None] & (c < C)[None, :]
        w = column
        if PAD > 0:
            w = reflected(column - PAD, W)
        x = tl.load(x_ptr + (h * x_h + w * x_w)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        y = (x - mean[None, :]) * factor + bias
        if ACTIVATE:
            y = tl.where(y > 0, y, y * slope)
        if residual_ptr is not None:
            offset = h * residual_h + w * residual_w
            y += tl.load(residual_ptr + offset[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        y = y.to(out_ptr.dtype.element_ty)
        pixel = (h + PAD) * (W + 2 * PAD) + column
        tl.store(out_ptr + (pixel * C)[:, None] + c[None, :], y, mask=there)
        if PAD > 0:
            for side in tl.static_range(1, 3):
                row, shown = place(h, H, PAD, side)
                pixel = row * (W + 2 * PAD) + column
                tl.store(out_ptr + (pixel * C)[:, None] + c[None, :], y, mask=there & shown[:, None])


@triton.jit
def _sum_gradients(
    x_ptr, x_h, x_w, grad_ptr, grad_h, grad_w, c, C, h, H, mean, factor, bias, slope,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of d and of d * (x - mean) along the walk, [BLOCK_S, BLOCK_C] each; d is the gradient before the activation.

    A row of the border counts for the row that it shows.
    """
    COLUMNS: tl.constexpr = BLOCK_S // ROWS
    sum_d = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    sum_dx = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    for i in range(0, tl.cdiv(W + 2 * PAD, COLUMNS)):
        column = i * COLUMNS + tl.arange(0, BLOCK_S) % COLUMNS
        there = ((h < H) & (column < W + 2 * PAD))[:, None] & (c < C)[None, :]
        offset = (h + PAD) * grad_h + column * grad_w
        d = tl.load(grad_ptr + offset[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        w = column
        if PAD > 0:
            w = reflected(column - PAD, W)
            for side in tl.static_range(1, 3):
                row, shown = place(h, H, PAD, side)
                offset = row * grad_h + column * grad_w
                mask = there & shown[:, None]
                d += tl.load(grad_ptr + offset[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + (h * x_h + w * x_w)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        away = x - mean[None, :]
        if ACTIVATE:
            d = tl.where(away * factor + bias > 0, d, d * slope)
        sum_d += d
        sum_dx += d * away
    return sum_d, sum_dx


@triton.jit
def _of_rows(sums, ROWS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    """[BLOCK_S, BLOCK_C] -> [ROWS, BLOCK_C]: what the threads of a row have summed, together."""
    return tl.sum(tl.reshape(sums, (ROWS, BLOCK_S // ROWS, BLOCK_C)), 1)


@triton.jit
def _write_gradient(
    x_ptr, x_h, x_w, grad_ptr, grad_h, grad_w, dx_ptr, dresidual_ptr, c, C, h, H, mean, factor, bias, linear, constant,
    slope, W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, ROWS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Write dx = factor * d + linear * (x - mean) + constant of rows h.

    d holds the gradient of the pixel and of all places in the border that show it.
    """
    COLUMNS: tl.constexpr = BLOCK_S // ROWS
    for i in range(0, tl.cdiv(W, COLUMNS)):
        w = i * COLUMNS + tl.arange(0, BLOCK_S) % COLUMNS
        inside = (h < H) & (w < W)
        there = inside[:, None] & (c < C)[None, :]
        offset = (h + PAD) * grad_h + (w + PAD) * grad_w
        d = tl.load(grad_ptr + offset[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        if PAD > 0:
            for side in tl.static_range(1, 3):
                row, shown = place(h, H, PAD, side)
                offset = row * grad_h + (w + PAD) * grad_w
                mask = (inside & shown)[:, None] & (c < C)[None, :]
                d += tl.load(grad_ptr + offset[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
            # Few tiles touch the columns that the borders left and right show; the others skip these six loads. The
            # loop is not unrolled, so that the loads cost those others no registers.
            if (i * COLUMNS <= PAD) | (i * COLUMNS + COLUMNS - 1 >= W - 1 - PAD):
                for k in range(3, 9):
                    row, row_shown = place(h, H, PAD, k % 3)
                    column, shown = place(w, W, PAD, k // 3)
                    offset = row * grad_h + column * grad_w
                    mask = (inside & row_shown & shown)[:, None] & (c < C)[None, :]
                    d += tl.load(grad_ptr + offset[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
        at = ((h * W + w) * C)[:, None] + c[None, :]
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + at, d.to(dresidual_ptr.dtype.element_ty), mask=there)
        x = tl.load(x_ptr + (h * x_h + w * x_w)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
        away = x - mean[None, :]
        if ACTIVATE:
            d = tl.where(away * factor + bias > 0, d, d * slope)
        dx = factor * d + (linear[None, :] * away + constant[None, :])
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=there)


@triton.jit
def striped_plane_forward(
    x_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, mean_ptr, rstd_ptr,
    x_n, x_h, x_w, scale_n, scale_s, bias_n, bias_s, residual_n, residual_h, residual_w, C, H, S, eps, slope,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
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
    h = tl.arange(0, BLOCK_S) // (BLOCK_S // ROWS)
    factor, bias = _affine(scale_ptr + n * scale_n, bias_ptr + n * bias_n, scale_s, bias_s, h, H, S, c, C, rstd)
    if residual_ptr is not None:
        residual_ptr += n * residual_n
    _write_output(
        x_ptr, x_h, x_w, residual_ptr, residual_h, residual_w, out_ptr + n * (H + 2 * PAD) * (W + 2 * PAD) * C,
        c, C, h, H, mean, factor, bias, slope, W, PAD, ACTIVATE, ROWS, BLOCK_S,
    )  # fmt: skip


@triton.jit
def striped_plane_backward(
    x_ptr, grad_ptr, scale_ptr, bias_ptr, mean_ptr, rstd_ptr, dx_ptr, dscale_ptr, dbias_ptr, dresidual_ptr,
    x_n, x_h, x_w, grad_n, grad_h, grad_w, scale_n, scale_s, bias_n, bias_s, C, H, S, slope,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program = sample x block of channels."""
    n = (tl.program_id(0) // tl.cdiv(C, BLOCK_C)).to(tl.int64)
    c = tl.program_id(0) % tl.cdiv(C, BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    x_ptr += n * x_n
    grad_ptr += n * grad_n
    mean = tl.load(mean_ptr + n * C + c, mask=c < C, other=0.0)
    rstd = tl.load(rstd_ptr + n * C + c, mask=c < C, other=0.0)
    h = tl.arange(0, BLOCK_S) // (BLOCK_S // ROWS)
    factor, bias = _affine(scale_ptr + n * scale_n, bias_ptr + n * bias_n, scale_s, bias_s, h, H, S, c, C, rstd)
    sum_d, sum_dx = _sum_gradients(
        x_ptr, x_h, x_w, grad_ptr, grad_h, grad_w, c, C, h, H, mean, factor, bias, slope,
        W, PAD, ACTIVATE, ROWS, BLOCK_S, BLOCK_C,
    )  # fmt: skip
    linear = -rstd * rstd * tl.sum(factor * sum_dx, 0) / (H * W)
    constant = -tl.sum(factor * sum_d, 0) / (H * W)
    rows_d, rows_dx = _of_rows(sum_d, ROWS, BLOCK_S, BLOCK_C), _of_rows(sum_dx, ROWS, BLOCK_S, BLOCK_C)
    for s in range(0, S):
        share = _share(tl.arange(0, ROWS), H, S, s)[:, None]
        dscale, dbias = tl.sum(share * rows_dx, 0) * rstd, tl.sum(share * rows_d, 0)
        tl.store(dscale_ptr + (n * S + s) * C + c, dscale.to(dscale_ptr.dtype.element_ty), mask=c < C)
        tl.store(dbias_ptr + (n * S + s) * C + c, dbias.to(dbias_ptr.dtype.element_ty), mask=c < C)
    if dresidual_ptr is not None:
        dresidual_ptr += n * H * W * C
    _write_gradient(
        x_ptr, x_h, x_w, grad_ptr, grad_h, grad_w, dx_ptr + n * H * W * C, dresidual_ptr, c, C, h, H,
        mean, factor, bias, linear, constant, slope, W, PAD, ACTIVATE, ROWS, BLOCK_S,
    )  # fmt: skip


@triton.jit
def striped_split_forward(
    x_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, mean_ptr, rstd_ptr, part_mean_ptr, part_m2_ptr,
    x_n, x_h, x_w, scale_n, scale_s, bias_n, bias_s, residual_n, residual_h, residual_w, C, H, S, eps, slope, chunk,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, ROWS: tl.constexpr,
    CHUNKS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program = sample x ROWS rows x block of channels.

    part_mean, part_m2: [N, chunks, C], the statistics of chunks of `chunk` pixels, which need not be whole rows.
    CHUNKS: at least as many as the chunks of one sample.
    """
    blocks = tl.cdiv(C, BLOCK_C)
    pieces = tl.cdiv(H, ROWS)
    # The last sample first: the launch before read it last, so it is still in L2.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n = (program // (blocks * pieces)).to(tl.int64)
    piece = program // blocks % pieces
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    chunks = tl.cdiv(H * W, chunk)
    p = tl.arange(0, CHUNKS)
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
    h = piece * ROWS + tl.arange(0, BLOCK_S) // (BLOCK_S // ROWS)
    factor, bias = _affine(scale_ptr + n * scale_n, bias_ptr + n * bias_n, scale_s, bias_s, h, H, S, c, C, rstd)
    if residual_ptr is not None:
        residual_ptr += n * residual_n
    _write_output(
        x_ptr + n * x_n, x_h, x_w, residual_ptr, residual_h, residual_w,
        out_ptr + n * (H + 2 * PAD) * (W + 2 * PAD) * C,
        c, C, h, H, mean, factor, bias, slope, W, PAD, ACTIVATE, ROWS, BLOCK_S,
    )  # fmt: skip


@triton.jit
def striped_split_sums(
    x_ptr, grad_ptr, scale_ptr, bias_ptr, mean_ptr, rstd_ptr, rows_dx_ptr, rows_d_ptr, part_dx_ptr, part_d_ptr,
    x_n, x_h, x_w, grad_n, grad_h, grad_w, scale_n, scale_s, bias_n, bias_s, C, H, S, slope,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program = sample x ROWS rows x block of channels.

    rows_dx, rows_d: [N, H, C], the sums of each row.
    part_dx, part_d: [N, pieces, C], the sums of each program, weighted by factor.
    """
    blocks = tl.cdiv(C, BLOCK_C)
    pieces = tl.cdiv(H, ROWS)
    n = (tl.program_id(0) // (blocks * pieces)).to(tl.int64)
    piece = tl.program_id(0) // blocks % pieces
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = tl.load(mean_ptr + n * C + c, mask=c < C, other=0.0)
    rstd = tl.load(rstd_ptr + n * C + c, mask=c < C, other=0.0)
    h = piece * ROWS + tl.arange(0, BLOCK_S) // (BLOCK_S // ROWS)
    factor, bias = _affine(scale_ptr + n * scale_n, bias_ptr + n * bias_n, scale_s, bias_s, h, H, S, c, C, rstd)
    sum_d, sum_dx = _sum_gradients(
        x_ptr + n * x_n, x_h, x_w, grad_ptr + n * grad_n, grad_h, grad_w, c, C, h, H, mean, factor, bias, slope,
        W, PAD, ACTIVATE, ROWS, BLOCK_S, BLOCK_C,
    )  # fmt: skip
    at = (n * pieces + piece) * C + c
    tl.store(part_dx_ptr + at, tl.sum(factor * sum_dx, 0), mask=c < C)
    tl.store(part_d_ptr + at, tl.sum(factor * sum_d, 0), mask=c < C)
    row = piece * ROWS + tl.arange(0, ROWS)
    at = (n * H + row)[:, None] * C + c[None, :]
    there = (row < H)[:, None] & (c < C)[None, :]
    tl.store(rows_dx_ptr + at, _of_rows(sum_dx, ROWS, BLOCK_S, BLOCK_C), mask=there)
    tl.store(rows_d_ptr + at, _of_rows(sum_d, ROWS, BLOCK_S, BLOCK_C), mask=there)


@triton.jit
def _sum_parts(ptr, n, pieces, c, C, BLOCK_C: tl.constexpr):
    """[BLOCK_C], the sum over the pieces of sample n; ptr is at [N, pieces, C]."""
    total = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, pieces, BLOCK_P):
        piece = first + tl.arange(0, BLOCK_P)
        at = (n * pieces + piece)[:, None] * C + c[None, :]
        total += tl.sum(tl.load(ptr + at, mask=(piece < pieces)[:, None] & (c < C)[None, :], other=0.0), 0)
    return total


@triton.jit
def striped_split_backward(
    x_ptr, grad_ptr, scale_ptr, bias_ptr, mean_ptr, rstd_ptr, rows_dx_ptr, rows_d_ptr, part_dx_ptr, part_d_ptr,
    dx_ptr, dscale_ptr, dbias_ptr, dresidual_ptr,
    x_n, x_h, x_w, grad_n, grad_h, grad_w, scale_n, scale_s, bias_n, bias_s, C, H, S, slope,
    W: tl.constexpr, PAD: tl.constexpr, ACTIVATE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program = sample x ROWS rows x block of channels; the pointers in between as in `striped_split_sums`."""
    blocks = tl.cdiv(C, BLOCK_C)
    pieces = tl.cdiv(H, ROWS)
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n = (program // (blocks * pieces)).to(tl.int64)
    piece = program // blocks % pieces
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = tl.load(mean_ptr + n * C + c, mask=c < C, other=0.0)
    rstd = tl.load(rstd_ptr + n * C + c, mask=c < C, other=0.0)
    # The programs of a sample share its stripes.
    for s in range(piece, S, pieces):
        dscale = tl.zeros((BLOCK_C,), tl.float32)
        dbias = tl.zeros((BLOCK_C,), tl.float32)
        # Only rows between the centres of the stripes before and after can have a share of this one.
        start = tl.maximum((2 * s - 1) * H // (2 * S) - 1, 0)
        stop = tl.minimum((2 * s + 3) * H // (2 * S) + 1, H)
        for i in range(start, stop, BLOCK_P):
            row = i + tl.arange(0, BLOCK_P)
            share = _share(row, H, S, s)[:, None]
            at = (n * H + row)[:, None] * C + c[None, :]
            there = (row < stop)[:, None] & (c < C)[None, :]
            dscale += tl.sum(share * tl.load(rows_dx_ptr + at, mask=there, other=0.0), 0)
            dbias += tl.sum(share * tl.load(rows_d_ptr + at, mask=there, other=0.0), 0)
        dscale *= rstd
        tl.store(dscale_ptr + (n * S + s) * C + c, dscale.to(dscale_ptr.dtype.element_ty), mask=c < C)
        tl.store(dbias_ptr + (n * S + s) * C + c, dbias.to(dbias_ptr.dtype.element_ty), mask=c < C)
    linear = -rstd * rstd * _sum_parts(part_dx_ptr, n, pieces, c, C, BLOCK_C) / (H * W)
    constant = -_sum_parts(part_d_ptr, n, pieces, c, C, BLOCK_C) / (H * W)
    h = piece * ROWS + tl.arange(0, BLOCK_S) // (BLOCK_S // ROWS)
    factor, bias = _affine(scale_ptr + n * scale_n, bias_ptr + n * bias_n, scale_s, bias_s, h, H, S, c, C, rstd)
    if dresidual_ptr is not None:
        dresidual_ptr += n * H * W * C
    _write_gradient(
        x_ptr + n * x_n, x_h, x_w, grad_ptr + n * grad_n, grad_h, grad_w, dx_ptr + n * H * W * C, dresidual_ptr,
        c, C, h, H, mean, factor, bias, linear, constant, slope, W, PAD, ACTIVATE, ROWS, BLOCK_S,
    )  # fmt: skip
