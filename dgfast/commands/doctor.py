"""`dgfast doctor`: what this machine offers dgfast, and what is missing."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from dgfast.commands.command_line import read
from dgfast.config import PRESETS
from dgfast.data.datasets.check import default_cache_dir
from dgfast.data.loaders.choose import choose_loader
from dgfast.kernels import fallbacks, l1_kl_loss
from dgfast.models import DGNet
from dgfast.models.backbones import imagenet_file
from dgfast.models.structure import grey

HELP = """Say what this machine offers dgfast, and what is missing; one line a fact."""


@dataclass(frozen=True)
class Command:
    """What the command line says: nothing, as there are no flags."""


def main(argv: list[str] | None = None) -> None:
    """Print one line a fact.

    Args:
        argv: no flags but --help; None takes those of the process.
    Raises:
        UserError: a flag.
    """
    read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast doctor", description=HELP)
    for name, value in facts().items():
        print(f"{name:<18}{value}")


def facts() -> dict[str, str]:
    """What is here.

    Returns:
        name of a fact -> what was found, in the order in which people ask.
    """
    # Imported here, so that a broken build of the extension shows in this command and not in every import of it.
    from dgfast import _rerank

    def version(package: str) -> str:
        return importlib.metadata.version(package) if importlib.util.find_spec(package) else "not installed"

    weights = imagenet_file(Path(torch.hub.get_dir()))
    devices = [
        f"{torch.cuda.get_device_name(i)}, {torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB"
        for i in range(torch.cuda.device_count())
    ]
    there = "present" if weights.is_file() else "absent: fetched at the first use, or put there"
    return {
        "dgfast": importlib.metadata.version("dgfast"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "triton": version("triton"),
        "GPUs": "; ".join(devices) or "none: everything runs on the CPU",
        "CPU": f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        "fused kernels": _kernels(torch.device("cuda" if devices else "cpu")),
        "image loader": choose_loader("auto", torch.device("cuda" if devices else "cpu"))[1],
        "extension": ", ".join(f"{k} {v}" for k, v in _rerank.build_info().items()),
        "ImageNet weights": f"{weights} ({there})",
        "cache": str(default_cache_dir(os.environ)),
    }


def _kernels(device: torch.device) -> str:
    """Which way E_s, G and the loss take here, found by taking it: one small picture and its gradients."""
    model = DGNet(PRESETS["quickstart"].model, num_classes=2).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(2, 3, 128, 64, device=device).contiguous(memory_format=torch.channels_last)
    before = Counter(fallbacks())
    with torch.autocast(device.type, torch.bfloat16):
        picture = model.dress(model.structure(grey(images)), model.look(images).detach(), images)
    l1_kl_loss([(picture, images)], [1.0])[0].backward()
    reasons = {f"{reason} ({times} times)" for reason, times in (Counter(fallbacks()) - before).items()}
    return "Triton everywhere" if not reasons else "eager, or converted first: " + "; ".join(sorted(reasons))
