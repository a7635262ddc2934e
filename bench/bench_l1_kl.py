"""The combined L1/KL loss of one iteration: eager, torch.compile and the kernel; forward, backward and both.

On a GPU it runs at the real shapes: images of 256x128, batches of 8 and 64 a stream, 751 identities. A CUDA graph
repeats the call over sets of tensors that together exceed the L2 cache, so that neither the host nor a warm cache is
measured. A gradient can be asked for once, so a backward pass alone is not repeated: its time is that of both less that
of the forward pass. The bytes that must move at least, divided by the time, are given as a fraction of the card's copy
bandwidth. On a CPU eager is compared with torch.compile at small shapes.
"""

import functools

import pytest
import torch
from dgfast.kernels.l1_kl import l1_kl_loss

from bench.timing import captured, sets_beyond_l2

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
IMAGE = (256, 128) if CUDA else (64, 32)
IMPLEMENTATIONS = ["eager", "compile", "triton"] if CUDA else ["eager", "compile"]
ROUNDS = 30


@functools.cache  # one compilation for all phases
def loss_of(name):
    if name == "compile":
        return torch.compile(lambda *args: l1_kl_loss(*args, impl="eager"), fullgraph=True, dynamic=False)
    return lambda *args: l1_kl_loss(*args, impl=name)


def case(batch, dtype, seed=0):
    """Leaves and arguments: six images, two structure codes, two appearance codes, two streams of logits."""
    rng = torch.Generator(DEVICE).manual_seed(seed)

    def made(*shape, grad=False, dtype=dtype):
        x = torch.randn(shape, generator=rng, device=DEVICE).to(dtype)
        return (x.to(memory_format=torch.channels_last) if len(shape) == 4 else x).requires_grad_(grad)

    h, w = IMAGE
    pairs = [(made(batch, 3, h, w, grad=True), made(batch, 3, h, w, dtype=torch.float32)) for _ in range(6)]
    pairs += [(made(batch, 128, h // 4, w // 4, grad=True), made(batch, 128, h // 4, w // 4)) for _ in range(2)]
    pairs += [(made(batch, 8192, grad=True), made(batch, 8192)) for _ in range(2)]
    student, teacher = made(2 * batch, 751, grad=True), made(2, 2 * batch, 751)
    arguments = (pairs, [5.0] * 4 + [2.0] * 2 + [1.0] * 4, student, teacher, 4.0)
    return [p for p, _ in pairs] + [student], arguments


def check(loss, leaves, arguments):
    """Compare values and gradients with the reference; nothing is timed before."""
    total, terms = loss(*arguments)
    right, right_terms = l1_kl_loss(*arguments, impl="eager")
    torch.testing.assert_close(total, right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms, right_terms, rtol=1e-5, atol=1e-5)
    gradients = zip(torch.autograd.grad(total, leaves), torch.autograd.grad(right, leaves), strict=True)
    for found, expected in gradients:
        torch.testing.assert_close(found, expected, rtol=8e-3, atol=1e-6)


def least_bytes(leaves, arguments):
    """Bytes if every input is read once and every gradient written once."""
    inputs = [x for pair in arguments[0] for x in pair] + list(arguments[2:4])
    return sum(x.nbytes for x in [*inputs, *leaves])


def step(loss, leaves, arguments, phase):
    """The call that is timed."""
    if phase == "forward":
        return lambda: loss(*arguments)
    return lambda: torch.autograd.grad(loss(*arguments)[0], leaves)


@pytest.mark.parametrize("phase", ["forward", "both"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("batch", [8, 64] if CUDA else [2])
def test_loss(benchmark, copy_bandwidth, batch, dtype, implementation, phase):
    leaves, arguments = case(batch, dtype)
    loss = loss_of(implementation)
    check(loss, leaves, arguments)
    benchmark.group = f"batch {batch}, {str(dtype)[6:]}, {phase}"
    if not CUDA:
        benchmark.pedantic(step(loss, leaves, arguments, phase), rounds=ROUNDS, warmup_rounds=3)
        return
    least = least_bytes(leaves, arguments)
    sets = [(leaves, arguments), *(case(batch, dtype, seed) for seed in range(1, sets_beyond_l2(least)))]
    replay = captured(lambda: [step(loss, *one, phase) for one in sets])
    benchmark.pedantic(replay, rounds=ROUNDS, warmup_rounds=3)
    if benchmark.enabled:
        seconds = benchmark.stats.stats.median / len(sets)
        fraction = least / seconds / copy_bandwidth
        benchmark.extra_info.update(microseconds_a_call=1e6 * seconds, fraction_of_copy_bandwidth=fraction)
        print(f"\n{benchmark.group}, {implementation}: {1e6 * seconds:.1f} us, {fraction:.0%} of copy bandwidth")
