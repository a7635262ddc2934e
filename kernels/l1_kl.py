"""The combined L1/KL loss: every elementwise term of the generator's objective, with its gradients, in one launch.

    term_i = mean |prediction_i - target_i|                             one for each pair, of any shape
    label  = mean_v softmax(teacher_logits[v])                          [N, K]; or `labels`, ready probabilities
    kl     = mean_n sum_k label[n, k] (log label[n, k] - log softmax(student_logits)[n, k])
    total  = sum_i weight_i term_i + kl_weight kl

    d total / d prediction_i   = weight_i / size_i * sign(prediction_i - target_i)       (0 where they are equal)
    d total / d student_logits = kl_weight / N * (softmax(student_logits) sum_k label - label)

Source: DG-Net (CVPR 2019): reconstructions, equations 1, 2, 4 and 5; the soft label's divergence, 8.

The incoming gradient of a scalar is one number. So the pass that reads the inputs can write the gradients as if that
number were 1, and nothing is read twice. The backward pass multiplies them in place by the incoming gradient. A program
that finds 1 there returns at once: one launch and no traffic, and the host need not ask for the number. (Under
torch.compile the product is left to the compiler, which fuses it into whatever reads the gradient.) Gradients of fp16
predictions are kept as signs, and get weight / size in the backward pass, where the loss scale is in the incoming
gradient: weight / size alone is below what fp16 can hold.

The addresses, sizes and weights of all pairs are arguments of the launch. So no table is copied to the device, and CUDA
graphs can capture the launch. Sums are deterministic: every program leaves a partial sum, and one program adds them in
a fixed order, in fp64. Whoever replays a captured launch with other weights gives them as tensors: the kernels then
read them from the device's memory.

Tests: tests/test_l1_kl.py runs the kernels in Triton's interpreter against fp64, within the TOLERANCES of
tests/interpreted/l1_kl_cases.py, and compiles them for three GPUs. Speed: bench/bench_l1_kl.py. No fraction of a card's
bandwidth has been measured yet (docs/benchmarks.md).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ._dispatch import on_device_of, takes_triton

Pairs = Sequence[tuple[Tensor, Tensor]]

TILE = 4096  # bytes of each tensor that a program handles at once: two 16-byte accesses for each thread of 4 warps
PROGRAMS = 4096  # about how many programs share the pairs: a few waves on the large cards
CLASSES = 512  # classes that a program handles at once
PAIRS_A_LAUNCH = 24  # whose addresses, sizes and strides fit the 4 KB of a kernel's arguments
DIMENSIONS = 4  # at most, of a pair whose two tensors lie differently in memory, after merging what can be merged
PARTIALS = 256  # partial sums of one term that are added at once
SCALERS = 1024  # programs of the backward pass: few, since mostly they find nothing to do

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


# ---------------------------------------------------------------- eager reference


def l1_kl_eager(
    pairs: Pairs,
    weights: Sequence[float | Tensor],
    student_logits: Tensor | None,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    kl_weight: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute the formulas in PyTorch operations, in fp32, or in fp64 if any input is fp64.

    This is the CPU's path, the oracle of the tests and the baseline of the benchmark.

    Args:
        pairs: (found, wanted), of equal shapes; like the others as `l1_kl_loss` takes it.
        weights: of the pairs.
        student_logits: [N, K].
        teacher_logits: [V, N, K].
        labels: [N, K], in place of teacher_logits.
        kl_weight: of the divergence.
    """
    inputs = [x for pair in pairs for x in pair] + [
        x for x in (student_logits, teacher_logits, labels) if x is not None
    ]
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32
    factors = list(weights)
    terms = [F.l1_loss(p.to(dtype), t.detach().to(dtype)) for p, t in pairs]
    if student_logits is not None:
        label = labels if teacher_logits is None else teacher_logits.to(dtype).softmax(-1).mean(0)
        assert label is not None  # checked by `_check`
        terms.append(F.kl_div(student_logits.to(dtype).log_softmax(1), label.to(dtype).detach(), reduction="batchmean"))
        factors.append(kl_weight)
    total = functools.reduce(torch.add, [factor * term for factor, term in zip(factors, terms, strict=True)])
    return total, torch.stack(terms).detach()


# ---------------------------------------------------------------- kernels
#
# The pairs of one kind (dtypes, alignment, layout, gradient or not; see `_Kind`) are neighbours in the launch: pairs LO
# to HI - 1. `starts` holds the first program of each pair; a program finds its pair by comparing its number with them.


@triton.jit
def _pick(values, starts, program, LO: tl.constexpr, HI: tl.constexpr):
    """Integer of the pair that `program` works on."""
    chosen = tl.cast(values[LO], tl.int64)
    for i in tl.static_range(LO + 1, HI):
        chosen = tl.where(program >= starts[i], tl.cast(values[i], tl.int64), chosen)
    return chosen


@triton.jit
def _pick_float(values, starts, program, LO: tl.constexpr, HI: tl.constexpr):
    """Number of the pair that `program` works on."""
    chosen = tl.cast(values[LO], tl.float32)
    for i in tl.static_range(LO + 1, HI):
        chosen = tl.where(program >= starts[i], tl.cast(values[i], tl.float32), chosen)
    return chosen


@triton.jit
def _pick_layout(layouts, entry, starts, program, LO: tl.constexpr, HI: tl.constexpr):
    """Entry `entry` of the layout of the pair that `program` works on."""
    chosen = tl.cast(layouts[LO][entry], tl.int64)
    for i in tl.static_range(LO + 1, HI):
        chosen = tl.where(program >= starts[i], tl.cast(layouts[i][entry], tl.int64), chosen)
    return chosen


@triton.jit
def _at(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The address as a pointer, with the alignment that 16-byte loads and stores need where it is known."""
    pointer = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _l1_tile(prediction, target, gradient, lane, inside, scale, GRADIENT: tl.constexpr, MASKED: tl.constexpr):
    """|prediction - target| of one tile [TILE] of tensors that lie alike; writes the gradient, `scale` times a sign."""
    if MASKED:
        d = tl.load(prediction + lane, mask=inside, other=0.0).to(tl.float32)
        d -= tl.load(target + lane, mask=inside, other=0.0).to(tl.float32)
    else:
        d = tl.load(prediction + lane).to(tl.float32) - tl.load(target + lane).to(tl.float32)
    if GRADIENT:
        slope = tl.where(d > 0, scale, tl.where(d < 0, -scale, 0.0)).to(gradient.dtype.element_ty)
        if MASKED:
            tl.store(gradient + lane, slope, mask=inside)
        else:
            tl.store(gradient + lane, slope)
    return tl.abs(d)


@triton.jit
def _l1_alike(
    prediction, target, gradient, size, first, scale, tiles, DTYPE_P: tl.constexpr, DTYPE_T: tl.constexpr,
    ALIGNED: tl.constexpr, GRADIENT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sum of |prediction - target| over elements first .. first + tiles * TILE of two tensors that lie alike in memory.

    prediction, target, gradient: addresses of [size] elements.
    """
    p = _at(prediction, DTYPE_P, ALIGNED) + first
    t = _at(target, DTYPE_T, ALIGNED) + first
    g = _at(gradient, DTYPE_P, ALIGNED) + first
    lane = tl.arange(0, TILE)
    total = tl.zeros((TILE,), tl.float32)
    left = size - first
    # Whole tiles carry no mask. The size is not known when the kernel is compiled, and a mask made of it would have
    # every value loaded by itself.
    whole = tl.minimum(left // TILE, tiles).to(tl.int32)
    for i in range(whole):
        total += _l1_tile(p + i * TILE, t + i * TILE, g + i * TILE, lane, True, scale, GRADIENT, False)
    if whole < tiles:
        rest = whole * TILE
        total += _l1_tile(p + rest, t + rest, g + rest, lane, lane < left - rest, scale, GRADIENT, True)
    return tl.sum(total, 0)


@triton.jit
def _l1_strided(
    prediction, target, gradient, size, first, scale, tiles, n1, n2, n3, p0, p1, p2, p3, t0, t1, t2, t3,
    DTYPE_P: tl.constexpr, DTYPE_T: tl.constexpr, GRADIENT: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """As `_l1_alike` for tensors that lie differently in memory.

    Elements are counted in the gradient's order, [., n1, n2, n3]; strides p0..p3 of the prediction, t0..t3 of the
    target.
    """
    p = _at(prediction, DTYPE_P, False)
    t = _at(target, DTYPE_T, False)
    g = _at(gradient, DTYPE_P, False)
    if not WIDE:  # 32-bit divisions are several times cheaper
        n1, n2, n3 = n1.to(tl.int32), n2.to(tl.int32), n3.to(tl.int32)
    total = tl.zeros((TILE,), tl.float32)
    for i in range(tiles):
        index = first + i * TILE + tl.arange(0, TILE)
        inside = index < size
        rest = index if WIDE else index.to(tl.int32)
        i3 = (rest % n3).to(tl.int64)
        rest = rest // n3
        i2 = (rest % n2).to(tl.int64)
        rest = rest // n2
        i1 = (rest % n1).to(tl.int64)
        i0 = (rest // n1).to(tl.int64)
        d = tl.load(p + i0 * p0 + i1 * p1 + i2 * p2 + i3 * p3, mask=inside, other=0.0).to(tl.float32)
        d -= tl.load(t + i0 * t0 + i1 * t1 + i2 * t2 + i3 * t3, mask=inside, other=0.0).to(tl.float32)
        if GRADIENT:
            slope = tl.where(d > 0, scale, tl.where(d < 0, -scale, 0.0))
            tl.store(g + index, slope.to(g.dtype.element_ty), mask=inside)
        total += tl.abs(d)
    return tl.sum(total, 0)


@triton.jit
def _l1_kind(
    program, starts, predictions, targets, gradients, sizes, scales, weights_ptr, layouts, tiles,
    LO: tl.constexpr, HI: tl.constexpr, DTYPE_P: tl.constexpr, DTYPE_T: tl.constexpr, STRIDED: tl.constexpr,
    ALIGNED: tl.constexpr, GRADIENT: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    """The partial sum of `program`, whose pair is of this kind."""
    prediction = _pick(predictions, starts, program, LO, HI)
    target = _pick(targets, starts, program, LO, HI)
    gradient = _pick(gradients, starts, program, LO, HI)
    size = _pick(sizes, starts, program, LO, HI)
    if STORED:  # divided in fp64, as the host does it
        weight = tl.load(weights_ptr + _pick(scales, starts, program, LO, HI))
        scale = (weight / size.to(tl.float64)).to(tl.float32)
    else:
        scale = _pick_float(scales, starts, program, LO, HI)
    # A tile has as many bytes, not as many elements, for each dtype. With one length for all, Triton would distribute
    # all kinds over the threads alike, and convert through shared memory where that does not suit. A strided tile is a
    # quarter as long, because its addresses take many registers.
    LENGTH: tl.constexpr = TILE * 8 // DTYPE_P.primitive_bitwidth
    first = (program - _pick(starts, starts, program, LO, HI)) * tiles * LENGTH
    if STRIDED:
        value = _l1_strided(
            prediction, target, gradient, size, first, scale, tiles * 4,
            _pick_layout(layouts, 0, starts, program, LO, HI), _pick_layout(layouts, 1, starts, program, LO, HI),
            _pick_layout(layouts, 2, starts, program, LO, HI), _pick_layout(layouts, 3, starts, program, LO, HI),
            _pick_layout(layouts, 4, starts, program, LO, HI), _pick_layout(layouts, 5, starts, program, LO, HI),
            _pick_layout(layouts, 6, starts, program, LO, HI), _pick_layout(layouts, 7, starts, program, LO, HI),
            _pick_layout(layouts, 8, starts, program, LO, HI), _pick_layout(layouts, 9, starts, program, LO, HI),
            _pick_layout(layouts, 10, starts, program, LO, HI), DTYPE_P, DTYPE_T, GRADIENT, WIDE, LENGTH // 4,
        )  # fmt: skip
    else:
        value = _l1_alike(
            prediction, target, gradient, size, first, scale, tiles, DTYPE_P, DTYPE_T, ALIGNED, GRADIENT, LENGTH
        )
    return value


@triton.jit
def _kl_row(
    row, student_ptr, label_ptr, gradient_ptr, views, classes, student_stride, view_stride, label_stride, scale,
    TEACHER: tl.constexpr, GRADIENT: tl.constexpr, VIEWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """The divergence of one row; writes the gradient of its logits.

    student_ptr: [rows, classes].
    label_ptr: the teacher's logits [views, rows, classes], or probabilities [rows, classes].
    gradient_ptr: [rows, classes], contiguous.
    """
    row = row.to(tl.int64)
    student_ptr += row * student_stride
    label_ptr += row * label_stride
    gradient_ptr += row * classes
    view = tl.arange(0, VIEWS)[:, None]
    lane = tl.arange(0, CLASSES)

    # First pass: log-sum-exp of the student and of each view, by a running maximum; the sum of ready labels.
    student_top = tl.full((), float("-inf"), tl.float32)
    student_sum = tl.full((), 0.0, tl.float32)
    view_top = tl.full((VIEWS,), float("-inf"), tl.float32)
    view_sum = tl.zeros((VIEWS,), tl.float32)
    mass = tl.zeros((CLASSES,), tl.float32)
    for k in range(0, classes, CLASSES):
        inside = k + lane < classes
        s = tl.load(student_ptr + k + lane, mask=inside, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(student_top, tl.max(s, 0))
        # While all logits so far are -inf the sum is 0. Shifting by 0 then, and not by -inf, avoids -inf - -inf = nan.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        student_sum = student_sum * tl.exp(student_top - shift) + tl.sum(tl.exp(s - shift), 0)
        student_top = higher
        if TEACHER:
            here = (view < views) & inside[None, :]
            t = tl.load(label_ptr + view * view_stride + k + lane[None, :], mask=here, other=float("-inf")).to(
                tl.float32
            )
            peak = tl.maximum(view_top, tl.max(t, 1))
            base = tl.where(peak == float("-inf"), 0.0, peak)
            view_sum = view_sum * tl.exp(view_top - base) + tl.sum(tl.exp(t - base[:, None]), 1)
            view_top = peak
        else:
            mass += tl.load(label_ptr + k + lane, mask=inside, other=0.0).to(tl.float32)
    student_log = student_top + tl.log(student_sum)
    # Rows of the tile beyond the last view add nothing: exp(-inf - 0) = 0.
    view_log = tl.where(view_sum > 0, view_top + tl.log(tl.where(view_sum > 0, view_sum, 1.0)), 0.0)
    mass_sum = tl.sum(mass, 0)
    if TEACHER:
        mass_sum = 1.0

    # Second pass, from cache: the terms and the gradient.
    total = tl.zeros((CLASSES,), tl.float32)
    for k in range(0, classes, CLASSES):
        inside = k + lane < classes
        log_q = tl.load(student_ptr + k + lane, mask=inside, other=0.0).to(tl.float32) - student_log
        if TEACHER:
            here = (view < views) & inside[None, :]
            t = tl.load(label_ptr + view * view_stride + k + lane[None, :], mask=here, other=float("-inf")).to(
                tl.float32
            )
            label = tl.sum(tl.exp(t - view_log[:, None]), 0) / views
        else:
            label = tl.load(label_ptr + k + lane, mask=inside, other=0.0).to(tl.float32)
        entropy = tl.where(label > 0, label * tl.log(tl.where(label > 0, label, 1.0)), 0.0)
        total += tl.where(inside, entropy - label * log_q, 0.0)
        if GRADIENT:
            slope = (tl.exp(log_q) * mass_sum - label) * scale
            tl.store(gradient_ptr + k + lane, slope.to(gradient_ptr.dtype.element_ty), mask=inside)
    return tl.sum(total, 0)


@triton.jit(
    do_not_specialize=[
        "starts", "predictions", "targets", "gradients", "sizes", "scales", "layouts", "tiles", "rows", "views",
        "classes", "student_stride", "view_stride", "label_stride", "kl_scale",
    ]
)  # fmt: skip
def _forward_kernel(
    partials_ptr, starts, predictions, targets, gradients, sizes, scales, weights_ptr, layouts, tiles,
    student_ptr, label_ptr, student_gradient_ptr, rows, views, classes, student_stride, view_stride, label_stride,
    kl_scale,
    KINDS: tl.constexpr, KL: tl.constexpr, TEACHER: tl.constexpr, KL_GRADIENT: tl.constexpr, VIEWS: tl.constexpr,
    TILE: tl.constexpr, CLASSES: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    """One partial sum a program: first the rows of the divergence, then the pairs in chunks of tiles * TILE bytes.

    partials_ptr: [programs], fp32.
    starts, predictions, targets, gradients, sizes, scales: tuples, one entry a pair: its first program, three
        addresses, its number of elements, and the size of its gradient's values; STORED: the place of its weight.
    weights_ptr: [pairs of the call + 1], fp64, the divergence's last; read where STORED.
    layouts: (n1, n2, n3, p0..p3, t0..t3) of each pair of a strided kind; these pairs come first.
    student_ptr, label_ptr, student_gradient_ptr: as in `_kl_row`.
    kl_scale: the divergence's weight for each row; STORED: the place of its weight.
    KINDS: of each kind LO, HI, the dtypes of prediction and target, strided, aligned, gradient, wide; see `_Kind`.
    """
    program = tl.program_id(0)
    if KL:
        if program < rows:
            if STORED:
                row_scale = (tl.load(weights_ptr + kl_scale) / tl.cast(rows, tl.float64)).to(tl.float32)
            else:
                row_scale = kl_scale
            value = _kl_row(
                program, student_ptr, label_ptr, student_gradient_ptr, views, classes, student_stride, view_stride,
                label_stride, row_scale, TEACHER, KL_GRADIENT, VIEWS, CLASSES,
            )  # fmt: skip
            tl.store(partials_ptr + program, value)
    chunk = program.to(tl.int64) - rows
    for kind in tl.static_range(len(KINDS)):
        lowest = tl.cast(starts[KINDS[kind][0]], tl.int64)
        end = tl.cast(starts[KINDS[kind][1]], tl.int64)
        if (chunk >= lowest) & (chunk < end):
            value = _l1_kind(
                chunk, starts, predictions, targets, gradients, sizes, scales, weights_ptr, layouts, tiles,
                KINDS[kind][0], KINDS[kind][1], KINDS[kind][2], KINDS[kind][3], KINDS[kind][4], KINDS[kind][5],
                KINDS[kind][6], KINDS[kind][7], TILE, STORED,
            )  # fmt: skip
            tl.store(partials_ptr + program, value)


@triton.jit(do_not_specialize=["firsts", "counts", "sizes", "weights", "longest"])
def _reduce_kernel(
    partials_ptr, terms_ptr, total_ptr, firsts, counts, sizes, weights, weights_ptr, longest,
    TERMS: tl.constexpr, ROWS: tl.constexpr, MORE: tl.constexpr, PARTIALS: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    """Terms and total from the partial sums, in one program and a fixed order.

    partials_ptr: [programs], fp32.
    terms_ptr: [TERMS], fp32.
    total_ptr: [], fp32; it already holds the total of earlier terms where MORE.
    firsts, counts, sizes, weights: tuples, one entry a term: its first partial sum, their number, what divides their
        sum, its weight; STORED: the place of its weight.
    weights_ptr: as in `_forward_kernel`.
    longest: the largest count.
    ROWS: TERMS rounded up to a power of two.
    """
    term = tl.arange(0, ROWS)
    first = tl.zeros((ROWS,), tl.int64)
    count = tl.zeros((ROWS,), tl.int64)
    size = tl.full((ROWS,), 1.0, tl.float64)
    weight = tl.zeros((ROWS,), tl.float64)
    for i in tl.static_range(TERMS):
        first = tl.where(term == i, tl.cast(firsts[i], tl.int64), first)
        count = tl.where(term == i, tl.cast(counts[i], tl.int64), count)
        size = tl.where(term == i, tl.cast(sizes[i], tl.float64), size)
        if STORED:  # through fp32, in which the launch passes a weight
            own = tl.load(weights_ptr + weights[i]).to(tl.float32)
        else:
            own = weights[i]
        weight = tl.where(term == i, tl.cast(own, tl.float64), weight)
    sums = tl.zeros((ROWS, PARTIALS), tl.float64)
    lane = tl.arange(0, PARTIALS)[None, :]
    for k in range(0, longest, PARTIALS):
        here = k + lane < count[:, None]
        sums += tl.load(partials_ptr + first[:, None] + k + lane, mask=here, other=0.0).to(tl.float64)
    values = tl.sum(sums, 1) / size
    tl.store(terms_ptr + term, values.to(tl.float32), mask=term < TERMS)
    total = tl.sum(tl.where(term < TERMS, weight * values, 0.0), 0)
    if MORE:
        total += tl.load(total_ptr).to(tl.float64)
    tl.store(total_ptr, total.to(tl.float32))


@triton.jit
def _scale_kind(
    addresses, sizes, units, starts, factor, programs,
    LO: tl.constexpr, HI: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Multiply tensors LO to HI - 1, which are of one kind, by factor and by their units."""
    LENGTH: tl.constexpr = TILE * 8 // DTYPE.primitive_bitwidth
    lane = tl.arange(0, LENGTH)
    for chunk in range(starts[LO] + tl.program_id(0), starts[HI], programs):
        value = factor * _pick_float(units, starts, chunk, LO, HI)
        if value != 1.0:
            first = (chunk - _pick(starts, starts, chunk, LO, HI)) * LENGTH
            x = _at(_pick(addresses, starts, chunk, LO, HI), DTYPE, ALIGNED) + first
            left = _pick(sizes, starts, chunk, LO, HI) - first
            if left >= LENGTH:
                tl.store(x + lane, (tl.load(x + lane).to(tl.float32) * value).to(DTYPE))
            else:
                scaled = tl.load(x + lane, mask=lane < left, other=0.0).to(tl.float32) * value
                tl.store(x + lane, scaled.to(DTYPE), mask=lane < left)


@triton.jit(do_not_specialize=["addresses", "sizes", "starts", "programs"])
def _scale_kernel(
    factor_ptr, addresses, sizes, units, starts, programs, KINDS: tl.constexpr, UNITS: tl.constexpr, TILE: tl.constexpr
):
    """Multiply each tensor in place by factor_ptr's number [] and by its unit; leave it untouched where that is 1.

    addresses, sizes, units: tuples, one entry a tensor: address, number of elements, factor of its own.
    starts: of each tensor its first chunk of TILE bytes; at the end their number.
    KINDS: of each kind LO, HI, dtype, aligned.
    UNITS: whether any unit is not 1.
    """
    factor = tl.load(factor_ptr).to(tl.float32)
    if UNITS or factor != 1.0:
        for kind in tl.static_range(len(KINDS)):
            _scale_kind(
                addresses, sizes, units, starts, factor, programs,
                KINDS[kind][0], KINDS[kind][1], KINDS[kind][2], KINDS[kind][3], TILE,
            )  # fmt: skip


# ---------------------------------------------------------------- launch


@dataclass(frozen=True)
class _Kind:
    """What the compiler must know of a pair.

    strided: prediction, target and gradient do not lie alike in memory.
    prediction: its dtype.
    target: its dtype.
    aligned: all addresses are multiples of 16 bytes.
    gradient: the prediction's is wanted.
    wide: strided, and 2^31 elements or more.
    """

    strided: bool
    prediction: torch.dtype
    target: torch.dtype
    aligned: bool
    gradient: bool
    wide: bool

    def order(self) -> tuple[bool | str, ...]:
        """What pairs are sorted by: strided kinds come first."""
        return (not self.strided, str(self.prediction), str(self.target), self.aligned, self.gradient, self.wide)


@dataclass(frozen=True)
class _Pair:
    """One pair as the kernel takes it.

    term: its place among all pairs of the call.
    kind: what the compiler must know of it.
    prediction: any shape.
    target: of the prediction's shape.
    gradient: of the prediction's shape, to be written; None: not wanted.
    layout: (n1, n2, n3, p0..p3, t0..t3), see `_l1_strided`.
    weight: of its term in the total; where weights are on the device, its place among them.
    """

    term: int
    kind: _Kind
    prediction: Tensor
    target: Tensor
    gradient: Tensor | None
    layout: tuple[int, ...]
    weight: float

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.prediction.numel()

    @property
    def scale(self) -> float:
        """Size of the gradient's values; fp16 keeps their signs alone."""
        return 1.0 if self.prediction.dtype == torch.float16 else self.weight / self.size


def _layout(lead: Tensor, prediction: Tensor, target: Tensor) -> list[tuple[int, int, int]]:
    """The fewest dimensions that visit both in the order of lead's memory: (size, prediction's stride, target's)."""
    strides = zip(lead.stride(), lead.shape, prediction.stride(), target.stride(), strict=True)
    dimensions = sorted((d for d in strides if d[1] > 1), key=lambda d: d[0], reverse=True)
    merged: list[tuple[int, int, int]] = []
    for _, size, p, t in dimensions:
        if merged and merged[-1][1:] == (p * size, t * size):
            merged[-1] = (merged[-1][0] * size, p, t)
        else:
            merged.append((size, p, t))
    return merged


def _pair(term: int, prediction: Tensor, target: Tensor, gradient: Tensor | None, weight: float) -> _Pair:
    """The pair with its kind and layout; copied in the order of the gradient if it has too many dimensions."""
    lead = prediction if gradient is None else gradient
    dimensions = _layout(lead, prediction, target)
    if len(dimensions) > DIMENSIONS:
        prediction, target = torch.empty_like(lead).copy_(prediction), torch.empty_like(lead).copy_(target)
        dimensions = _layout(prediction, prediction, target)
    strided = not (len(dimensions) == 0 or (len(dimensions) == 1 and dimensions[0][1:] == (1, 1)))
    tensors = [x for x in (prediction, target, gradient) if x is not None]
    kind = _Kind(
        strided=strided,
        prediction=prediction.dtype,
        target=target.dtype,
        aligned=not strided and all(x.data_ptr() % 16 == 0 for x in tensors),
        gradient=gradient is not None,
        wide=strided and prediction.numel() >= 2**31,
    )
    padded = [(1, 0, 0)] * (DIMENSIONS - len(dimensions)) + dimensions
    sizes, p, t = zip(*padded[-DIMENSIONS:], strict=True)
    return _Pair(term, kind, prediction, target, gradient, (*sizes[1:], *p, *t), weight)


def _ranges(kinds: Sequence[Any]) -> list[tuple[int, int]]:
    """(first, end) of each run of equal neighbours."""
    edges = [0, *(i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]), len(kinds)]
    return [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]


def _starts(counts: Sequence[int]) -> tuple[int, ...]:
    """The sums of the first 0, 1, 2, ... counts."""
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return tuple(starts)


def _rows(x: Tensor) -> Tensor:
    """[.., K] with its classes adjacent, as those of logits nearly always are."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@dataclass(frozen=True)
class _Divergence:
    """The divergence as the kernel takes it.

    student: logits [N, K].
    label: the teacher's logits [V, N, K], or probabilities [N, K].
    gradient: [N, K], contiguous, to be written; None: not wanted.
    weight: of the divergence in the total; where weights are on the device, its place among them.
    """

    student: Tensor
    label: Tensor
    gradient: Tensor | None
    weight: float

    @property
    def views(self) -> int:
        """V; ready probabilities count as one view."""
        return self.label.shape[0] if self.label.ndim == 3 else 1


def _launch_group(
    pairs: list[_Pair],
    kl: _Divergence | None,
    terms: Tensor,
    total: Tensor,
    more: bool,
    weights: Tensor | None = None,
) -> None:
    """Fill the gradients, the terms and the total of up to PAIRS_A_LAUNCH pairs.

    Args:
        pairs: in the caller's order.
        kl: the divergence; None: not in this group.
        terms: [pairs, then the divergence], to be written.
        total: [], to be written.
        more: total holds that of earlier groups, to be added to.
        weights: those of the whole call on the device, fp64; None: pairs and kl have theirs.
    """
    order = sorted(pairs, key=lambda pair: pair.kind.order())
    lengths = [TILE // pair.prediction.itemsize for pair in order]
    all_tiles = sum(triton.cdiv(pair.size, n) for pair, n in zip(order, lengths, strict=True))
    tiles = max(1, triton.cdiv(all_tiles, PROGRAMS))  # to a program
    starts = _starts([triton.cdiv(pair.size, n * tiles) for pair, n in zip(order, lengths, strict=True)])
    kinds = tuple(
        (a, b, DTYPES[k.prediction], DTYPES[k.target], k.strided, k.aligned, k.gradient, k.wide)
        for a, b in _ranges([pair.kind for pair in order])
        for k in (order[a].kind,)
    )
    rows, classes = kl.student.shape if kl else (0, 0)
    partials = terms.new_empty(rows + starts[-1])
    student = label = student_gradient = partials  # without a divergence: addresses that nothing reads
    stored = weights is not None
    if weights is None:
        weights = partials  # that nothing reads either
    strides = (0, 0, 0)
    if kl:
        student, label = _rows(kl.student), _rows(kl.label)
        student_gradient = student if kl.gradient is None else kl.gradient
        strides = (student.stride(0), label.stride(0) if label.ndim == 3 else 0, label.stride(-2))
    _forward_kernel[(rows + starts[-1],)](
        partials,
        starts,
        tuple(pair.prediction.data_ptr() for pair in order),
        tuple(pair.target.data_ptr() for pair in order),
        tuple(0 if pair.gradient is None else pair.gradient.data_ptr() for pair in order),
        tuple(pair.size for pair in order),
        tuple(pair.weight if stored else pair.scale for pair in order),
        weights,
        tuple(pair.layout for pair in order if pair.kind.strided),
        tiles,
        student,
        label,
        student_gradient,
        rows,
        kl.views if kl else 0,
        classes,
        *strides,
        (kl.weight if stored else kl.weight / rows) if kl else 0.0,
        KINDS=kinds,
        KL=kl is not None,
        TEACHER=kl is not None and kl.label.ndim == 3,
        KL_GRADIENT=kl is not None and kl.gradient is not None,
        VIEWS=triton.next_power_of_2(kl.views) if kl else 1,
        TILE=TILE,
        CLASSES=min(CLASSES, triton.next_power_of_2(classes)) if kl else 1,
        STORED=stored,
        num_warps=4,
        maxnreg=128,  # without it ptxas for sm_100 spills to keep to 64 registers
    )
    # Terms in the caller's order: pairs, then the divergence, whose partial sums are the first ones.
    ranges = {
        pair.term: (rows + start, end - start, pair.size, pair.weight)
        for pair, start, end in zip(order, starts[:-1], starts[1:], strict=True)
    }
    columns = [ranges[pair.term] for pair in pairs] + ([(0, rows, rows, kl.weight)] if kl else [])
    firsts, counts, sizes, own = zip(*columns, strict=True)
    _reduce_kernel[(1,)](
        partials,
        terms,
        total,
        firsts,
        counts,
        sizes,
        own,
        weights,
        max(counts),
        TERMS=len(columns),
        ROWS=triton.next_power_of_2(len(columns)),
        MORE=more,
        PARTIALS=PARTIALS,
        STORED=stored,
        num_warps=8,
    )


def _gradients(predictions: Sequence[Tensor], student_logits: Tensor | None, needs: Sequence[bool]) -> list[Tensor]:
    """Empty gradients of what needs one: predictions in their own order of memory, then the student's logits."""
    out = [torch.empty_like(p) for p, need in zip(predictions, needs[:-1], strict=True) if need]
    if needs[-1] and student_logits is not None:
        out.append(torch.empty_like(student_logits, memory_format=torch.contiguous_format))
    return out


def _scale(gradients: Sequence[Tensor], units: Sequence[float], factor: Tensor) -> None:
    """Multiply gradients, each dense in memory, by the factor [] and by their units, in place and in one launch."""

    def kind(i: int) -> tuple[str, bool]:
        return str(gradients[i].dtype), gradients[i].data_ptr() % 16 == 0

    with on_device_of(factor):
        for a in range(0, len(gradients), PAIRS_A_LAUNCH):
            order = sorted(range(len(gradients))[a : a + PAIRS_A_LAUNCH], key=kind)
            starts = _starts([triton.cdiv(gradients[i].numel(), TILE // gradients[i].itemsize) for i in order])
            programs = min(SCALERS, starts[-1])
            _scale_kernel[(programs,)](
                factor,
                tuple(gradients[i].data_ptr() for i in order),
                tuple(gradients[i].numel() for i in order),
                tuple(units[i] for i in order),
                starts,
                programs,
                KINDS=tuple(
                    (lo, hi, DTYPES[gradients[order[lo]].dtype], kind(order[lo])[1])
                    for lo, hi in _ranges([kind(i) for i in order])
                ),
                UNITS=any(units[i] != 1 for i in order),
                TILE=TILE,
                num_warps=4,
            )


# ---------------------------------------------------------------- custom operator and its derivative


@torch.library.custom_op("dgfast::l1_kl", mutates_args=())
def _l1_kl(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Tensor,
    student_logits: Tensor | None,
    label: Tensor | None,
    needs: Sequence[bool],
    stored: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Launch the forward kernels.

    Args:
        predictions: one a pair, any shapes.
        targets: of the predictions' shapes.
        weights: [pairs + 1], fp64, the divergence's last; on the CPU unless `stored`. Were they numbers, torch.compile
            would take them for constants, and compile anew in every iteration in which one grows.
        student_logits: [N, K], or None: no divergence.
        label: the teacher's logits [V, N, K], or probabilities [N, K]; None without student_logits.
        needs: [pairs + 1]: whether each prediction, and then the student, needs its gradient.
        stored: the weights are on the predictions' device, and only there.

    Returns:
        total [], terms [pairs, and one more with student_logits], and the gradients that are needed, for an incoming
        gradient of 1; the backward pass takes them over.
    """
    *factors, kl_weight = range(len(predictions) + 1) if stored else weights.tolist()
    gradients = _gradients(predictions, student_logits, needs)
    ready = iter(gradients)
    pairs = [
        _pair(i, p, t, next(ready) if need else None, weight)
        for i, (p, t, weight, need) in enumerate(zip(predictions, targets, factors, needs[:-1], strict=True))
    ]
    kl = None
    if student_logits is not None and label is not None:
        kl = _Divergence(student_logits, label, gradients[-1] if needs[-1] else None, kl_weight)
    some = _some(predictions, student_logits)
    total, terms = _results(some, len(pairs) + (kl is not None))
    with on_device_of(some):
        for i in range(0, max(1, len(pairs)), PAIRS_A_LAUNCH):
            group = pairs[i : i + PAIRS_A_LAUNCH]
            last = i + PAIRS_A_LAUNCH >= len(pairs)
            _launch_group(group, kl if last else None, terms[i:], total, i > 0, weights if stored else None)
    return total, terms, gradients


def _some(predictions: Sequence[Tensor], student_logits: Tensor | None) -> Tensor:
    """Any of the inputs, for its device."""
    return predictions[0] if student_logits is None else student_logits


def _results(some: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Empty total and terms."""
    return some.new_empty((), dtype=torch.float32), some.new_empty(terms, dtype=torch.float32)


@_l1_kl.register_fake
def _(
    predictions: Sequence[Tensor],
    targets: Any,
    weights: Any,
    student_logits: Tensor | None,
    label: Any,
    needs: list[bool],
    stored: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    terms = len(predictions) + (student_logits is not None)
    return *_results(_some(predictions, student_logits), terms), _gradients(predictions, student_logits, needs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    predictions, _, weights, _, _, needs, _ = inputs
    _, terms, gradients = output
    ctx.needs = needs
    # What each gradient is still to be multiplied and divided by: the index of its weight, and its size. None: nothing.
    ctx.rest = [(i, p.numel()) if p.dtype == torch.float16 else None for i, p in enumerate(predictions) if needs[i]]
    ctx.rest += [None] * needs[-1]
    ctx.mark_non_differentiable(terms, *gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weights, *gradients)


def _backward(ctx: Any, grad_total: Tensor | None, _grad_terms: Any, _grad_gradients: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("the kernel of l1_kl_loss has no second derivative: without create_graph, or impl='eager'")
    predictions: list[Tensor | None] = [None] * (len(ctx.needs) - 1)
    student = None
    weights, *gradients = ctx.saved_tensors
    if grad_total is not None and gradients:
        if type(gradients[0]) is Tensor:
            units = weights.tolist() if any(ctx.rest) else ()
            _scale(gradients, [1.0 if rest is None else units[rest[0]] / rest[1] for rest in ctx.rest], grad_total)
            # The kernel wrote in place, which PyTorch does not see. Told of it, PyTorch raises its error of modified
            # tensors when the graph is passed a second time.
            torch.autograd.graph.increment_version(gradients)
        else:  # torch.compile is tracing, and fuses the product into whatever reads the gradient
            factors = [grad_total if rest is None else grad_total * (weights[rest[0]] / rest[1]) for rest in ctx.rest]
            gradients = [(g.float() * factor).to(g.dtype) for g, factor in zip(gradients, factors, strict=True)]
        ready = iter(gradients)
        predictions = [next(ready) if need else None for need in ctx.needs[:-1]]
        student = next(ready) if ctx.needs[-1] else None
    return predictions, [None] * len(predictions), None, student, None, None, None


_l1_kl.register_autograd(_backward, setup_context=_setup_context)


# ---------------------------------------------------------------- public function


def l1_kl_loss(
    pairs: Pairs,
    weights: Sequence[float | Tensor],
    student_logits: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    kl_weight: float | Tensor = 0.0,
    *,
    labels: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Sum weighted L1 terms and the divergence of the student from a soft label (formulas: top of this file).

    Gradients reach the predictions and the student's logits, through `total` alone and once: a second backward pass
    through the same graph raises RuntimeError, and there is no second derivative (`impl="eager"` has both). Targets,
    teacher and labels are constants.

    Args:
        pairs: (prediction, target), each pair of one shape; fp32, bf16 or fp16, mixed as they come; any strides.
            Nothing is copied, unless the two lie so differently that more than four dimensions remain after merging.
        weights: one number a pair, or a scalar tensor on the pairs' device, fp64, whose value is read there when the
            kernels run, and by nobody before. Its own gradient is that of the eager path alone.
        student_logits: [N, K], or None: no divergence.
        teacher_logits: [V, N, K]: V views of the images, whose softmaxes are averaged to the soft label.
        kl_weight: weight of the divergence. Two streams, each with its mean over N rows, are one concatenated call with
            the weight doubled (and half the term's value). Also as a tensor.
        labels: [N, K], ready probabilities in place of teacher_logits, for labels of another style than the soft one.
        impl: "triton", "eager", or "auto": Triton on a GPU wherever the kernel applies, else eager, the reason in
            `fallbacks`.

    Returns:
        total: scalar, fp32 (eagerly fp64 if any input or weight is).
        terms: [pairs, and one more with student_logits], of total's dtype, detached: each term before its weight, the
            divergence last.

    Raises:
        ValueError: nothing to sum; an empty tensor; shapes, numbers of weights or sources of labels that do not fit; an
            unknown impl, or "triton" where it does not apply.
    """
    inputs = _check(pairs, weights, student_logits, teacher_logits, labels)
    factors = [*weights, kl_weight]
    stored = any(isinstance(factor, Tensor) for factor in factors)
    # Gradients of fp16 get their weights in the backward pass, as arguments of the launch.
    halves = stored and any(p.dtype == torch.float16 for p, _ in pairs)
    if not takes_triton("l1_kl_loss", impl, inputs, "fp16 with weights on the device" if halves else None):
        return l1_kl_eager(pairs, weights, student_logits, teacher_logits, labels, kl_weight)
    if student_logits is not None and student_logits.dtype == torch.float16:
        student_logits = student_logits.float()  # its gradient without a loss scale is too small for fp16
    predictions = [p for p, _ in pairs]
    label = teacher_logits if labels is None else labels
    learn = torch.is_grad_enabled()
    needs = [learn and p.requires_grad for p in predictions]
    needs.append(learn and student_logits is not None and student_logits.requires_grad)
    total, terms, _ = _l1_kl(
        predictions,
        [t.detach() for _, t in pairs],
        _stacked(factors, inputs[0]) if stored else torch.tensor(factors, dtype=torch.float64),
        student_logits,
        None if label is None else label.detach(),
        needs,
        stored,
    )
    return total, terms


def _stacked(factors: Sequence[float | Tensor], some: Tensor) -> Tensor:
    """Numbers and scalar tensors as one tensor on the device of `some`; nothing waits, and nothing is sent there."""
    return torch.stack(
        [f.detach() if isinstance(f, Tensor) else some.new_full((), f, dtype=torch.float64) for f in factors]
    )


def _check(
    pairs: Pairs,
    weights: Sequence[float | Tensor],
    student_logits: Tensor | None,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
) -> list[Tensor]:
    """Return all input tensors, or raise what `l1_kl_loss` documents."""
    if len(weights) != len(pairs):
        raise ValueError(f"l1_kl_loss takes one weight a pair, found {len(pairs)} pairs and {len(weights)} weights")
    if not pairs and student_logits is None:
        raise ValueError("l1_kl_loss has nothing to sum: give pairs, or student_logits and a label")
    tensors = []
    for i, (p, t) in enumerate(pairs):
        if p.shape != t.shape:
            raise ValueError(f"pair {i}: prediction {tuple(p.shape)} and target {tuple(t.shape)} must have one shape")
        if p.numel() == 0:
            raise ValueError(f"pair {i} is empty {tuple(p.shape)}: its mean is undefined; leave the pair out")
        tensors += [p, t]
    sources = [x for x in (teacher_logits, labels) if x is not None]
    if len(sources) != (student_logits is not None):
        raise ValueError("student_logits need teacher_logits or labels, one of them, and these need student_logits")
    if student_logits is not None:
        (label,) = sources
        dimensions = 2 if teacher_logits is None else 3
        if student_logits.ndim != 2 or label.shape[-2:] != student_logits.shape or label.ndim != dimensions:
            raise ValueError(
                f"student_logits [N, K] {tuple(student_logits.shape)} do not fit teacher_logits [V, N, K] or labels"
                f" [N, K] {tuple(label.shape)}"
            )
        if label.numel() == 0:
            raise ValueError(f"logits are empty {tuple(label.shape)}: the mean over their rows is undefined")
        tensors += [student_logits, label]
    if not all(x.is_floating_point() for x in tensors):
        raise ValueError(
            "l1_kl_loss takes floating-point tensors, found " + ", ".join(str(x.dtype)[6:] for x in tensors)
        )
    return tensors
