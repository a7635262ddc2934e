"""An allocation that fails, in any command: one line that says what to lower, status 2, and a run that goes on."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from dgfast import launcher
from dgfast.commands import cli, evaluate, quality, rerank, synth, train
from dgfast.data.loaders.image import decode_image
from dgfast.errors import NoMemory, UserError, out_of_memory
from dgfast.training import checkpoint
from dgfast.training.stages import DGNetStage
from tests import tiny


def on_the_cpu(*_, **__):
    torch.empty(2**50)  # more than an address has room for


def on_the_gpu(*_, **__):
    raise torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.72 GiB of which 1.20 GiB is"
        " free. Of the allocated memory 130.20 GiB is allocated by PyTorch, and 1.20 GiB is reserved"
    )


def in_numpy(*_, **__):
    np.empty(2**50)


def in_the_system(*_, **__):
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


FAILURES = [on_the_cpu, on_the_gpu, in_numpy, in_the_system]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_lack_of_memory_is_told_from_everything_else(failure):
    with pytest.raises(Exception) as caught:  # noqa: B017 (of any type, which is the point)
        failure()
    assert out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("sizes do not match"), OSError(errno.ENOSPC, "full"), UserError("x")])
def test_other_errors_are_not_taken_for_it(error):
    assert not out_of_memory(error)


def said_by(command, capsys) -> str:
    """The one line that a command leaves with."""
    with pytest.raises(SystemExit) as caught:
        launcher.run(command)
    lines = capsys.readouterr().err.strip().splitlines()
    assert caught.value.code == 2 and lines[-1].startswith("dgfast: there is not enough memory (")
    assert len(lines[-1]) < 600 and not any("Traceback" in line for line in lines)
    return lines[-1]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize(
    ("module", "stubbed", "words", "flag"),
    [
        (rerank, "_features", ["rerank", "--query", "q.npy", "--gallery", "g.npy", "--out", "o.npy"], "--topk"),
        (quality, "read", ["quality"], "--swaps"),
        (synth, "generate", ["synth", "--out", "people", "--identities", "4"], "--workers"),
        (evaluate, "read", ["eval", "--run", "runs/latest"], "--batch-size"),
    ],
)
def test_every_command_says_what_to_lower(failure, module, stubbed, words, flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, stubbed, failure)
    assert flag in said_by(lambda: cli.dispatch(words), capsys)


def test_an_evaluation_says_which_batch_to_lower(market, tmp_path, monkeypatch, capsys):
    train.main(tiny.flags(tiny.config(market, tmp_path, iterations=1, teacher_iterations=1)))
    monkeypatch.setattr(evaluate, "evaluate", on_the_gpu)
    words = ["--run", str(tmp_path / "run"), "--loader-workers", "0"]
    assert "lower --eval-batch-size (it is 64)" in said_by(lambda: evaluate.main(words), capsys)


@pytest.mark.parametrize("failure", [on_the_cpu, on_the_gpu])
def test_a_run_that_found_no_memory_goes_on_with_smaller_parts(market, tmp_path, monkeypatch, capsys, failure):
    honest = DGNetStage.step

    def step(self, batch, iteration):
        if iteration == 3:
            failure()
        return honest(self, batch, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(DGNetStage, "step", step)
        said = said_by(lambda: train.main(tiny.flags(tiny.config(market, tmp_path, iterations=4))), capsys)
    run = tmp_path / "run"
    assert f"--resume {run} and a larger --accumulate (it is 1)" in said
    assert not list(run.glob("**/*.tmp"))
    train.main(["--resume", str(run), "--accumulate", "2"])
    assert (run / "report.json").is_file()


def test_a_run_that_found_no_memory_for_its_table_goes_on_to_it(market, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", on_the_cpu)
        config = tiny.config(market, tmp_path, iterations=1, teacher_iterations=1)
        said = said_by(lambda: train.main(tiny.flags(config)), capsys)
    assert f"--resume {tmp_path / 'run'} and an --eval-batch-size below 64" in said
    train.main(["--resume", str(tmp_path / "run"), "--eval-batch-size", "8"])
    assert (tmp_path / "run" / "report.json").is_file()


def test_a_sound_checkpoint_is_not_passed_over_for_lack_of_memory(tmp_path, monkeypatch):
    """The one before it would be taken instead, or none be found at all."""
    for iteration in (1, 2):
        writer = checkpoint.Writer(tmp_path, "dgnet", None)
        writer.save(iteration, {"weights": torch.ones(3)})
        writer.close()
    monkeypatch.setattr(torch, "load", on_the_cpu)
    with pytest.raises(RuntimeError, match="allocate memory"):
        checkpoint.latest(tmp_path, "dgnet")


def test_an_image_is_not_taken_for_a_bad_one(monkeypatch):
    monkeypatch.setattr("PIL.Image.open", in_numpy)
    with pytest.raises(MemoryError):
        decode_image(b"anything")


def test_without_anything_stubbed(tmp_path):
    """An address space in which the command starts, but has no room for these features."""
    for name in ("query", "gallery"):
        np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.float32, (300_000, 1024)).flush()  # takes no disk
    words = ["rerank", "--query", "query.npy", "--gallery", "gallery.npy", "--out", "out.npz", "--topk", "5"]
    limited = (
        "import resource, torch, dgfast.commands.rerank; from dgfast.commands import cli;"
        " now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        " resource.setrlimit(resource.RLIMIT_AS, (now + 2**29,) * 2); cli.main()"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", limited, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert "there is not enough memory" in done.stderr.splitlines()[-1] and "--topk" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery.npy", "query.npy"]


def test_the_advice_of_an_inner_context_stands():
    from dgfast.errors import within_memory

    with pytest.raises(NoMemory, match="lower this$"), within_memory("lower that"), within_memory("lower this"):
        on_the_cpu()
