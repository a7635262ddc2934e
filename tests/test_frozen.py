"""Frozen views: what they look up is looked up once, and never out of date."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dgfast.training.frozen import evaluating, frozen


class Calls(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


X = torch.randn(2, 3, 8, 8)


def test_weights_are_detached_once():
    net = network()
    frozen(net)(X)
    with Calls() as calls:
        frozen(net)(X)
    assert "detach" not in calls.names


@pytest.mark.parametrize("change", ["step", "load", "move", "format"])
def test_a_view_follows_whatever_happens_to_the_weights(change):
    net = network()
    frozen(net)(X)
    if change == "step":
        net[0].weight.grad = torch.ones_like(net[0].weight)
        torch.optim.SGD(net.parameters(), 0.1).step()
    elif change == "load":
        net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})
    elif change == "move":
        net[0].weight.data = net[0].weight.data + 1
    else:
        net.double()
    x = X.to(net[0].weight.dtype)
    found = frozen(net)(x)
    assert not found.requires_grad
    assert torch.equal(found, net.eval()(x))


def test_a_network_that_takes_no_gradient_is_called_as_it_is():
    net = network().requires_grad_(False)
    seen = []
    net[0].register_forward_hook(lambda layer, *_: seen.append(layer.weight is net[0].weight))
    frozen(net)(X)
    net.requires_grad_(True)
    assert not frozen(net)(X).requires_grad
    assert len(seen) == 2 and seen[0]


def test_modes_are_as_before():
    net = network().train()
    net[2].eval()
    with evaluating(net, batch_statistics=True):
        assert [layer.training for layer in net.modules()] == [False, False, True, False]
    assert [layer.training for layer in net.modules()] == [True, True, True, False]


def test_a_network_is_not_kept_alive():
    net = network()
    frozen(net)(X)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
