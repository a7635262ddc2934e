"""`dgfast quality`: its figures, its files, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dgfast.commands import cli, train
from dgfast.commands.quality import assess, truth_parameters
from dgfast.config import SyntheticConfig
from dgfast.data import load_reid
from dgfast.data.loaders.image import read_image
from dgfast.data.records import spread
from dgfast.errors import UserError
from dgfast.models import DGNet
from dgfast.models.dgnet import make_teacher, save_model
from dgfast.run_directory import write_config
from dgfast.synthesis import dress, lite0
from dgfast.synthesis.distances import Eyes, strangers
from dgfast.synthesis.quality import TITLES, TONES, diversity
from tests import tiny


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return DGNet(tiny.MODEL, num_classes=3).eval()


@pytest.fixture
def stand(monkeypatch):
    """The stand-in where the command looks for EfficientNet-lite0."""
    network = tiny.Lite0()
    monkeypatch.setattr(lite0, "installed", lambda: network)
    return network


@pytest.fixture
def missing(monkeypatch):
    """The extra is not installed."""
    monkeypatch.setattr(lite0, "installed", lambda: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory, networks):
    """A run directory with networks of random weights."""
    folder = tmp_path_factory.mktemp("quality") / "run"
    folder.mkdir()
    write_config(tiny.config(folder, folder), folder)
    save_model(networks, tiny.MODEL, 3, folder / "model.safetensors")
    return folder


def test_command_leaves_figures_table_and_picture(run, capsys):
    cli.dispatch(["quality", "--run", str(run), "--swaps", "6", "--identities", "8", "--seed", "3"])
    printed = capsys.readouterr().out
    text = (run / "quality.txt").read_text()
    assert text in printed and "stripe colours by hand" in text and "6 true swaps, 48x48, seed 3" in text
    report = json.loads((run / "quality.json").read_text())
    assert report["swaps"] == 6 and report["size"] == [48, 48] and report["seed"] == 3
    assert set(report["scores"]) == {"ours", "body", "grey", "stripes", "mean", "blurred", "noise"}
    assert set(report["scores"]["ours"]["regions"]) == {"clothes", "outside", "whole"}
    assert set(report["owner"]) == {"ours", "body", "truth"}
    assert sum(report["counts"].get(tone, 0) for tone in TONES) == 6
    assert f"{report['scores']['ours']['regions']['clothes']['l1']:.3f}" in text
    assert Image.open(run / "quality.png").size == (6 * 50 + 2, 5 * 50 + 2)


def test_the_figures_are_those_of_the_pictures(networks):
    quality = assess(networks, truth_parameters((48, 48), 4, seed=3, identities=8), 0.5, Eyes(None))
    truths = quality.truths
    error = np.abs(dress(networks, truths.bodies, truths.clothes) / 255 - truths.truths / 255)
    assert quality.measured["ours"].regions["clothes"].l1 == pytest.approx(error[truths.masks].mean(), rel=1e-5)
    error = np.abs(truths.bodies / 255 - truths.truths / 255)
    assert quality.measured["body"].regions["outside"].l1 == pytest.approx(error[~truths.masks].mean(), rel=1e-5)
    error = np.abs(dress(networks, truths.bodies, truths.bodies) / 255 - truths.bodies / 255)
    assert quality.reconstruction.l1 == pytest.approx(error.mean(), rel=1e-5)
    firsts = [truths.owners.tolist().index(owner) for owner in dict.fromkeys(truths.owners.tolist())]
    assert len(firsts) > 1
    dressed = [dress(networks, np.repeat(body[None], len(firsts), 0), truths.clothes[firsts]) for body in truths.bodies]
    assert quality.diversity["ours"] == pytest.approx(diversity(np.stack(dressed) / 255), rel=1e-5)


def test_command_says_how_its_file_has_to_end():
    with pytest.raises(UserError, match="--out is figures; expected a file that ends in .json"):
        cli.dispatch(["quality", "--out", "figures"])


def test_command_says_what_networks_see_and_names_it(run, stand, tmp_path, capsys):
    out = tmp_path / "quality.json"
    cli.dispatch(["quality", "--run", str(run), "--swaps", "5", "--identities", "8", "--out", str(out)])
    text, report = out.with_suffix(".txt").read_text(), json.loads(out.read_text())
    assert "perceptual-lite0" in text and "FD-lite0 and KD-lite0: 2 pictures against 2 real ones" in text
    assert "FID" not in text and "KID" not in text and lite0.MISSING not in capsys.readouterr().out
    assert set(report["distances"]) == {"pictures", "FD-lite0", "KD-lite0"}
    assert set(report["distances"]["FD-lite0"]) == set(report["scores"]) | {"truth"}
    clothes = {kind: scores["regions"]["clothes"] for kind, scores in report["scores"].items()}
    assert 0 < clothes["mean"]["perceptual_lite0"] < clothes["noise"]["perceptual_lite0"]
    assert f"{TITLES['noise']:<24}{clothes['noise']['perceptual_lite0']:8.3f}" in text


def test_missing_extra_costs_one_line(run, missing, tmp_path, capsys):
    out = tmp_path / "quality.json"
    cli.dispatch(["quality", "--run", str(run), "--swaps", "4", "--identities", "8", "--out", str(out)])
    text, printed = out.with_suffix(".txt").read_text(), capsys.readouterr().out
    assert [line for line in printed.splitlines() if "lite0" in line] == [lite0.MISSING]
    assert "pip install -e '.[quality]'" in lite0.MISSING and text in printed
    assert "lite0" not in text and "stripe colours by hand" in text
    assert json.loads(out.read_text())["distances"] is None


def test_command_takes_a_file_of_weights(run, tmp_path):
    out = tmp_path / "here" / "figures.json"
    model = run / "model.safetensors"
    cli.dispatch(["quality", "--run", str(model), "--swaps", "2", "--identities", "8", "--out", str(out)])
    assert sorted(file.name for file in out.parent.iterdir()) == ["figures.json", "figures.png", "figures.txt"]
    assert json.loads(out.read_text())["size"] == [48, 48]  # of config.json beside the file


def test_command_on_photographs(run, market, networks, stand, capsys):
    cli.dispatch(["quality", "--run", str(run), "--data-root", str(market), "--swaps", "6"])
    report = json.loads((run / "quality-market1501.json").read_text())
    text = (run / "quality-market1501.txt").read_text()
    assert text in capsys.readouterr().out and report["photographs"] == 6
    records = spread(load_reid(market, progress=False).query, 6)
    images = np.stack([np.asarray(read_image(record.path)) for record in records])  # of the run's size already
    error = np.abs(dress(networks, images, images) / 255 - images / 255)
    assert report["reconstruction"]["l1"] == pytest.approx(error.mean(), abs=1e-4)
    # Two of six give clothes, the others bodies.
    dressed = [dress(networks, np.repeat(body[None], 2, 0), images[4:]) / 255 for body in images[:4]]
    people = [record.person for record in records]
    others = dress(networks, images, images[strangers(people)]) / 255
    _, found = Eyes(stand).look({"ours": others}, images / 255)
    assert report["distances"]["FD-lite0"]["ours"] == pytest.approx(found.frechet["ours"], abs=1e-3)
    assert set(report["distances"]["KD-lite0"]) == {"truth", "reconstructions", "ours", "stripes"}
    assert "other photographs" in text and "3 pictures against 3 real ones" in text
    assert report["reconstruction"]["perceptual_lite0"] > 0
    assert report["diversity"]["ours"] == pytest.approx(diversity(np.stack(dressed)), abs=1e-4)
    assert f"SSIM {report['reconstruction']['ssim']:.3f}" in text
    assert Image.open(run / "quality-market1501.png").size == (5 * 50 + 2, 3 * 50 + 2)
    with pytest.raises(UserError, match="expected at least 4"):
        cli.dispatch(["quality", "--run", str(run), "--data-root", str(market), "--swaps", "3"])


def test_a_run_that_makes_no_pictures_is_refused(tmp_path):
    write_config(tiny.config(tmp_path, tmp_path), tmp_path)
    save_model(make_teacher(tiny.MODEL, 3), tiny.MODEL, 3, tmp_path / "teacher.safetensors")
    with pytest.raises(UserError, match="a teacher alone") as error:
        cli.dispatch(["quality", "--run", str(tmp_path)])
    assert "\n" not in str(error.value)


def test_people_whom_the_run_was_trained_on_are_refused(tmp_path, networks):
    config = replace(tiny.config(tmp_path, tmp_path, data_root=None), synthetic=SyntheticConfig(synthetic_seed=3))
    write_config(config, tmp_path)
    save_model(networks, tiny.MODEL, 3, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="--seed 3"):
        cli.dispatch(["quality", "--run", str(tmp_path), "--seed", "3"])


def test_a_run_on_synthetic_people_ends_with_its_quality(tmp_path, monkeypatch, stand, capsys):
    monkeypatch.setattr(train, "TRUE_SWAPS", 3)
    config = replace(tiny.config(tmp_path, tmp_path, data_root=None), preset="quickstart")
    people = ["--synthetic-train-identities", "2", "--synthetic-test-identities", "2"]
    train.main([*tiny.flags(config), *people, "--iterations", "1", "--teacher-iterations", "1"])
    text = (tmp_path / "run" / "table.txt").read_text().splitlines()
    printed = capsys.readouterr().out.splitlines()
    quality = json.loads((tmp_path / "run" / "report.json").read_text())["quality"]
    heading = text.index("3 true swaps of other people (docs/generation.md)")
    assert any(line.startswith("DG-Net, both") for line in text[:heading])
    start = printed.index(text[0])
    assert printed[start : start + heading + 1] == text[: heading + 1]
    for line in ("mean of the true clothes", "reconstructions", "diversity of swaps", "clothes, by change of tone"):
        assert any(found.startswith(line) for found in text[heading:])  # all figures are in the file,
    for name, title in (("ours", "DG-Net"), ("stripes", "stripe colours by hand")):
        regions = quality["scores"][name]["regions"]
        figures = f"{regions['clothes']['l1']:12.3f}{regions['outside']['l1']:12.3f}{regions['clothes']['chroma']:8.1f}"
        assert f"{title:<24}{figures}" in printed  # and two rows of them on the screen
    assert Image.open(tmp_path / "run" / "truth.png").height > 5 * 48
    page = (tmp_path / "run" / "report.html").read_text()
    assert "3 swaps, at the end of the run" in page and "Swaps of synthetic people, one in each column" in page
    # The saved model makes the same pictures, so the command finds the same figures.
    cli.dispatch(["quality", "--run", str(tmp_path / "run"), "--swaps", "3"])
    again = json.loads((tmp_path / "run" / "quality.json").read_text())
    assert again["scores"]["stripes"] == quality["scores"]["stripes"]
    assert again["scores"]["ours"]["regions"]["whole"] == pytest.approx(quality["scores"]["ours"]["regions"]["whole"])


@pytest.mark.slow
def test_inception_of_the_users_file_gives_fid(run, tmp_path, monkeypatch, missing):
    """The library's network with random weights, as the user's file would hold them."""
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    from torch_fidelity import feature_extractor_inceptionv3 as library

    with monkeypatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        weights = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()
    file = tmp_path / "inception.pth"
    torch.save(weights, file)
    cli.dispatch(
        ["quality", "--run", str(run), "--swaps", "4", "--identities", "8", "--inception", str(file)]
        + ["--out", str(tmp_path / "quality.json")]
    )
    report = json.loads((tmp_path / "quality.json").read_text())
    assert report["distances"]["pictures"] == 2 and set(report["distances"]) == {"pictures", "FID", "KID"}
    text = (tmp_path / "quality.txt").read_text()
    assert "FID" in text and "KID" in text and "lite0" not in text
