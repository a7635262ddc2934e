"""The command lines: what a mistake looks like, also under torchrun; the commands that are thin."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dgfast
from dgfast import launcher
from dgfast.commands import cli, evaluate, import_reference, sources, train
from dgfast.config import PRESETS, Config, from_json, to_json
from dgfast.errors import UserError
from dgfast.models import DGNet
from tests import tiny


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("launcher", [[], ["torch.distributed.run", "--standalone", "-m"]])
def test_wrong_root_is_one_line_and_status_2(launcher):
    done = run("-m", *launcher, "dgfast.train", "--preset", "market1501", "--data-root", "/nowhere")
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "/nowhere does not exist" in lines[0] and "expected" in lines[0]


def test_two_processes_say_a_mistake_once():
    done = run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "dgfast.train"),
        *("--preset", "market1501", "--data-root", "/nowhere"),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("/nowhere does not exist") == 1 and "Traceback" not in done.stderr


def test_commands_start_without_torchs_compiler():
    """Loading it takes longer than all else that a command needs, and few need it."""
    modules = ", ".join(f"dgfast.commands.{module}" for module, _ in cli.COMMANDS.values())
    done = run("-c", f"import sys, {modules}; print('torch._dynamo' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")


def test_two_processes_help_once():
    done = run(*TWO, "dgfast.train", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: dgfast") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        # One that is found before tyro reads the words, and one that tyro finds: all others take one of both ways.
        (("--no-such-flag",), "--no-such-flag is no flag of dgfast train"),
        (("--batch-size", "many"), "--batch-size"),
    ],
)
def test_two_processes_say_the_parsers_mistakes_once(words, line):
    done = run(*TWO, "dgfast.train", *words)
    assert done.returncode == 2, done.stderr
    (said,) = done.stderr.strip().splitlines()
    assert line in said


def test_processes_that_speak_for_no_other_wait_in_turn(monkeypatch):
    """On a second machine there is no process of rank 0; torchrun ends the others when the first of them leaves."""
    waits = []
    monkeypatch.setattr(launcher.time, "sleep", waits.append)
    for rank, local in ((0, 0), (8, 0), (9, 1)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(local))
        with pytest.raises(SystemExit):
            launcher.run(lambda: train.parse(["--no-such-flag"]))
    assert waits == [5, 6]


def test_a_second_torchrun_says_that_the_port_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("-m", "torch.distributed.run", f"--master-port={port}", "-m", "dgfast.train", "--help")
    assert done.returncode == 2
    (said,) = done.stderr.strip().splitlines()
    assert said.startswith(f"dgfast: port {port} of this machine is taken") and "--standalone" in said


def test_torchrun_of_other_programs_is_left_alone(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(2)")
    done = run("-m", "torch.distributed.run", "--standalone", str(script))
    assert done.returncode == 1 and "ChildFailedError" in done.stderr


def test_unknown_words():
    assert run("-m", "dgfast.train", "--preset", "mars").returncode == 2
    with pytest.raises(UserError, match="'trian' is unknown; did you mean train"):
        cli.dispatch(["trian"])
    with pytest.raises(UserError, match="--no-such-flag is no flag of dgfast train"):
        train.parse(["--no-such-flag"])


@pytest.mark.parametrize("words", [("--help",), ("doctor", "--help")])
def test_a_reader_that_leaves_gives_no_traceback(words):
    """As in `dgfast --help | head -1`."""
    start = f"import sys; sys.argv = ['dgfast', *{words!r}]; from dgfast.commands.cli import main; main()"
    command = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command.stdout.close()
    assert command.stderr.read() == "" and command.wait(timeout=120) == launcher.STOPPED + signal.SIGPIPE


def test_help_teaches(capsys):
    cli.dispatch([])
    listed = capsys.readouterr().out
    assert all(name in listed for name in cli.COMMANDS)
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            cli.dispatch([name, "--help"])
        assert caught.value.code == 0
        assert "dgfast " + name in capsys.readouterr().out


def test_doctor(capsys):
    cli.dispatch(["doctor"])
    out = capsys.readouterr().out
    assert torch.__version__ in out and "extension" in out and "resnet50" in out
    operations = ("adain", "layer_norm", "l1_kl_loss")
    assert all(f"{name}: tensor on the cpu (" in out for name in operations)
    assert "GPUs              none" in out  # also where there is one: these tests do not see it


def test_every_preset_survives_its_file():
    for name, config in PRESETS.items():
        assert config.preset == name
        assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_flags_are_unique_and_override():
    command = train.parse(
        ["--preset", "dukemtmc", "--batch-size", "16", "--milestones", "5", "9", "--label-style", "hard"]
    )
    assert command.config.optim.batch_size == 16 and command.config.optim.milestones == (5, 9)
    assert command.config.loss.label_style == "hard" and command.config.data.dataset == "dukemtmc"
    assert command.resume is None and isinstance(command.config, Config)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Checkpoints under the reference's names, as its own program writes them."""
    from tests.goldens import recipe

    folder = tmp_path_factory.mktemp("reference")
    recorded = json.loads((Path(recipe.__file__).parent / "reference_step_1.json").read_text())
    for network, shapes in recorded["shapes"].items():
        state = {
            name: torch.from_numpy(recipe.parameter(recorded["salt"], f"{network}.{name}", tuple(shape)))
            for name, shape in shapes.items()
        }
        torch.save(state if network == "teacher" else {"a": state}, folder / f"{network}.pt")
    return folder


def test_import_reference(reference, tmp_path, capsys):
    out = tmp_path / "imported"
    files = [word for n in ("gen", "id", "dis", "teacher") for word in (f"--{n}", str(reference / f"{n}.pt"))]
    cli.dispatch(["import-reference", *files, "--out", str(out)])
    model = dgfast.load(out)
    assert isinstance(model, DGNet) and model.num_classes == 24
    original = torch.load(reference / "gen.pt", weights_only=True)["a"]
    assert torch.equal(model.decoder.to_rgb.weight, original["dec.model.8.conv.weight"])
    market = tiny.market(tmp_path / "market", identities=2, images=2)
    torch.backends.cudnn.allow_tf32 = True  # torch's default; the run's own table was made without
    evaluate.main(["--run", str(out), "--data-root", str(market), "--loader-workers", "0", "--eval-batch-size", "4"])
    assert not torch.backends.cudnn.allow_tf32
    scores = json.loads((out / "eval-market1501.json").read_text())["scores"]
    assert set(scores) == {"histogram", "baseline", "prim", "fine", "both"}
    assert (out / "rankings-market1501.png").exists()


def test_import_reference_refuses(reference, tmp_path):
    def call(*words):
        import_reference.main([*map(str, words), "--out", str(tmp_path / "out")])

    with pytest.raises(UserError, match="not one of the reference's 'gen'"):
        call("--gen", reference / "dis.pt", "--id", reference / "id.pt")
    with pytest.raises(UserError, match="needed together"):
        call("--gen", reference / "gen.pt")
    with pytest.raises(UserError, match="neither --id nor --teacher"):
        call("--dis", reference / "dis.pt")
    with pytest.raises(UserError, match="does not exist"):
        call("--teacher", tmp_path / "absent.pt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--image-height", "40"], "--image-height is 40; expected a number from 48 to 4096, divisible by 16"),
        (["--image-width", "32"], "--image-width is 32; expected a number from 48 to 4096"),
        (["--teacher-batch-size", "6"], "--teacher-batch-size is 6; expected a number from 4 to 65536, divisible by 4"),
        (["--batch-size", "0"], "--batch-size is 0; expected a number from 1"),
        (["--iterations", "-3"], "--iterations is -3; expected a number from 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--preset", "market1501"], "--data-root is None; expected the folder of the data set"),
        (
            ["--padding", "48", "--image-width", "48"],
            "--padding is 48; expected less than the images' shorter side, 48",
        ),
        (["--backbone", "vit"], "backbone 'vit' is unknown"),
        (["--modulation", "plane", "--decoder-blocks", "3", "--parts", "2"], "does not divide"),
        (["--backbone-weights", "/nowhere/w.pth"], "does not exist"),
    ],
)
def test_mistakes_leave_no_run_behind(tmp_path, words, line):
    root = tiny.market(tmp_path / "market")
    given = [] if "market1501" in words else ["--data-root", str(root), "--dataset", "market1501"]
    with pytest.raises(UserError, match=line) as caught:
        train.main([*given, *words, "--out", str(tmp_path / "runs")])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [(["--out", "/proc/nowhere"], "cannot be written"), (["--teacher", "/nowhere"], "/nowhere does not exist")],
)
def test_mistakes_are_told_before_images_are_drawn(tmp_path, monkeypatch, words, line):
    monkeypatch.setattr(sources, "_built_in_pedestrians", lambda *_: pytest.fail("they take half a minute"))
    with pytest.raises(UserError, match=line):
        train.main(["--out", str(tmp_path), *words])
    assert not any(tmp_path.iterdir())


def test_synth_into_a_place_that_cannot_be_written():
    with pytest.raises(UserError, match="cannot be written"):
        cli.dispatch(["synth", "--out", "/proc/nowhere", "--identities", "4"])


def test_load_of_an_unfinished_run(tmp_path):
    with pytest.raises(UserError, match="expected a finished run or a saved model: pass the folder of one"):
        dgfast.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="--resume"):
        dgfast.load(tmp_path)


def test_the_folder_of_the_runs_is_not_a_run(tmp_path):
    (tmp_path / "latest").mkdir()
    with pytest.raises(UserError, match="look into the folder that was given as --out"):
        train.main(["--resume", str(tmp_path)])
    (tmp_path / "latest" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"did you mean {tmp_path / 'latest'}?"):
        train.main(["--resume", str(tmp_path)])


@pytest.mark.parametrize(("command", "word", "meant"), [("quality", "--model", "--run"), ("embed", "--run", "--model")])
def test_what_another_command_calls_a_run_is_named(command, word, meant):
    with pytest.raises(UserError, match=f"{word} is no flag of dgfast {command}; did you mean {meant}?"):
        cli.dispatch([command, word, "runs/latest"])
