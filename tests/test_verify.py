"""`dgfast verify`, and files that hold something else: what is wrong is named, in one line, by every command."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgfast import run_directory
from dgfast.commands import cli, verify
from dgfast.data import load_reid
from dgfast.data.datasets import describe
from dgfast.errors import UserError
from dgfast.models import DGNet
from dgfast.models.dgnet import load_model, make_teacher, save_model
from dgfast.training import checkpoint
from tests import tiny
from tests.test_checkpoint import flipped

NEWEST = "checkpoints/dgnet-00000006.pt"


@pytest.fixture(scope="module")
def made(market, tmp_path_factory):
    """A run as training would leave it."""
    run = tmp_path_factory.mktemp("made") / "run"
    config = tiny.config(market, run.parent)
    run_directory.make(config, run, describe(load_reid(market, "market1501", progress=False)))
    networks, teacher = DGNet(tiny.MODEL, 2), make_teacher(tiny.MODEL, 2)
    states = {"teacher": {"teacher": teacher.state_dict()}, "dgnet": {"networks": networks.state_dict()}}
    for stage, iterations in (("teacher", (2, 4)), ("dgnet", (4, 6))):
        for done in iterations:
            checkpoint.save(run / "checkpoints", stage, done, states[stage] | {"global_batch": 2})
    save_model(teacher, tiny.MODEL, 2, run / "teacher.safetensors")
    save_model(networks, tiny.MODEL, 2, run / "model.safetensors")
    lines = [{"stage": stage, "iteration": i, "loss": 1.0} for stage in ("teacher", "dgnet") for i in range(4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("flag", [["--run"], []], ids=["flag", "first word"])
def test_a_sound_run_is_sound(run, capsys, flag):
    before = tree(run)
    cli.dispatch(["verify", *flag, str(run)])
    out = capsys.readouterr().out
    assert "WRONG" not in out and f"resumed with `dgfast train --resume {run}`: teacher after iteration 4, dgnet" in out
    for name in ("config.json", "data.json", "data set", "metrics.jsonl", "model.safetensors", NEWEST):
        assert f"ok     {name} " in out
    assert tree(run) == before


def spoil(run: Path, name: str, content: bytes | None) -> None:
    if content is None:
        flipped(run / name, 8 * ((run / name).stat().st_size // 2))
    else:
        (run / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "says", "resumable"),
    [
        ("config.json", b"[]", "cannot be read", False),
        ("config.json", b'{"optim": {"iterations": "many"}}', "iterations is 'many'; expected a whole number", False),
        ("config.json", b'{"optim": {"iterations": -4}}', "--iterations is -4", False),
        ("data.json", b"{}", "cannot be read", False),
        ("data.json", b'{"fingerprint": "another"}', "not those that the run began with", False),
        (NEWEST, None, "its checksum does not fit its content", True),
        (NEWEST, b"", "", True),
        ("model.safetensors", None, "is damaged (its checksum", True),
        ("teacher.safetensors", b"\0" * 100, "", True),
        ("metrics.jsonl", b'{"stage": "dgnet", "iteration": 3}\n5\n', "line 2: no numbers of an iteration", True),
        ("metrics.jsonl", b'{"stage": "a", "iteration": 3}\n{"stage": "a", "iteration": 3}\n', "line 2: itera", True),
        ("metrics.jsonl", b'{"stage": "a", "iteration": 3, "loss": NaN}\n', "line 1: a number that is not", True),
        ("report.json", b"{", "no JSON", True),
        ("verification.json", b'{"eer": 0.1}', "cannot be read", True),
    ],
)
def test_what_is_wrong_is_named(run, capsys, name, content, says, resumable):
    spoil(run, name, content)
    with pytest.raises(SystemExit) as left:
        cli.dispatch(["verify", "--run", str(run), "--json"])
    assert left.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert len(found["wrong"]) == 1 and found["resumable"] == resumable == (not found["obstacles"])
    (wrong,) = found["wrong"].items()
    assert says in wrong[1] and wrong[0] in (name, "data set")


def test_weights_that_are_not_finite_or_not_of_this_run_are_named(run):
    state = checkpoint.read(run / NEWEST)
    state["networks"]["decoder.to_rgb.bias"][0] = float("nan")
    checkpoint.save(run / "checkpoints", "dgnet", 6, state)
    assert "first networks.decoder.to_rgb.bias" in verify.examine(run).wrong[NEWEST]
    del state["networks"]["decoder.to_rgb.bias"]
    checkpoint.save(run / "checkpoints", "dgnet", 6, state)
    assert "other sizes than config.json says" in verify.examine(run).wrong[NEWEST]


def test_a_stage_without_a_sound_checkpoint_cannot_go_on(run):
    for path in (run / "checkpoints").glob("dgnet-*"):
        path.write_bytes(b"garbage")
    found = verify.examine(run)
    assert found.obstacles == ["no checkpoint of stage dgnet is sound"] and found.reached == {"teacher": 4}
    assert "It cannot be resumed: no checkpoint" in found.text()


def test_a_data_set_that_is_gone_is_named_unless_it_is_not_asked_for(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    config["data"]["data_root"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    assert "does not exist" in verify.examine(run).wrong["data set"]
    assert not verify.examine(run, data=False).wrong


def test_where_there_is_no_run_the_status_is_2(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        cli.dispatch(["verify", "--run", str(tmp_path)])
    with pytest.raises(UserError, match="holds no run"):
        cli.dispatch(["verify", "--run", str(tmp_path / "absent")])


CONTENTS = {
    "nothing": b"",
    "zeros": b"\0" * 4096,
    "a list": b"[1, 2]",
    "a scalar": b"5",
    "text": "später".encode("latin-1"),
    "null": b"null",
    "a string": b'"config"',
    "nested": b'{"data": 5, "run": []}',
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("words", [["train", "--resume"], ["eval", "--run"], ["quality", "--run"]], ids=lambda w: w[0])
def test_settings_of_something_else_are_one_line(run, words, content):
    (run / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json cannot be read") as caught:
        cli.dispatch([*words, str(run)])
    assert "\n" not in str(caught.value)


def weights(path: Path, kind: str) -> None:
    """A file of weights that holds something else."""
    state = load_file(path) if path.suffix == ".safetensors" else {}
    if kind in CONTENTS:
        path.write_bytes(CONTENTS[kind])
    elif kind == "another program's":
        save_file(state, path)
    elif kind == "wrong sizes":
        sizes = json.dumps({"parts": 3})
        save_file(state, path, {"format": "dgfast-1", "kind": "dgnet", "config": sizes, "num_classes": "2"})
    elif kind == "wrong description":
        save_file(state, path, {"format": "dgfast-1", "kind": "dgnet", "config": "[1]", "num_classes": "two"})
    elif kind == "no tensors":
        save_file({}, path, {"format": "dgfast-1", "kind": "dgnet", "config": "{}", "num_classes": "2"})
    else:
        torch.save({"list": [1, 2], "tensor": torch.ones(2), "scalar": 5, "names": {1: torch.ones(1)}}[kind], path)


KINDS = ["nothing", "zeros", "a list", "another program's", "wrong sizes", "wrong description", "no tensors", "list"]
KINDS += ["tensor", "scalar", "names"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_something_else_is_one_line(run, market, kind):
    weights(run / "model.safetensors", kind)
    (run / "teacher.safetensors").unlink()
    for words in (["eval", "--run", str(run), "--data-root", str(market)], ["quality", "--run", str(run)]):
        with pytest.raises(UserError, match="model.safetensors") as caught:
            cli.dispatch(words)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        load_model(run / "model.safetensors", "dgnet")
    assert "model.safetensors" in verify.examine(run).wrong


@pytest.mark.parametrize("kind", ["nothing", "zeros", "a list", "text", "list", "tensor", "scalar", "names"])
def test_weights_from_elsewhere_that_are_something_else_are_one_line(market, tmp_path, kind):
    file = tmp_path / "weights.pth"
    weights(file, kind)
    data = ["--data-root", str(market), "--dataset", "market1501", "--out", str(tmp_path / "runs")]
    for words in (
        ["train", *data, "--teacher", str(file)],
        ["train", *data, "--backbone-weights", str(file)],
        ["import-reference", "--teacher", str(file), "--out", str(tmp_path / "runs")],
        ["import-reference", "--gen", str(file), "--id", str(file), "--out", str(tmp_path / "runs")],
    ):
        with pytest.raises(UserError) as caught:
            cli.dispatch(words)
        assert "\n" not in str(caught.value) and "weights.pth" in str(caught.value)
    assert not os.path.exists(tmp_path / "runs")
