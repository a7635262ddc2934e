"""Weights in autocast's format: cast by one operation for all passes, with autocast's own bits, never out of date."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn

from dgfast.training.frozen import counted_together, frozen, untracked
from dgfast.training.stand_ins import cast_weights, parts_of
from tests.counting import Cost

BF16 = torch.bfloat16
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(72, 5),
    )


def autocast():
    return torch.autocast("cpu", BF16)


def calls(cost: Cost) -> Counter:
    return Counter({key[2]: number for key, number in cost.calls_by.items()})


def test_bits_are_those_of_autocast():
    one, other = network(), network()
    with autocast():
        expected = one(X)
        expected.float().square().sum().backward()
        with cast_weights(BF16, [other], []):
            found = other(X)
            found.float().square().sum().backward()
    assert torch.equal(found, expected)
    for mine, theirs in zip(other.parameters(), one.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad) and mine.grad.dtype == torch.float32


def test_all_weights_are_cast_at_once_however_many_passes_there_are():
    net = network()
    with autocast(), Cost() as cost, cast_weights(BF16, [net], [net]):
        total = (net(X) + net(X) + frozen(net)(X)).float().square().sum()
        with torch.no_grad():
            net(X)
        total.backward()
    found = calls(cost)
    assert found["_foreach_copy_"] == 3  # to learn from, for the frozen view, and back
    # What is left are the images, once a pass, and the sum; not a weight.
    assert found["_to_copy"] <= 4 + 2, found


def test_a_frozen_view_takes_no_gradient_to_the_weights():
    net, x = network(), X.clone().requires_grad_()
    with autocast(), cast_weights(BF16, [net], [net]):
        frozen(net)(x).float().square().sum().backward()
    assert x.grad.any() and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, lambda p, lr: torch.optim.Adam(p, lr, fused=True)])
def test_copies_are_made_anew_behind_an_optimiser(optimiser):
    """Some optimisers do not tell the weights' version counters that they have been there."""
    net = network().eval()
    step = optimiser(net.parameters(), 0.1)
    for _ in range(2):
        with autocast(), cast_weights(BF16, [net], [net]):
            found, seen = net(X), frozen(net)(X)
            found.float().square().sum().backward()
        with autocast():
            expected = copy.deepcopy(net)(X)
        assert torch.equal(found, expected) and torch.equal(seen, expected)
        step.step()


def test_afterwards_a_network_has_its_own_weights_also_behind_an_error():
    net = network()
    before = list(net.parameters())
    with pytest.raises(RuntimeError, match="broken"), cast_weights(BF16, [net], [net]):
        assert all(p.dtype == BF16 for name, p in net[0]._parameters.items())
        raise RuntimeError("broken")
    assert all(one is other for one, other in zip(net.parameters(), before, strict=True))
    assert all(constant.dtype == torch.float32 for constant in parts_of(net).constants)


def test_several_backward_passes_add_up():
    once, twice = network(), network()
    for net, parts in ((once, [X]), (twice, [X, X])):
        with autocast(), cast_weights(BF16, [net], []), untracked(net):
            for x in parts:
                (net(x).float().square().sum() / len(parts)).backward()
    for one, other in zip(once.parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_gradients_do_not_wait_for_the_rest_of_the_backward_pass():
    """So that their way to other processes begins while the pass goes on."""
    first, net, arrived = nn.Conv2d(3, 3, 1), network(), []
    first.weight.register_hook(lambda grad: arrived.append("first"))
    net[0].weight.register_hook(lambda grad: arrived.append("net"))
    with cast_weights(BF16, [net], []):
        x = first(X)
        with autocast():
            net(x).float().sum().backward()
    assert arrived == ["net", "first"]


def test_batches_are_counted_together():
    one, other = network().train(), network().train()
    for _ in range(3):
        one(X)
    with counted_together(other):
        for _ in range(3):
            other(X)
        with untracked(other):
            other(X)
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert other[1].num_batches_tracked == 3
    with counted_together(other.eval()):
        other(X)
    assert other[4].num_batches_tracked == 3
