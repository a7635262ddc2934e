"""What the normalising kernels share, whichever way they walk over an image: reflection and statistics."""

import triton
import triton.language as tl


@triton.jit
def reflected(i, size):
    """Find the pixel that pixel i shows, where i may lie in the border.

    Args:
        i: place along one axis of the image, -size < i < 2 size - 1; outside of 0 to size - 1 it is in the border.
        size: of that axis, pixels.
    """
    i = tl.abs(i)
    return tl.minimum(i, 2 * (size - 1) - i)


@triton.jit
def place(i, size, PAD: tl.constexpr, side):
    """Find where pixel i appears along one axis of the bordered image, and whether it does.

    Args:
        i: place along one axis of the image.
        size: of that axis, pixels.
        PAD: width of the border, pixels.
        side: 0 asks for its own place, 1 for the one in the border before the image, 2 for the one in the border after
            it.
    """
    at = tl.where(side == 0, i + PAD, tl.where(side == 1, PAD - i, 2 * (size - 1) - i + PAD))
    before = (i >= 1) & (i <= PAD)
    after = (i >= size - 1 - PAD) & (i <= size - 2)
    return at, (side == 0) | ((side == 1) & before) | ((side == 2) & after)


@triton.jit
def welford(x_ptr, x_h, x_w, c, C, start, stop, W: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    """Count [BLOCK_S], mean and sum of squared deviations [BLOCK_S, BLOCK_C] of some pixels of one sample.

    Each place of the tile follows its own series of pixels, so that the loop needs no reduction across threads.

    Args:
        x_ptr: the sample, [H, W, C].
        x_h: stride of its rows.
        x_w: stride of its columns.
        c: [BLOCK_C], channels.
        C: number of channels.
        start: the first pixel.
        stop: the pixel after the last.
        W: width of the image, pixels.
        BLOCK_S: pixels of a tile.
        BLOCK_C: channels of a tile.
    """
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
def merge(count, mean, m2, total):
    """Mean and sum of squared deviations of all, by Chan's formula along the first axis.

    Args:
        count: of values behind each mean; broadcasts against it.
        mean: of each part.
        m2: sum of squared deviations of each part.
        total: the sum of the counts.
    """
    merged = tl.sum(count * mean, 0) / total
    away = mean - merged[None]
    return merged, tl.sum(m2 + count * away * away, 0)
