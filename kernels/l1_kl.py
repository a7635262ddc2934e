"""The combined L1/KL loss: every elementwise term of the generator's objective, with its gradients, in one launch.

    term_i = mean |prediction_i - target_i|                                              (one for each pair, any shapes)
    label  = mean_v softmax(teacher_logits[v])            [N, K]                         (or `labels`, ready probabilities)
    kl     = mean_n sum_k label[n, k] (log label[n, k] - log softmax(student_logits)[n, k])
    total  = sum_i weight_i term_i + kl_weight kl

    d total / d prediction_i   = weight_i / size_i * sign(prediction_i - target_i)       (0 where they are equal)
    d total / d student_logits = kl_weight / N * (softmax(student_logits) sum_k label - label)

Source: DG-Net (CVPR 2019): reconstructions, equations 1, 2 and 4; the soft label's divergence, equations 6 and 7.

A scalar's incoming gradient is one number, so the gradients can be written by the pass that reads the inputs, as if it were 1:
nothing is read twice. The backward pass multiplies them in place by the incoming gradient, and a program that finds 1 there
returns at once: one launch and no traffic, without asking the host. Gradients of fp16 predictions are kept as signs and get
weight / size there, where a loss scale is known: before it, weight / size is below what fp16 can hold.

Inputs are constants to the kernels' addresses: a launch gets them as arguments, so no table is copied to the device, and CUDA
graphs can capture it. Sums are deterministic: a partial sum a program, then one program adds them in a fixed order in fp64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

Pairs = Sequence[tuple[Tensor, Tensor]]

TILE = 2048  # elements a program handles at once: 16 for each thread of 4 warps, two to four 16-byte loads of each input
PROGRAMS = 4096  # about how many programs share the pairs: two to four waves on the large cards
CLASSES = 1024  # classes a program handles at once
PAIRS_A_LAUNCH = 24  # their addresses, sizes and strides must fit the 4 KB of a kernel's arguments
DIMENSIONS = 4  # of a pair whose two tensors lie differently in memory, once dimensions that can be merged are
PARTIALS = 256  # partial sums of one term that are added at once
SCALERS = 1024  # programs of the backward pass: few, since usually all they do is find that there is nothing to do

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


# --- Eager reference -------------------------------------------------------------------------------------------------------


def l1_kl_eager(
    pairs: Pairs,
    weights: Sequence[float],
    student_logits: Tensor | None,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    kl_weight: float,
) -> tuple[Tensor, Tensor]:
    """The formulas above in PyTorch; arguments as in `l1_kl_loss`. Computes in fp32, or in fp64 if any input is fp64."""
    inputs = [x for pair in pairs for x in pair] + [x for x in (student_logits, teacher_logits, labels) if x is not None]
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32
    factors = list(weights)
    terms = [F.l1_loss(p.to(dtype), t.detach().to(dtype)) for p, t in pairs]
    if student_logits is not None:
        label = teacher_logits.to(dtype).softmax(-1).mean(0) if labels is None else labels.to(dtype)
        terms.append(F.kl_div(student_logits.to(dtype).log_softmax(1), label.detach(), reduction="batchmean"))
        factors.append(kl_weight)
    total = sum(factor * term for factor, term in zip(factors, terms, strict=True))
    return total, torch.stack(terms).detach()


# --- Kernels ---------------------------------------------------------------------------------------------------------------
# Pairs of one kind (dtypes, alignment, layout, gradient or not) lie side by side: pairs LO to HI - 1 of the launch. `starts`
# holds the first program of each pair; a program finds its pair by comparing its number with them.


@triton.jit
def _pick(values, starts, program, LO: tl.constexpr, HI: tl.constexpr):
    """The integer of the pair that `program` works on."""
    chosen = tl.cast(values[LO], tl.int64)
    for i in tl.static_range(LO + 1, HI):
        chosen = tl.where(program >= starts[i], tl.cast(values[i], tl.int64), chosen)
    return chosen


@triton.jit
def _pick_float(values, starts, program, LO: tl.constexpr, HI: tl.constexpr):
    """The number of the pair that `program` works on."""
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
    """|prediction - target| of one tile laid out alike [TILE]; writes the gradient of its sum, times scale."""
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
    # Whole tiles carry no mask: a mask on a size that is unknown when the kernel is compiled would make every access scalar.
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
    """As `_l1_alike` for tensors that lie differently: the gradient's order [., n1, n2, n3], strides p0..p3 and t0..t3."""
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
    program, starts, predictions, targets, gradients, sizes, scales, layouts, tiles,
    LO: tl.constexpr, HI: tl.constexpr, DTYPE_P: tl.constexpr, DTYPE_T: tl.constexpr, STRIDED: tl.constexpr,
    ALIGNED: tl.constexpr, GRADIENT: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The partial sum of `program`, whose pair is of this kind."""
    prediction = _pick(predictions, starts, program, LO, HI)
    target = _pick(targets, starts, program, LO, HI)
    gradient = _pick(gradients, starts, program, LO, HI)
    size = _pick(sizes, starts, program, LO, HI)
    scale = _pick_float(scales, starts, program, LO, HI)
    first = (program - _pick(starts, starts, program, LO, HI)) * tiles * TILE
    if STRIDED:
        value = _l1_strided(
            prediction, target, gradient, size, first, scale, tiles,
            _pick_layout(layouts, 0, starts, program, LO, HI), _pick_layout(layouts, 1, starts, program, LO, HI),
            _pick_layout(layouts, 2, starts, program, LO, HI), _pick_layout(layouts, 3, starts, program, LO, HI),
            _pick_layout(layouts, 4, starts, program, LO, HI), _pick_layout(layouts, 5, starts, program, LO, HI),
            _pick_layout(layouts, 6, starts, program, LO, HI), _pick_layout(layouts, 7, starts, program, LO, HI),
            _pick_layout(layouts, 8, starts, program, LO, HI), _pick_layout(layouts, 9, starts, program, LO, HI),
            _pick_layout(layouts, 10, starts, program, LO, HI), DTYPE_P, DTYPE_T, GRADIENT, WIDE, TILE,
        )  # fmt: skip
    else:
        value = _l1_alike(
            prediction, target, gradient, size, first, scale, tiles, DTYPE_P, DTYPE_T, ALIGNED, GRADIENT, TILE
        )
    return value


@triton.jit
def _kl_row(
    row, student_ptr, label_ptr, gradient_ptr, views, classes, student_stride, view_stride, label_stride, scale,
    TEACHER: tl.constexpr, GRADIENT: tl.constexpr, VIEWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """The divergence of one row.

    student_ptr: [rows, classes]; label_ptr: the teacher's logits [views, rows, classes], or probabilities [rows, classes];
    gradient_ptr: [rows, classes], contiguous.
    """
    row = row.to(tl.int64)
    student_ptr += row * student_stride
    label_ptr += row * label_stride
    gradient_ptr += row * classes
    view = tl.arange(0, VIEWS)[:, None]
    lane = tl.arange(0, CLASSES)

    # First pass: log-sum-exp of the student and of each view, by a running maximum; the sum of ready labels.
    top = tl.full((CLASSES,), float("-inf"), tl.float32)
    student_top = tl.max(top, 0)
    student_sum = tl.sum(tl.zeros((CLASSES,), tl.float32), 0)
    view_top = tl.full((VIEWS,), float("-inf"), tl.float32)
    view_sum = tl.zeros((VIEWS,), tl.float32)
    mass = tl.zeros((CLASSES,), tl.float32)
    for k in range(0, classes, CLASSES):
        inside = k + lane < classes
        s = tl.load(student_ptr + k + lane, mask=inside, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(student_top, tl.max(s, 0))
        # While all logits so far are -inf the sum is 0: shifting by 0 instead keeps -inf - -inf = nan out of it.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        student_sum = student_sum * tl.exp(student_top - shift) + tl.sum(tl.exp(s - shift), 0)
        student_top = higher
        if TEACHER:
            here = (view < views) & inside[None, :]
            t = tl.load(label_ptr + view * view_stride + k + lane[None, :], mask=here, other=float("-inf")).to(tl.float32)
            peak = tl.maximum(view_top, tl.max(t, 1))
            base = tl.where(peak == float("-inf"), 0.0, peak)
            view_sum = view_sum * tl.exp(view_top - base) + tl.sum(tl.exp(t - base[:, None]), 1)
            view_top = peak
        else:
            mass += tl.load(label_ptr + k + lane, mask=inside, other=0.0).to(tl.float32)
    student_log = student_top + tl.log(student_sum)
    # Rows of the tile beyond the last view hold no mass: exp(-inf - 0) = 0.
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
            t = tl.load(label_ptr + view * view_stride + k + lane[None, :], mask=here, other=float("-inf")).to(tl.float32)
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
        "starts", "predictions", "targets", "gradients", "sizes", "layouts", "tiles", "rows", "views", "classes",
        "student_stride", "view_stride", "label_stride",
    ]
)  # fmt: skip
def _forward_kernel(
    partials_ptr, starts, predictions, targets, gradients, sizes, scales, layouts, tiles,
    student_ptr, label_ptr, student_gradient_ptr, rows, views, classes, student_stride, view_stride, label_stride, kl_scale,
    KINDS: tl.constexpr, KL: tl.constexpr, TEACHER: tl.constexpr, KL_GRADIENT: tl.constexpr, VIEWS: tl.constexpr,
    TILE: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """One partial sum a program: first the rows of the divergence, then the pairs in chunks of tiles * TILE elements.

    partials_ptr: [programs] fp32. starts .. layouts: tuples, one entry a pair: first program, addresses, number of elements,
    size of the gradient's values; layouts: (n1, n2, n3, p0..p3, t0..t3) of each pair of a strided kind, which come first.
    KINDS: (first program, end, LO, HI, dtypes, strided, aligned, gradient, wide) of each kind; see `_kinds`.
    """
    program = tl.program_id(0)
    if KL:
        if program < rows:
            value = _kl_row(
                program, student_ptr, label_ptr, student_gradient_ptr, views, classes, student_stride, view_stride,
                label_stride, kl_scale, TEACHER, KL_GRADIENT, VIEWS, CLASSES,
            )  # fmt: skip
            tl.store(partials_ptr + program, value)
    chunk = program.to(tl.int64) - rows
    for kind in tl.static_range(len(KINDS)):
        lowest = tl.cast(starts[KINDS[kind][0]], tl.int64)
        end = tl.cast(starts[KINDS[kind][1]], tl.int64)
        if (chunk >= lowest) & (chunk < end):
            value = _l1_kind(
                chunk, starts, predictions, targets, gradients, sizes, scales, layouts, tiles,
                KINDS[kind][0], KINDS[kind][1], KINDS[kind][2], KINDS[kind][3], KINDS[kind][4], KINDS[kind][5],
                KINDS[kind][6], KINDS[kind][7], TILE,
            )  # fmt: skip
            tl.store(partials_ptr + program, value)


@triton.jit(do_not_specialize=["firsts", "counts", "sizes", "longest"])
def _reduce_kernel(
    partials_ptr, terms_ptr, total_ptr, firsts, counts, sizes, weights, longest,
    TERMS: tl.constexpr, ROWS: tl.constexpr, MORE: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """Terms and total from the partial sums, in one program and a fixed order.

    partials_ptr: [programs]; terms_ptr: [TERMS]; total_ptr: []; all fp32. firsts, counts, sizes, weights: tuples, one entry a
    term: its first partial sum, their number, what divides their sum, its weight. longest: the largest count. ROWS: TERMS
    rounded up to a power of two. MORE: total_ptr already holds the total of earlier terms.
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
        weight = tl.where(term == i, tl.cast(weights[i], tl.float64), weight)
    sums = tl.zeros((ROWS, PARTIALS), tl.float64)
    lane = tl.arange(0, PARTIALS)[None, :]
    for k in range(0, longest, PARTIALS):
        here = k + lane < count[:, None]
        sums += tl.load(partials_ptr + first[:, None] + k + lane, mask=here, other=0.0).to(tl.float64)
    values = tl.sum(sums, 1) / size
    tl.store(terms_ptr + term, values.to(tl.float32), mask=term < TERMS)
    # A term of weight 0 counts nothing, even where it is infinite: 0 * inf would be nan. PyTorch's sum gives nan there too.
    total = tl.sum(tl.where(term < TERMS, weight * values, 0.0), 0)
    if MORE:
        total += tl.load(total_ptr).to(tl.float64)
    tl.store(total_ptr, total.to(tl.float32))


@triton.jit
def _scale_kind(
    addresses, sizes, units, starts, factor, programs,
    LO: tl.constexpr, HI: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Multiply tensors LO .. HI - 1, which are of one kind, by factor and by their units."""
    lane = tl.arange(0, TILE)
    for chunk in range(starts[LO] + tl.program_id(0), starts[HI], programs):
        value = factor * _pick_float(units, starts, chunk, LO, HI)
        if value != 1.0:
            first = (chunk - _pick(starts, starts, chunk, LO, HI)) * TILE
            x = _at(_pick(addresses, starts, chunk, LO, HI), DTYPE, ALIGNED) + first
            left = _pick(sizes, starts, chunk, LO, HI) - first
            if left >= TILE:
                tl.store(x + lane, (tl.load(x + lane).to(tl.float32) * value).to(DTYPE))
            else:
                scaled = tl.load(x + lane, mask=lane < left, other=0.0).to(tl.float32) * value
                tl.store(x + lane, scaled.to(DTYPE), mask=lane < left)


@triton.jit(do_not_specialize=["addresses", "sizes", "starts", "programs"])
def _scale_kernel(
    factor_ptr, addresses, sizes, units, starts, programs, KINDS: tl.constexpr, UNITS: tl.constexpr, TILE: tl.constexpr
):
    """Multiply each tensor in place by factor_ptr's number [] and by its unit; return at once where that is 1.

    addresses, sizes, units: tuples, one entry a tensor; starts: its first chunk of TILE elements, then their total number.
    KINDS: (LO, HI, dtype, aligned); UNITS: whether any unit is not 1.
    """
    factor = tl.load(factor_ptr).to(tl.float32)
    if UNITS or factor != 1.0:
        for kind in tl.static_range(len(KINDS)):
            _scale_kind(
                addresses, sizes, units, starts, factor, programs,
                KINDS[kind][0], KINDS[kind][1], KINDS[kind][2], KINDS[kind][3], TILE,
            )  # fmt: skip
