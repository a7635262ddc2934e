"""What several parts share: sizes, networks, time."""

import dataclasses
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dgfast.config import Config, ModelConfig, OptimConfig
from dgfast.models import DGNet, Teacher
from dgfast.models.dgnet import make_teacher
from dgfast.models.layers import kaiming_fan_in
from dgfast.training.distributed import Workers
from dgfast.training.graphs import Recorder
from dgfast.training.precision import MixedPrecision
from dgfast.training.stages import STRUCTURE_LEARNS, DGNetStage
from tests import tiny

from ..bounded import ROOT
from ..record import Record

CLASSES = 751
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
LEFT_FOR_LAST = 20.0  # seconds of a part's limit in which nothing new begins


class Size(NamedTuple):
    """Networks and a batch.

    model: sizes of the networks.
    image: height and width, pixels.
    samples: of a stream.
    """

    model: ModelConfig
    image: tuple[int, int]
    samples: int


FULL = Size(ModelConfig(), (256, 128), 2)
TINY = Size(tiny.MODEL, tiny.SIZE, 2)


def size_of(record: Record, samples: int = 2) -> Size:
    return TINY if record.dry_run else FULL._replace(samples=samples)


def wait_for_device() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def milliseconds(run: Callable[[], object], number: int) -> float:
    """The median of some runs, ms: between events of the device, on a CPU by the clock."""
    run()
    found = []
    for _ in range(number):
        if ON_GPU:
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            stop.record()
            stop.synchronize()
            found.append(start.elapsed_time(stop))
        else:
            began = time.perf_counter()
            run()
            found.append(1000 * (time.perf_counter() - began))
    return sorted(found)[number // 2]


def networks_of(size: Size, device: torch.device) -> tuple[DGNet, Teacher]:
    """The same weights on every device; no dropout, whose draws differ between devices."""
    torch.manual_seed(0)
    model = dataclasses.replace(size.model, prim_dropout=0.0, fine_dropout=0.0)
    networks, teacher = DGNet(model, CLASSES), make_teacher(model, CLASSES).eval().requires_grad_(False)
    kaiming_fan_in(networks.discriminator)  # else its gradients are little more than rounding
    form = torch.channels_last
    return networks.train().to(device, memory_format=form), teacher.to(device, memory_format=form)


def config_of(size: Size, **optim: Any) -> Config:
    return Config(optim=OptimConfig(batch_size=size.samples, **optim), model=size.model)


def stage_of(
    size: Size, precision: str = "fp32", workers: Workers | None = None, change: Callable[[Any], Any] | None = None,
    recorder: Callable[[], Recorder] | None = None, **optim: Any,
) -> DGNetStage:  # fmt: skip
    """DG-Net's stage as a run has it; `change` is applied to the networks before."""
    networks, teacher = networks_of(size, DEVICE)
    formats = MixedPrecision(precision, DEVICE, tf32=False)
    networks = change(networks) if change else networks
    return DGNetStage(networks, teacher, config_of(size, **optim), workers or Workers(), formats, recorder)


def structure_learns_at(seed: int, iteration: int) -> bool:
    """The coin of an iteration, as the stage throws it."""
    return random.Random(f"{seed}:{iteration}").random() < STRUCTURE_LEARNS


def loss_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference of a loss, relative to it, or to 0.01 where it is smaller; NaN if there is one."""
    differences = [(found[k] - v).abs() / v.abs().clamp_min(1e-2) for k, v in expected.items()]
    return float(torch.stack(differences).max())


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def run_tests(record: Record, name: str, *words: str) -> str:
    """Note whether tests pass in a process of their own, and return what they said."""
    # Not the interpreter of this process.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    tail = "\n".join(done.stdout.splitlines()[-12:])
    record.holds(name, done.returncode == 0 and " passed" in done.stdout, tail[-1500:])
    return done.stdout
