"""One training iteration at the paper's size: the plain restatement of the method (tests/naive_step.py) and dgfast's
step.

    pytest bench/bench_step.py --benchmark              time and peak memory of each, ratios to the plain step
    python bench/bench_step.py lean bf16 --batch 8      one of them, as JSON
    python bench/bench_step.py --host                   the host's work alone: time of ours over that of the plain step

But for the last, each runs in a process of its own, so that the peak of memory is its own: on a GPU that of the
allocator, on a CPU that of the process above what it held before the first step. The plain step computes in fp32 and
contiguous format with unfused optimisers, as the public reference does by default. Before pytest times anything both
have given the same losses, at the same weights.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

sys.path.insert(0, str(Path(__file__).parent.parent))  # as a script, too: the restatement is the tests'

from dgfast.config import Config, LossConfig, ModelConfig, OptimConfig
from dgfast.data.batches import PairBatch, StreamBatch
from dgfast.models import DGNet
from dgfast.models.backbones import BACKBONES, ResNet50
from dgfast.models.dgnet import make_teacher
from dgfast.training.distributed import Workers
from dgfast.training.precision import MixedPrecision
from dgfast.training.stages import DGNetStage
from dgfast.training.step import discriminator_losses, generator_losses, translate, weights_at
from tests import naive_step

CLASSES = 751
WARM = 10**6  # an iteration at which all weights have grown
ON_GPU = torch.cuda.is_available()


def made_up(samples: int, size: tuple[int, int], device: torch.device) -> PairBatch:
    g = torch.Generator().manual_seed(0)

    def stream() -> StreamBatch:
        images = [torch.randn(samples, 3, *size, generator=g).to(memory_format=torch.channels_last) for _ in range(4)]
        labels = torch.randint(0, CLASSES, (samples,), generator=g)
        return StreamBatch(*images, labels, torch.arange(samples)).to(device)

    return PairBatch(stream(), stream())


def step_of(way: str, precision: str, samples: int, size: tuple[int, int], model: ModelConfig) -> Callable[[], object]:
    """One iteration of fresh networks, as a function."""
    torch.manual_seed(0)
    workers = Workers()
    config = Config(model=model, optim=OptimConfig(batch_size=samples), loss=LossConfig())
    # Before either step: it also forbids TF32, which torch by itself allows convolutions on a GPU.
    formats = MixedPrecision(precision, workers.device, tf32=False)
    networks, teacher = DGNet(config.model, CLASSES), make_teacher(config.model, CLASSES).eval()
    form = torch.contiguous_format if way == "naive" else torch.channels_last
    networks, teacher = (n.to(workers.device, memory_format=form) for n in (networks, teacher))
    batch = made_up(samples, size, workers.device)
    if way == "naive":
        generator = [*networks.structure.parameters(), *networks.decoder.parameters()]
        optimizers = {
            "generator": torch.optim.Adam(generator, 1e-4, (0.0, 0.999), weight_decay=5e-4),
            "discriminator": torch.optim.Adam(
                networks.discriminator.parameters(), 1e-4, (0.0, 0.999), weight_decay=5e-4
            ),
            "appearance": torch.optim.SGD(
                networks.appearance.parameters(), 0.002, 0.9, nesterov=True, weight_decay=5e-4
            ),
        }

        return lambda: naive_step.iteration(
            networks, teacher, batch, weights_at(config.loss, WARM), structure_learns=True, optimizers=optimizers
        )
    stage = DGNetStage(networks, teacher.requires_grad_(False), config, workers, formats)
    return lambda: stage.step(batch, WARM)


def run(way: str, precision: str, samples: int, size: tuple[int, int], steps: int) -> dict[str, float | str]:
    """Seconds an iteration (the fastest of `steps`), images/s of both streams, peak memory in GiB."""
    step = step_of(way, precision, samples, size, ModelConfig())
    before = _peak()
    step()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        if ON_GPU:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {
        "way": way,
        "precision": precision,
        "device": torch.cuda.get_device_name() if ON_GPU else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "batch": samples,
        "seconds": min(seconds),
        "images_per_s": 2 * samples / min(seconds),
        "peak_gib": (torch.cuda.max_memory_allocated() if ON_GPU else _peak() - before) / 2**30,
    }


class NarrowResNet50(ResNet50):
    """All layers of a ResNet-50, each a thirty-second as wide."""

    channels = ResNet50.channels // 32

    def __init__(self) -> None:
        super().__init__()
        net = ResNet(Bottleneck, [1, 1, 1, 1])
        net.inplanes = 2
        self.conv1, self.bn1 = nn.Conv2d(3, 2, 7, 2, 3, bias=False), nn.BatchNorm2d(2)
        self.layer1, self.layer2 = net._make_layer(Bottleneck, 2, 3), net._make_layer(Bottleneck, 4, 4, 2)
        self.layer3, self.layer4 = net._make_layer(Bottleneck, 8, 6, 2), net._make_layer(Bottleneck, 16, 3)


def host(rounds: int) -> dict[str, float | str]:
    """Milliseconds that the host computes for a step, and its share of the plain step's: medians over the rounds.

    The networks have all layers of the paper's, but are so narrow, and the images so small, that what is left is the
    host's work: Python, autograd, the dispatch of operators, optimisers. Measured is the processor's time, so that
    other work on the machine counts little. Both steps run in turn.
    """
    torch.set_num_threads(1)
    BACKBONES["narrow"] = NarrowResNet50
    narrow = ModelConfig("narrow", embedding=16, structure_width=2, style_hidden=8, discriminator_width=4)
    steps = {name: step_of(*name.split(), 2, (40, 40), narrow) for name in ("naive fp32", "lean fp32", "lean bf16")}
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            if number:  # the first makes the optimisers' state
                spent[name].append(1000 * (time.process_time() - began))
    found: dict[str, float | str] = {f"{name}, ms": statistics.median(times) for name, times in spent.items()}
    naive = statistics.median(spent["naive fp32"])
    for name in ("lean fp32", "lean bf16"):
        found[f"{name}, of the plain step"] = statistics.median(spent[name]) / naive
    device = torch.cuda.get_device_name() if ON_GPU else "CPU"
    return found | {"rounds": str(rounds), "device": device, "torch": torch.__version__}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(scope="session")
def same_losses():
    """Both steps of the same small batch; nothing is timed before."""
    torch.manual_seed(0)
    networks, teacher = DGNet(Config().model, CLASSES), make_teacher(Config().model, CLASSES).eval()
    networks.appearance.eval()  # no dropout, whose draws depend on the order of the calls
    batch, weights = made_up(1, (64, 48), torch.device("cpu")), weights_at(LossConfig(), WARM)
    expected, _ = naive_step.iteration(networks, teacher, batch, weights, structure_learns=True, batch_statistics=False)
    made = translate(networks, batch)
    found = {f"d/{name}": loss for name, loss in discriminator_losses(networks, batch, made, weights).items()}
    g = generator_losses(networks, teacher, batch, made, weights, structure_learns=True, batch_statistics=False)
    found |= {f"g/{name}": loss for name, loss in g.items()}
    for name, loss in expected.items():
        torch.testing.assert_close(found[name].detach(), loss, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


CASES = [("naive", "fp32"), ("lean", "fp32"), ("lean", "bf16")]
BATCHES = [8, 16, 32, 64, 128] if ON_GPU else [4]
_naive: dict[int, dict] = {}


@pytest.mark.parametrize("samples", BATCHES)
@pytest.mark.parametrize(("way", "precision"), CASES)
def test_step(benchmark, capsys, same_losses, way, precision, samples):
    if not benchmark.enabled:
        return  # the losses have been compared
    if way == "naive" and samples > 8:
        pytest.skip("the plain step is run at the reference's batch")
    command = [sys.executable, __file__, way, precision, "--batch", str(samples), "--steps", "20" if ON_GPU else "2"]
    report: dict = {}

    def once() -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if "OutOfMemory" in done.stderr:
            pytest.skip(f"batch {samples} does not fit")
        assert done.returncode == 0, done.stderr[-2000:]
        report.update(json.loads(done.stdout.splitlines()[-1]))

    benchmark.pedantic(once, rounds=1)
    benchmark.extra_info.update(report)
    if way == "naive":
        _naive[samples] = report
    line = f"{way} {precision}, batch {samples}: {report['seconds']:.3g} s, {report['images_per_s']:.4g} images/s, "
    line += f"{report['peak_gib']:.2f} GiB"
    if plain := _naive.get(samples):
        line += f"; {report['seconds'] / plain['seconds']:.2f} of the plain step's time"
    with capsys.disabled():
        print("\n" + line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=["naive", "lean"], nargs="?")
    parser.add_argument("precision", choices=["fp32", "bf16", "fp16"], nargs="?")
    parser.add_argument("--host", action="store_true", help="the host's work of both steps, in turn")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each with --host")
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    parser.add_argument("--batch", type=int, default=4, help="images a stream")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 128], help="height and width")
    parser.add_argument("--steps", type=int, default=3)
    flags = parser.parse_args()
    if not flags.host and flags.precision is None:
        parser.error("give a way and a precision, or --host")
    if flags.host:
        result = host(flags.rounds)
    else:
        result = run(flags.way, flags.precision, flags.batch, tuple(flags.size), flags.steps)
    print(json.dumps(result))
    if flags.json:
        flags.json.write_text(json.dumps(result, indent=1) + "\n")
