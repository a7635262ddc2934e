"""How kernels are launched on a GPU, with tensors without memory and a stand-in for the driver."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from dgfast.kernels import _dispatch, _normalise, _tuning, l1_kl
from dgfast.kernels.l1_kl import _l1_kl
from torch._subclasses.fake_tensor import FakeTensorMode


class Driver:
    """Stands in for CUDA: notes what happens, and on which device."""

    def __init__(self, monkeypatch):
        self.current = 0
        self.events = []
        driver = self

        class Event:
            def __init__(self, enable_timing=False):
                pass

            def record(self):
                driver.events.append("record")

            def synchronize(self):
                driver.events.append("wait")

            def elapsed_time(self, other):
                return 1.0

        @contextmanager
        def device(which):
            before = self.current
            self.current = before if which == -1 else torch.device(which).index
            yield
            self.current = before

        monkeypatch.setattr(torch.cuda, "device", device)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.events.append("sleep"))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(_tuning, "_chosen", {})
        monkeypatch.setattr(_normalise, "launch", lambda *_, **__: self.launched())

    def launched(self):
        self.events.append(("launch", self.current))


@pytest.fixture
def driver(monkeypatch):
    return Driver(monkeypatch)


def images(device="cuda:1"):
    return torch.empty((8, 64, 64, 32), dtype=torch.bfloat16, device=device).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("per_sample", [False, True], ids=["adain", "layer norm"])
def test_normalisations_are_launched_where_their_tensors_are(driver, per_sample):
    with FakeTensorMode():
        x = images()
        row = torch.empty(64, dtype=torch.bfloat16, device="cuda:1")
        rows = (row, row) if per_sample else (None, None)
        out, mean, rstd = _normalise.forward(x, *rows, None, 1e-5, 0.2, 0, per_sample)
        _normalise.backward(out, x, *rows, mean, rstd, None, 1e-5, 0.2, 0, per_sample)
    assert {event for event in driver.events if event[0] == "launch"} == {("launch", 1)}
    assert driver.current == 0


@pytest.mark.parametrize("stored", [False, True])
def test_the_loss_is_launched_where_its_tensors_are(driver, monkeypatch, stored):
    """Weights that lie on the device are not asked for: tensors without memory have no values."""

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, **__: driver.launched()

    monkeypatch.setattr(l1_kl, "_forward_kernel", Kernel())
    monkeypatch.setattr(l1_kl, "_reduce_kernel", Kernel())
    monkeypatch.setattr(torch._subclasses.FakeTensor, "data_ptr", lambda self: 0)
    with FakeTensorMode():
        x = torch.empty((2, 3, 8, 8), device="cuda:1")
        weights = torch.empty(2, dtype=torch.float64, device="cuda:1") if stored else np.zeros(2)
        _l1_kl._init_fn([x], [x], weights, None, None, [False, False], stored)
    assert driver.events == [("launch", 1)] * 2


def test_a_tensor_on_the_cpu_leaves_the_device_alone(driver):
    with _dispatch.on_device_of(torch.zeros(1)):
        assert driver.current == 0


def test_tuning_launches_behind_work_that_keeps_the_card_busy(driver):
    """Else the events would time the host, and of two ways the one with fewer launches would always win."""
    with FakeTensorMode():
        _normalise.forward(images(), None, None, None, 1e-5, 0.2, 1, False)
    events = [event if isinstance(event, str) else event[0] for event in driver.events]
    starts = [i for i, event in enumerate(events) if event == "record" and events[i + 1] == "launch"]
    assert len(starts) >= 10  # five timings of each of several tilings
    for i in starts:
        stop = events.index("record", i + 1)
        assert events[i - 1] == "sleep"
        assert set(events[i + 1 : stop]) == {"launch"}
