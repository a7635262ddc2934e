"""`pytest bench/ --benchmark` times; without the flag each case runs once, as a check of its result."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # `bench.timing`, and the tests' restatement of the step


def pytest_addoption(parser):
    parser.addoption(
        "--benchmark", action="store_true", help="time the cases; without it each runs once, to check its result"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its own options
def pytest_configure(config):
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True


def pytest_collect_file(file_path, parent):
    """bench_*.py of a folder; a file that is named on the command line is collected by pytest itself."""
    if file_path.match("bench_*.py") and not parent.session.isinitpath(file_path):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


@pytest.fixture(scope="session")
def copy_bandwidth():
    """Bytes per second, read and written, of the best of 20 copies of 1 GiB on the GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    source = torch.empty(2**28, device="cuda").normal_()
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return 2 * source.nbytes / min(times)
