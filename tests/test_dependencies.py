"""The kept list of dependencies is what is installed, and nothing that dgfast reads can bring code with it."""

import ast
import importlib.metadata
import io
import os
import pickle
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dgfast import run_directory
from dgfast.commands import cli
from dgfast.errors import UserError
from dgfast.models.dgnet import make_teacher, save_model
from dgfast.training import checkpoint
from tests import tiny
from tools.list_dependencies import constraints, licence

ROOT = Path(__file__).parent.parent
# Two of them made the body pack.
OPTIONAL = ("apex", "faiss", "torch_fidelity", "anny", "scipy", "wandb", "mlflow", "pyarrow", "dgfast")


def listed() -> dict[str, tuple[str, str]]:
    """Package -> version and licence, as docs/dependencies.md has them."""
    text = (ROOT / "docs" / "dependencies.md").read_text()
    return {m[1]: (m[2], m[3]) for m in re.finditer(r"^\| ([\w.-]+) \| (\d\S*) \| (.+) \|$", text, re.MULTILINE)}


def test_the_list_is_that_of_the_constraints():
    assert {name: version for name, (version, _) in listed().items()} == constraints(ROOT / "constraints.txt")


def test_the_list_is_what_is_installed():
    for name, (version, named) in listed().items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system, or a tool that is not needed here
        assert (installed, licence(name)) == (version, named), name


def test_everything_that_is_imported_is_listed():
    """What dgfast itself needs stands in pyproject.toml, and so in the list."""
    packages = importlib.metadata.packages_distributions()
    known = {name.lower().replace("_", "-") for name in listed()} | {"dgfast"}
    for file in [*ROOT.glob("dgfast/**/*.py"), *ROOT.glob("kernels/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {""}:
                found = {package.lower().replace("_", "-") for package in packages.get(name, [])}
                # apex and FAISS are used where somebody has installed them; the others come with optional features.
                assert found & known or name in OPTIONAL, f"{file}: {name}"


def calls(name: str) -> list[tuple[str, ast.Call]]:
    found = []
    for file in [*ROOT.glob("dgfast/**/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("kernels/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                found.append((str(file.relative_to(ROOT)), node))
    return found


def test_torch_and_numpy_are_asked_for_plain_data_alone():
    loads = calls("torch.load")
    assert loads
    for file, call in loads:
        assert any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in call.keywords), file
    for file, call in calls("np.load"):
        assert not any(k.arg == "allow_pickle" and getattr(k.value, "value", None) for k in call.keywords), file
    for name in ("pickle.load", "pickle.loads", "joblib.load", "torch.hub.load", "eval", "exec"):
        assert not calls(name), name


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo caught > {self.path}",)


@pytest.fixture
def trap(tmp_path):
    """A folder with pickles that run code, in all forms in which files of weights and features come."""
    sprung, folder = tmp_path / "sprung", tmp_path / "traps"
    folder.mkdir()
    thing = Trap(sprung)
    torch.save({"weights": thing, "iteration": 2}, folder / "new.pth")
    torch.save({"weights": thing, "iteration": 2}, folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "plain.pth").write_bytes(pickle.dumps(thing))
    (folder / "plain.safetensors").write_bytes(pickle.dumps(thing))
    np.save(folder / "f.npy", np.array([thing], object), allow_pickle=True)
    with zipfile.ZipFile(folder / "f.npz", "w") as archive:
        member = io.BytesIO()
        np.save(member, np.array([thing], object), allow_pickle=True)
        archive.writestr("a.npy", member.getvalue())
    yield folder
    assert not sprung.exists(), "code in a file has been run"


def test_the_trap_works(tmp_path):
    (tmp_path / "a").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    pickle.loads((tmp_path / "a").read_bytes())
    assert (tmp_path / "sprung").exists()


FILES = ["new.pth", "old.pth", "plain.pth", "plain.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_no_command_runs_code_from_weights(trap, market, tmp_path, name):
    file = str(trap / name)
    data = ["--data-root", str(market), "--dataset", "market1501", "--out", str(tmp_path / "runs")]
    for words in (
        ["train", *data, "--teacher", file],
        ["train", *data, "--backbone-weights", file],
        ["import-reference", "--gen", file, "--id", file, "--out", str(tmp_path / "runs")],
        ["import-reference", "--teacher", file, "--dis", file, "--out", str(tmp_path / "runs")],
        ["profile", "--stage", "teacher", "--backbone-weights", file],
        ["quality", "--run", file],
        ["export", "--model", file, "--out", str(tmp_path / "runs")],
    ):
        with pytest.raises(UserError):
            cli.dispatch(words)


@pytest.mark.parametrize("name", ["f.npy", "f.npz"])
def test_no_command_runs_code_from_features(trap, tmp_path, name):
    good = tmp_path / "good.npy"
    np.save(good, np.ones((3, 2), np.float32))
    for query, gallery in ((trap / name, good), (good, trap / name)):
        with pytest.raises(UserError):
            cli.dispatch(
                ["rerank", "--query", str(query), "--gallery", str(gallery), "--out", str(tmp_path / "out.npy")]
            )


@pytest.mark.parametrize("name", FILES)
def test_no_command_runs_code_from_a_run_directory(trap, market, tmp_path, name):
    run = tmp_path / "run"
    run_directory.make(tiny.config(market, tmp_path), run)
    bad = (trap / name).read_bytes()
    (run / "checkpoints").mkdir()
    for stage in ("teacher", "dgnet"):
        (run / "checkpoints" / f"{stage}-00000002.pt").write_bytes(bad)
        with pytest.raises(UserError, match="none of which can be read"):
            checkpoint.latest(run / "checkpoints", stage)
    with pytest.raises(SystemExit):
        cli.dispatch(["verify", "--run", str(run)])
    with pytest.raises(UserError):
        cli.dispatch(["train", "--resume", str(run)])
    save_model(make_teacher(tiny.MODEL, 2), tiny.MODEL, 2, run / "teacher.safetensors")
    (run / "model.safetensors").write_bytes(bad)
    for words in (
        ["eval", "--run", str(run), "--data-root", str(market)],
        ["quality", "--run", str(run)],
        ["export", "--model", str(run), "--out", str(tmp_path)],
    ):
        with pytest.raises(UserError):
            cli.dispatch(words)
