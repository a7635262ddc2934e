"""The user's cache: what killed processes left there goes, what living ones are writing stays."""

import subprocess
import sys
from pathlib import Path

import pytest

from dgfast.commands import sources
from dgfast.config import SyntheticConfig
from dgfast.data.datasets.check import check_images, default_cache_dir
from dgfast.files import writing_with_others

PEOPLE = SyntheticConfig(synthetic_train_identities=2, synthetic_test_identities=2)
WRITER = """
import sys
from pathlib import Path
from dgfast.files import replacing, writing_with_others

cache = Path(sys.argv[1])
with writing_with_others(cache), replacing(cache / "people") as partial:
    partial.mkdir()
    (partial / "picture.jpg").write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default_cache_dir().mkdir()
    return default_cache_dir()


@pytest.fixture
def writer(cache):
    """Another process, in the middle of what it writes."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def unfinished(cache: Path) -> list[Path]:
    return list(cache.glob(".*.tmp"))


def test_who_draws_the_pedestrians_removes_what_a_killed_process_left(cache, writer):
    writer.kill()
    writer.wait()
    (cache / ".index-0123.json.89ab.tmp").write_text("{")
    assert len(unfinished(cache)) == 2
    root = sources._built_in_pedestrians(PEOPLE, (48, 48))
    assert [path.name for path in cache.iterdir()] == [root.name]


def test_what_a_living_process_is_writing_stays(cache, writer):
    (left,) = unfinished(cache)
    sources._built_in_pedestrians(PEOPLE, (48, 48))
    check_images([cache / "absent.jpg"], cache, cache, progress=False)
    with writing_with_others(cache):  # nor does the lock of one who found others keep it from the next
        pass
    assert (left / "picture.jpg").read_bytes() == b"half"
    writer.communicate()  # it is told to end, and does so by itself
    assert writer.returncode == 0 and (cache / "people" / "picture.jpg").exists() and not unfinished(cache)


def test_two_that_write_at_once_leave_each_other_alone(cache):
    with writing_with_others(cache):
        (cache / ".one.tmp").write_text("half")
        with writing_with_others(cache):
            assert (cache / ".one.tmp").exists()
        with writing_with_others(cache):
            assert (cache / ".one.tmp").exists()
    with writing_with_others(cache):
        assert not unfinished(cache)


def test_a_file_system_without_locks_is_done_without(cache, monkeypatch):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", none)
    (cache / ".one.tmp").write_text("half")
    with writing_with_others(cache):
        assert (cache / ".one.tmp").exists()
