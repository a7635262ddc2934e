"""The machine and the programs of a run, as they are written into its report.json."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch


def environment(world_size: int, loader: str) -> dict[str, str | int]:
    """Describe this process.

    Args:
        world_size: processes that trained.
        loader: what loads images, in words.
    Returns:
        what -> value, as JSON has a form for.
    """
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "dgfast": importlib.metadata.version("dgfast"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpus": ", ".join(gpus) or "none",
        "processes": world_size,
        "loader": loader,
    }


def _processor() -> str:
    """The processor's name; Linux has it in a file, and `platform` often knows the architecture alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
