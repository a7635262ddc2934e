"""The combined L1/KL loss: the eager reference against the objective's terms, the kernels interpreted and compiled."""

import contextlib
import functools
import itertools
import os
import re
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dgfast.kernels import _dispatch, fallbacks
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from dgfast.training import losses
from tests.ahead_of_time import CAPABILITIES, EVERYTHING, TOOLS, resources

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests/goldens/kernels_l1_kl.md"
STYLES = ["soft", "hard", "appearance", "uniform", "two-label"]


@pytest.fixture(scope="module")
def l1_kl():
    from dgfast.kernels import l1_kl

    return l1_kl


def made(*shape, dtype=torch.float32, seed=0, last=False, grad=True):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    return x.requires_grad_(grad)


@pytest.mark.parametrize("style", STYLES)
def test_the_reference_equals_the_terms_of_the_objective(l1_kl, style):
    """Two streams of every term, as one iteration sums them; every label style takes this route."""
    images, codes = [made(2, 3, 8, 4, seed=i) for i in range(4)], [made(2, 5, seed=i) for i in range(4)]
    students, teachers = [made(2, 7, seed=i) for i in (5, 6)], [made(2, 2, 7, seed=i, grad=False) for i in (7, 8)]
    clothes, body = torch.tensor([0, 1]), torch.tensor([3, 1])
    leaves = [images[0], images[2], codes[0], codes[2], *students]

    labels = [losses.label(style, t, clothes, body, 7) for t in teachers]
    image = F.l1_loss(images[0], images[1].detach()) + F.l1_loss(images[2], images[3].detach())
    code = F.l1_loss(codes[0], codes[1].detach()) + F.l1_loss(codes[2], codes[3].detach())
    primary = sum(
        F.kl_div(s.log_softmax(1), label, reduction="batchmean") for label, s in zip(labels, students, strict=True)
    )
    expected = 5 * image + 0.3 * code + 2 * primary
    wanted = torch.autograd.grad(expected, leaves)

    pairs = [(images[0], images[1]), (images[2], images[3]), (codes[0], codes[1]), (codes[2], codes[3])]
    source = {"teacher_logits": torch.cat(teachers, 1)} if style == "soft" else {"labels": torch.cat(labels)}
    total, terms = l1_kl.l1_kl_loss(pairs, [5, 5, 0.3, 0.3], torch.cat(students), kl_weight=2 * 2.0, **source)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(
        torch.stack([terms[0] + terms[1], terms[2] + terms[3], 2 * terms[4]]), torch.stack([image, code, primary])
    )
    assert not terms.requires_grad
    for found, right in zip(torch.autograd.grad(total, leaves), wanted, strict=True):
        torch.testing.assert_close(found, right)


def test_the_reference_has_the_gradients_of_its_values(l1_kl):
    teacher = made(3, 2, 5, dtype=torch.float64, seed=3, grad=False)
    target = made(2, 3, dtype=torch.float64, seed=4, grad=False)

    def total(prediction, student):
        return l1_kl.l1_kl_loss([(prediction, target)], [0.7], student, teacher, 1.3)[0]

    assert torch.autograd.gradcheck(total, (made(2, 3, dtype=torch.float64), made(2, 5, dtype=torch.float64, seed=1)))


def test_mistakes_are_named(l1_kl):
    loss, x, logits = l1_kl.l1_kl_loss, torch.zeros(2, 3), torch.zeros(2, 5)
    views = torch.zeros(2, 2, 5)
    for message, call in {
        "2 pairs and 1 weights": lambda: loss([(x, x)] * 2, [1.0]),
        "pair 1: .* must have one shape": lambda: loss([(x, x), (x, x[:, :2])], [1.0, 1.0]),
        "pair 0 is empty": lambda: loss([(x[:0], x[:0])], [1.0]),
        "nothing to sum": lambda: loss([], []),
        "one of them": lambda: loss([], [], logits, views, labels=logits),
        "student_logits need": lambda: loss([], [], logits),
        "and these need student_logits": lambda: loss([(x, x)], [1.0], None, views),
        "do not fit": lambda: loss([], [], logits, logits),
        "logits are empty": lambda: loss([], [], logits[:0], views[:, :0]),
        "floating-point": lambda: loss([(x.long(), x)], [1.0]),
        "expected 'auto', 'triton' or 'eager'": lambda: loss([(x, x)], [1.0], impl="cuda"),
        "tensor on the cpu": lambda: loss([(x, x)], [1.0], impl="triton"),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_the_eager_path_is_taken_and_counted_where_the_kernel_does_not_apply(l1_kl):
    def reason(*pair):
        before = Counter(fallbacks())
        total, _ = l1_kl.l1_kl_loss([pair], [1.0])
        assert total.device == pair[0].device
        return list(Counter(fallbacks()) - before)

    assert reason(torch.zeros(2), torch.zeros(2)) == ["l1_kl_loss: tensor on the cpu"]
    with FakeTensorMode():
        there = torch.empty(2, device="cuda")
        assert reason(there, there.bfloat16()) == reason(there.half(), there) == []
        assert reason(there, there.double()) == ["l1_kl_loss: dtype torch.float64"]
    other = torch.empty(2, device="meta")
    with pytest.raises(ValueError, match="tensors on several devices"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch, "INTERPRETED", True)
        l1_kl.l1_kl_loss([(torch.zeros(2), other)], [1.0], impl="triton")


def test_on_a_gpu_the_kernel_is_chosen_and_gradients_keep_the_memory_format(l1_kl):
    with FakeTensorMode():
        prediction = torch.empty(2, 3, 8, 4, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
        student = torch.empty(2, 7, device="cuda", requires_grad=True)
        pairs = [(prediction, torch.empty(2, 3, 8, 4, device="cuda"))]
        total, terms = l1_kl.l1_kl_loss(pairs, [1.0], student, torch.empty(2, 2, 7, device="cuda"), 1.0)
        assert "l1_kl" in total.grad_fn.name() and total.device.type == "cuda" and terms.shape == (2,)
        _, image, logits = total.grad_fn.saved_tensors
        assert image.is_contiguous(memory_format=torch.channels_last) and logits.shape == (2, 7)


@pytest.mark.slow
def test_kernels_in_the_interpreter():
    """Their tests run in a process of their own: the interpreter is chosen when triton is imported, for good."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/interpreted/l1_kl_cases.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


# ---------------------------------------------------------------- ahead of time


@contextlib.contextmanager
def compiled(l1_kl, capability):
    """Launches inside compile for this capability and run nothing.

    Yields a list that they fill with (kernel's name, compiled kernel, its resources).
    """
    target = types.SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: 1000 + capability,  # a number that no real device has: the key of the kernels' cache
        get_current_stream=lambda device=None: 0,
    )
    found = []
    kernels = [l1_kl._forward_kernel, l1_kl._reduce_kernel, l1_kl._scale_kernel]
    with pytest.MonkeyPatch.context() as patch:
        for kernel in kernels:

            def run(*args, original=kernel.run, name=kernel.__name__, **options):
                found.append((name, *resources(lambda: original(*args, **{**options, "warmup": True}))))

            patch.setattr(kernel, "run", run)
        patch.setattr(l1_kl, "on_device_of", lambda x: contextlib.nullcontext())
        patch.setattr(driver, "_active", target)
        yield found


def step(image, target, code, logits, *, learn=True, last=False):
    """The loss of one iteration in the dtypes given: images against images, codes, the primary head's logits."""
    pairs = [
        (made(2, 3, 64, 32, dtype=image, last=True, grad=learn), made(2, 3, 64, 32, dtype=target, last=not last))
    ] * 6
    pairs += [(made(2, 128, 16, 8, dtype=code, last=True, grad=learn), made(2, 128, 16, 8, dtype=code, last=True))] * 2
    pairs += [(made(2, 1024, dtype=code, grad=False), made(2, 1024, dtype=code))] * 2
    return pairs, [1.0] * 10, made(2, 751, dtype=logits, grad=learn), made(2, 2, 751, dtype=logits), 2.0


F32, B16, F16 = torch.float32, torch.bfloat16, torch.float16


def one_pair(prediction, target, **labels):
    """A single pair [2, 3, 64, 32], which learns; `labels` in place of the teacher's logits."""
    logits = made(2, 751, dtype=B16, grad=True)
    return [(prediction.requires_grad_(), target)], [1.0], logits, labels.get("labels", made(2, 2, 751, dtype=B16)), 2.0


def unaligned(dtype):
    return torch.empty(2 * 3 * 64 * 32 + 1, dtype=dtype)[1:].view(2, 3, 64, 32)


def far_apart(dtype):
    """Two samples 2^31 values apart: their offsets need 64 bits. Reserved and never touched."""
    return torch.empty(2**31 + 3 * 64 * 32, dtype=dtype).as_strided((2, 3, 64, 32), (2**31, 64 * 32, 32, 1))


CONFIGURATIONS = {
    "fp32": functools.partial(step, F32, F32, F32, F32),
    "fp32, evaluation": functools.partial(step, F32, F32, F32, F32, learn=False),
    "fp32, contiguous targets": functools.partial(step, F32, F32, F32, F32, last=True),
    "bf16 codes and logits": functools.partial(step, F32, F32, B16, B16),
    "bf16": functools.partial(step, B16, B16, B16, B16),
    "fp16 codes and logits": functools.partial(step, F32, F32, F16, F16),
    "bf16, weights on the device": functools.partial(step, B16, B16, B16, B16),
    "bf16, ready labels": lambda: one_pair(
        made(2, 3, 64, 32, dtype=B16), made(2, 3, 64, 32, dtype=B16), labels=made(2, 751)
    ),
    "bf16, unaligned": lambda: one_pair(unaligned(B16), unaligned(B16)),
    "bf16, samples far apart": lambda: one_pair(far_apart(B16), made(2, 3, 64, 32, dtype=F32)),
}
STORED = {"bf16, weights on the device"}
SCALAR = {"bf16, unaligned", "bf16, samples far apart"}  # accessed value by value


HEADER = f"""# Registers and shared memory of the combined loss's kernels

Written by `DGFAST_AOT=all python -m pytest tests/test_l1_kl.py` with {TOOLS}; do not edit.

| target | tensors | kernel | registers | spilled bytes | shared bytes |
|---|---|---|---|---|---|
"""


def compiled_rows(l1_kl, capability, name):
    """Check each kernel of one configuration's launches, and return its row of the table."""
    with compiled(l1_kl, capability) as found:
        pairs, weights, student, teacher, kl_weight = CONFIGURATIONS[name]()
        needs = [p.requires_grad for p, _ in pairs] + [student.requires_grad]
        inputs = [p.detach() for p, _ in pairs], [t.detach() for _, t in pairs]
        *_, gradients = l1_kl._l1_kl(
            *inputs,
            torch.tensor([*weights, kl_weight], dtype=torch.float64),
            student.detach(),
            teacher.detach(),
            needs,
            name in STORED,
        )
        if gradients:
            l1_kl._scale(gradients, [1.0] * len(gradients), torch.ones(()))
    rows = []
    for kernel, binary, takes in found:
        row = f"| sm_{capability} | {name} | `{kernel}` | {takes.registers} | {takes.spilled} | {takes.shared} |"
        assert takes.spilled == 0, row
        wide = re.findall(r"(ld|st)\.global\.(?:L1::\w+\.)?v(?:4\.b32|2\.b64)", binary.asm["ptx"])
        if kernel == "_forward_kernel" and name not in SCALAR:
            assert "ld" in wide and ("st" in wide or not gradients), row
        if kernel == "_scale_kernel":
            assert {"ld", "st"} <= set(wide), row
        rows.append(row)
    assert rows
    return rows


@pytest.fixture
def _own_triton_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("_own_triton_cache")
@pytest.mark.skipif(EVERYTHING, reason="everything is compiled below")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_compiled_kernels_spill_nothing_and_move_16_bytes(l1_kl, name):
    """Every kind of launch for one GPU, and each GPU a third of them; registers as in the table."""
    capability = CAPABILITIES[list(CONFIGURATIONS).index(name) % len(CAPABILITIES)]
    rows, table = compiled_rows(l1_kl, capability, name), TABLE.read_text()
    if TOOLS in table:
        expected = [row for row in table.splitlines() if row.startswith(f"| sm_{capability} | {name} |")]
        assert rows == expected, "the kernel has changed: DGFAST_AOT=all writes the table"


@pytest.mark.slow
@pytest.mark.usefixtures("_own_triton_cache")
@pytest.mark.skipif(not EVERYTHING, reason="DGFAST_AOT=all compiles every kind of launch for every GPU")
def test_everything_compiled(l1_kl):
    rows = [compiled_rows(l1_kl, capability, name) for capability in CAPABILITIES for name in CONFIGURATIONS]
    TABLE.write_text(HEADER + "\n".join(itertools.chain.from_iterable(rows)) + "\n")
