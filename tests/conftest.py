"""What several test files share."""

import os
import signal

# One thread a process: spinning OpenMP threads on a loaded machine cost more than they give on tensors this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests import tiny


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing is read from, or left in, the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """A tiny folder in Market-1501's layout: four identities, two of them the training split."""
    return tiny.market(tmp_path_factory.mktemp("market"))


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, also where the tests were started with SIGINT ignored, as shells start jobs in
    the background."""
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)
