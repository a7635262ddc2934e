"""The kernels of the combined L1/KL loss in Triton's interpreter; tests/test_l1_kl.py runs this file."""

import math

import pytest
import torch
from dgfast.kernels import l1_kl
from dgfast.kernels.l1_kl import l1_kl_loss
from triton.runtime.interpreter import interpreter_builder

F32, B16, F16 = torch.float32, torch.bfloat16, torch.float16
# Gradients are stored in the prediction's dtype; the interpreter truncates bf16, hence one unit in its last place.
TOLERANCES = [(F32, 0.0, 2e-6), (F16, 6e-8, 1e-3), (B16, 0.0, 8e-3)]


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels that were launched."""
    names = []
    for kernel in (l1_kl._forward_kernel, l1_kl._reduce_kernel, l1_kl._scale_kernel):

        def run(*args, original=kernel.run, name=kernel.__name__, **options):
            names.append(name)
            return original(*args, **options)

        monkeypatch.setattr(kernel, "run", run)
    return names


def made(*shape, seed=0, dtype=F32, offset=0.0, spread=1.0):
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=rng, dtype=torch.float64) * spread + offset).to(dtype)


def check(
    pairs, weights, student=None, teacher=None, kl_weight=0.0, *, labels=None, upstream=-1.7, rtol=2e-6, atol=0.0
):
    """Values and gradients of the kernel against the reference in fp64, with an upstream gradient that is not 1."""
    predictions = [p.detach().requires_grad_(p.requires_grad) for p, _ in pairs]
    wide = [p.detach().double().requires_grad_(p.requires_grad) for p, _ in pairs]
    targets = [t for _, t in pairs]
    students = (
        [None, None]
        if student is None
        else [student.detach().requires_grad_(), student.detach().double().requires_grad_()]
    )
    found = l1_kl_loss(
        list(zip(predictions, targets, strict=True)),
        weights,
        students[0],
        teacher,
        kl_weight,
        labels=labels,
        impl="triton",
    )
    right = l1_kl_loss(
        [(p, t.double()) for p, t in zip(wide, targets, strict=True)], weights, students[1],
        None if teacher is None else teacher.double(), kl_weight, labels=labels, impl="eager",
    )  # fmt: skip
    assert found[0].dtype == found[1].dtype == F32
    assert not found[1].requires_grad
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=1e-7)
    (found[0] * upstream).backward()
    (right[0] * upstream).backward()
    for p, w in zip(predictions, wide, strict=True):
        assert (p.grad is None) == (not p.requires_grad)
        if p.requires_grad:
            assert p.grad.dtype == p.dtype and p.grad.stride() == torch.empty_like(p).stride()
            torch.testing.assert_close(p.grad.double(), w.grad, rtol=rtol, atol=atol)
    if student is not None:
        scale = students[1].grad.abs().max().item()
        torch.testing.assert_close(students[0].grad.double(), students[1].grad, rtol=2 * rtol, atol=1e-6 * scale + atol)
    return found


@pytest.mark.parametrize(("dtype", "atol", "rtol"), TOLERANCES)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_a_step(dtype, atol, rtol, last):
    """Images against fp32 images, codes, logits: every kind of tensor of one iteration at once, some without
    gradient."""
    shape = torch.channels_last if last else torch.contiguous_format
    pairs = [
        (made(2, 3, 32, 16, seed=0, dtype=dtype).to(memory_format=shape).requires_grad_(), made(2, 3, 32, 16, seed=1)),
        (
            made(2, 8, 9, 5, seed=2, dtype=dtype).to(memory_format=shape).requires_grad_(),
            made(2, 8, 9, 5, seed=3, dtype=dtype),
        ),
        (made(3, 1024, seed=4, dtype=dtype), made(3, 1024, seed=5)),
        (made(7, seed=6, dtype=dtype).requires_grad_(), made(7, seed=7, dtype=B16)),
    ]
    student, teacher = made(4, 37, seed=8, dtype=dtype), made(2, 4, 37, seed=9, dtype=dtype)
    check(pairs, [5.0, 0.3, 1.0, 0.7], student, teacher, 2.0, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [*((size, F32) for size in (1, 1023, 1024, 1025, 5000)), *((size, B16) for size in (2, 1023, 1025, 2049))],
)
def test_sizes_around_the_tile(size, dtype):
    x = made(size, dtype=dtype).requires_grad_()
    check([(x, made(size, seed=1, dtype=dtype))], [0.37], rtol=8e-3 if dtype == B16 else 2e-6)


def test_chunks_of_several_tiles(monkeypatch):
    monkeypatch.setattr(l1_kl, "PROGRAMS", 3)
    pairs = [(made(n, seed=n).requires_grad_(), made(n, seed=n + 1)) for n in (9001, 70, 4096)]
    strided = made(6, 40, 30, seed=2).transpose(0, 2)
    pairs.append((strided.requires_grad_(), made(30, 40, 6, seed=3)))
    check(pairs, [1.0, 2.0, 3.0, 4.0], made(5, 6), made(2, 5, 6, seed=1), 0.5)


def test_strides():
    """Transposed, sliced, expanded, unaligned, scalar, six-dimensional: what is no plain range of memory."""
    base = made(2, 6, 10, 8)
    expanded = made(1, 5, 1, seed=1).expand(4, 5, 3)
    pairs = [
        (base[:, ::2, 1:9, ::3].requires_grad_(), made(2, 3, 8, 3, seed=2)),
        (base.permute(3, 1, 0, 2).requires_grad_(), made(8, 6, 2, 10, seed=3)),
        (expanded.requires_grad_(), made(4, 5, 3, seed=4)),
        (made(4, 5, 3, seed=5).requires_grad_(), expanded.detach()),
        (made(1001)[1:].requires_grad_(), made(1001, seed=6)[1:]),
        (made(1000, seed=7).requires_grad_(), made(1003, seed=8)[3:]),
        (made(seed=9).requires_grad_(), made(seed=10)),
        (made(2, 3, 2, 3, 2, 3).permute(5, 1, 3, 0, 4, 2).requires_grad_(), made(3, 3, 3, 2, 2, 2, seed=11)),
        (made(2, 3, 2, 3, 2, 3), made(2, 3, 2, 3, 2, 3, seed=12).permute(4, 5, 2, 3, 0, 1)),
        (made(4, 6, seed=13)[:, :1].requires_grad_(), made(4, 9, seed=14)[:, 8:]),
    ]
    found = check(pairs, [0.1 * (i + 1) for i in range(10)])
    assert torch.isfinite(found[1]).all()


def test_equal_values_have_no_slope():
    x = made(50).requires_grad_()
    total, terms = l1_kl_loss([(x, x.detach().clone())], [3.0], impl="triton")
    total.backward()
    assert total.item() == 0 and (x.grad == 0).all()


@pytest.mark.parametrize(
    ("classes", "views"), [(1, 1), (1, 3), (2, 2), (511, 2), (512, 1), (512, 3), (513, 2), (10_000, 1), (10_000, 3)]
)
def test_divergence(classes, views):
    check(
        [],
        [],
        made(3, classes, offset=5, spread=3),
        made(views, 3, classes, seed=1, offset=-50, spread=3),
        0.9,
        rtol=1e-5,
    )


def test_divergence_of_extreme_logits():
    """Views that exclude classes, or are far apart, and a student that is sure of the wrong class."""
    teacher = made(2, 3, 600, seed=1, spread=200)
    teacher[0, 0, :550] = -math.inf
    teacher[1, 1, 0] = 1e4
    student = made(3, 600, spread=40)
    check([], [], student, teacher, 1.0, rtol=1e-4)


@pytest.mark.parametrize("mass", [1.0, 0.4])
def test_ready_labels(mass):
    """Labels of another style: sparse, and of any sum."""
    labels = made(4, 700, seed=1).softmax(1) * mass
    labels[0] = torch.eye(700)[5]
    labels[:, 600:] = 0
    labels[2] = 0  # no label: neither a divergence nor a gradient
    pairs = [(made(30).requires_grad_(), made(30, seed=2))]
    check(pairs, [1.0], made(4, 700), None, 1.5, labels=labels, rtol=1e-5)


def test_logits_of_any_strides():
    student, teacher = made(11, 8).t()[::2, 1:], made(4, 10, 3, seed=1).permute(2, 0, 1)
    check([], [], student, teacher, 1.0)
    check([], [], made(4, 30, seed=2)[:, 3:13], made(4, 2, 10, seed=3).transpose(0, 1), 1.0)


def test_offset_data():
    """Far from zero, close together: the difference must be formed before the sum."""
    x, t = made(3, 3, 40, 30, offset=5, spread=0.1), made(3, 3, 40, 30, seed=1, offset=5, spread=0.1)
    check([(x.requires_grad_(), t)], [1.0])
    big = made(100_000, offset=1000)
    total, _ = l1_kl_loss([(big, big - 0.5)], [1.0], impl="triton")
    assert total.item() == pytest.approx(0.5, rel=1e-6)


def test_many_pairs_take_several_launches(launches):
    pairs = [(made(5 + i, seed=i).requires_grad_(), made(5 + i, seed=i + 1)) for i in range(60)]
    check(pairs, [0.01 * i for i in range(60)], made(2, 3), made(2, 2, 3, seed=1), 1.0)
    assert launches == ["_forward_kernel", "_reduce_kernel"] * 3 + ["_scale_kernel"] * 3


def test_launches_of_a_step(launches):
    """One launch and one small reduction, whatever the number of terms, layouts and dtypes; one in the backward
    pass."""
    images = [
        (made(2, 3, 8, 4, seed=i).to(memory_format=torch.channels_last).requires_grad_(), made(2, 3, 8, 4))
        for i in range(6)
    ]
    codes = [(made(2, 16, seed=i, dtype=B16).requires_grad_(), made(2, 16, dtype=B16)) for i in range(4)]
    student, teacher = made(2, 9).requires_grad_(), made(2, 2, 9, seed=1)
    total, _ = l1_kl_loss(images + codes, [1.0] * 10, student, teacher, 1.0, impl="triton")
    assert launches == ["_forward_kernel", "_reduce_kernel"]
    total.backward()
    assert launches[2:] == ["_scale_kernel"]
    with torch.no_grad():
        l1_kl_loss(images, [1.0] * 6, impl="triton")[0]
    assert launches[3:] == ["_forward_kernel", "_reduce_kernel"]


@pytest.mark.parametrize("upstream", [1.0, 2.0])
def test_an_incoming_gradient_of_one_moves_nothing(monkeypatch, upstream):
    x = made(3000).requires_grad_()
    total, _ = l1_kl_loss([(x, made(3000, seed=1))], [1.0], impl="triton")
    _, kept = total.grad_fn.saved_tensors
    stores = []
    for name in ("create_store", "create_masked_store"):
        original = getattr(interpreter_builder, name)
        monkeypatch.setattr(
            interpreter_builder, name, lambda *args, original=original: (stores.append(1), original(*args))[1]
        )
    (found,) = torch.autograd.grad(total, x, torch.tensor(upstream))
    assert found.data_ptr() == kept.data_ptr()
    assert (len(stores) == 0) == (upstream == 1)


def test_gradients_go_out_once():
    x = made(30).requires_grad_()
    total, _ = l1_kl_loss([(x, made(30, seed=1))], [1.0], impl="triton")
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
    total, _ = l1_kl_loss([(x, made(30, seed=1))], [1.0], impl="triton")
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total, x, create_graph=True)


def test_fp16_gradients_survive_a_small_weight():
    """weight / size is below fp16's smallest number; with the loss scale it is not."""
    x = made(10_000, dtype=F16).requires_grad_()
    total, _ = l1_kl_loss([(x, made(10_000, seed=1, dtype=F16))], [1e-4], impl="triton")
    (total * 65536.0).backward()
    assert x.grad.abs().float().mean().item() == pytest.approx(65536e-4 / 10_000, rel=1e-3)


def test_equal_calls_give_equal_bits():
    pairs = [(made(9999), made(9999, seed=1)), (made(77, seed=2), made(77, seed=3))]
    first, again = (
        l1_kl_loss(pairs, [1.0, 2.0], made(6, 700), made(2, 6, 700, seed=4), 0.3, impl="triton") for _ in range(2)
    )
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_autocast_changes_nothing():
    x, t = made(200, dtype=B16), made(200, seed=1)
    logits = made(2, 9, dtype=B16), made(2, 2, 9, seed=1, dtype=B16)
    plain = l1_kl_loss([(x, t)], [1.0], *logits, 1.0, impl="triton")
    with torch.autocast("cpu", torch.bfloat16):
        kernel, eager = (l1_kl_loss([(x, t)], [1.0], *logits, 1.0, impl=impl) for impl in ("triton", "eager"))
    assert torch.equal(kernel[0], plain[0]) and kernel[0].dtype == eager[0].dtype == F32
    torch.testing.assert_close(kernel[1], eager[1])


@pytest.mark.parametrize("dtype", [F32, B16])
def test_weights_on_the_device_give_the_same_bits(dtype, launches):
    """As a captured step has them: every weight a scalar in memory but one, 0, which is left as a number."""
    pairs = [(made(2, 3, 9, 5, seed=i, dtype=dtype).requires_grad_(), made(2, 3, 9, 5, seed=i + 40)) for i in range(26)]
    student, teacher = made(4, 37, seed=8, dtype=dtype).requires_grad_(), made(2, 4, 37, seed=9, dtype=dtype)
    numbers = [0.0] + [0.1 + i / 7 for i in range(25)]
    memory = torch.tensor([*numbers, 1.9], dtype=torch.float64)
    leaves = [*(p for p, _ in pairs), student]

    def found(weights, kl_weight):
        total, terms = l1_kl_loss(pairs, weights, student, teacher, kl_weight, impl="triton")
        return total, terms, *torch.autograd.grad(total, leaves)

    for a, b in zip(found([0.0, *memory[1:-1]], memory[-1]), found(numbers, 1.9), strict=True):
        assert torch.equal(a, b)
    assert launches == 2 * [*2 * ["_forward_kernel", "_reduce_kernel"], *2 * ["_scale_kernel"]]
    memory.mul_(2)  # what a replay finds there
    for a, b in zip(found([0.0, *memory[1:-1]], memory[-1]), found([2 * w for w in numbers], 3.8), strict=True):
        assert torch.equal(a, b)


def test_fp16_takes_no_weights_from_the_device():
    x = made(5, dtype=F16).requires_grad_()
    with pytest.raises(ValueError, match="fp16 with weights on the device"):
        l1_kl_loss([(x, made(5))], [torch.ones((), dtype=torch.float64)], impl="triton")


def test_the_operation_keeps_its_contract():
    # Not in fp16, where the backward pass changes, in place, what is an output of this inner operation.
    predictions = [
        made(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_(),
        made(6, dtype=B16).requires_grad_(),
        made(4),
    ]
    targets = [made(2, 3, 4, 5, seed=1), made(6, seed=2), made(4, seed=3)]
    student, teacher = made(2, 7).requires_grad_(), made(2, 2, 7, seed=1)
    weights = torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=torch.float64)
    for stored in (False, True):
        needs = [True, True, False, True]
        torch.library.opcheck(l1_kl._l1_kl, (predictions, targets, weights, student, teacher, needs, stored))
        alone = [predictions[2]], [targets[2]], weights[:2], None, None, [False, False], stored
        torch.library.opcheck(l1_kl._l1_kl, alone)


@pytest.mark.parametrize("dtype", [F32, F16])
def test_compiled_whole(dtype):
    leaves = [made(2, 3, 4, 5, dtype=dtype).requires_grad_(), made(2, 7, dtype=dtype).requires_grad_()]
    target, teacher = made(2, 3, 4, 5, seed=1), made(2, 2, 7, seed=1)

    def loss(x, student):
        total, terms = l1_kl_loss([(x * 2, target)], [0.5], student, teacher, 0.5, impl="triton")
        return total * 3, terms

    right = loss(*leaves)
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(found, right)
    for a, b in zip(torch.autograd.grad(found[0], leaves), torch.autograd.grad(right[0], leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_compiled_once_while_weights_grow():
    """The first number is a constant to torch.compile, the second makes it a variable; no third compilation."""
    x, target = made(50).requires_grad_(), made(50, seed=1)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    loss = torch.compile(
        lambda weight: l1_kl_loss([(x, target)], [weight], impl="triton")[0], fullgraph=True, backend=backend
    )
    for i in range(12):
        assert loss(0.1 * i + 0.1).item() == pytest.approx(loss(0.1).item() * (i + 1), rel=1e-5)
    assert len(graphs) <= 3
