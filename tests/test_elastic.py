"""Several processes under torchrun: a worker that is killed, agents on two machines (both this one); the weights end
the same."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dgfast.training import checkpoint
from tests import tiny

LONG = {"iterations": 12, "teacher_iterations": 3, "checkpoint_every": 2, "log_every": 5, "teacher_milestones": (2,)}


def command(config, *launch: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "dgfast.train", *tiny.flags(config)]


def start(words: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    try:
        said, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired as late:
        process.kill()
        raise AssertionError(f"still running, having said:\n{(late.stdout or b'')[-3000:].decode()}") from late
    assert process.returncode == 0, said[-30000:]
    return said


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert found.keys() == expected.keys() and not different, different[:5]


def workers_of(agent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


@pytest.fixture(scope="module")
def met(market, tmp_path_factory):
    """The weights of two agents of one process each that meet on this machine and that nobody disturbs."""
    out = tmp_path_factory.mktemp("met")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tiny.config(market, out, **LONG)
    meet = [
        "--nnodes=2",
        "--nproc_per_node=1",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        "--rdzv-id=job",
    ]
    agents = [start(command(config, *meet, "--local-addr=127.0.0.1")) for _ in range(2)]
    try:
        for agent in agents:
            finish(agent)
    finally:
        for agent in agents:
            agent.kill()
    return load_file(out / "run" / "model.safetensors")


def test_a_killed_worker_is_started_again_and_the_weights_end_as_those_of_two_agents(market, tmp_path, met):
    """One agent's two processes, one of them killed, against two agents that were left alone: whichever of both goes
    another way, the weights differ. That two processes end as one does is the matter of tests/test_training.py."""
    config = tiny.config(market, tmp_path, **LONG)
    agent = start(command(config, "--standalone", "--nproc_per_node=2", "--max-restarts=2"))
    end = time.monotonic() + 120
    while len(checkpoint.checkpoints(tmp_path / "run" / "checkpoints", "dgnet")) < 2:
        assert agent.poll() is None and time.monotonic() < end, agent.communicate()[0][-3000:]
        time.sleep(0.01)
    os.kill(min(workers_of(agent.pid)), signal.SIGKILL)  # the first process, which writes the files
    said = finish(agent)
    assert "going on with" in said and "going on after iteration" in said
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".torchrun")] == []
    assert_same(load_file(tmp_path / "run" / "model.safetensors"), met)
