"""What several test files share, and which tests see a GPU."""

import logging
import os
import signal
from pathlib import Path

# One thread a process: spinning OpenMP threads on a loaded machine cost more than they give on tensors this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests import tiny

GPU_TESTS = Path(__file__).parent / "gpu"
# Test files that take longest begin first. Begun last, one of them would run alone while the other cores have nothing
# left to do.
LONGEST = [
    f"test_{name}.py"
    for name in (
        *("campaign", "ablation", "adain", "documented_commands", "training", "graphs", "stages", "goldens"),
        *("market_preset", "any_command_line", "l1_kl", "elastic", "trackers", "soak", "compile", "profile"),
    )
]


def pytest_configure(config: pytest.Config) -> None:
    """Make the tests independent of where they run.

    GPUs are hidden from every run but `pytest tests/gpu`. The other tests compare bits and count processes, which is
    done on the CPU; with a GPU in sight they would use it. CUDA reads the variable once per process, so that a run
    either sees GPUs or does not.

    Ctrl-C raises KeyboardInterrupt, also where the tests were started with SIGINT ignored, as shells start jobs in the
    background.
    """
    asked = [Path(word.split("::")[0]).resolve() for word in config.args]
    if not all(path.is_relative_to(GPU_TESTS) for path in asked):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # torch.compile describes every tensor that it sees to a logger that nobody reads; pytest would keep all of it, and
    # a compilation would take ten times as long.
    logging.getLogger("torch.__trace").disabled = True
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist would begin with the files of the most tests
        config.option.loadscopereorder = False
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing is read from, or left in, the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """A tiny folder in Market-1501's layout: four identities, two of them the training split."""
    return tiny.market(tmp_path_factory.mktemp("market"))
