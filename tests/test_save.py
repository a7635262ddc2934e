"""A model's folder to be shared: it gives the same vectors, tells no paths, and its card says what one has to know."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dgfast
from dgfast.commands import import_reference, save
from dgfast.inference import Model
from dgfast.run_directory import BUNDLED, LICENCE, TABLE


@pytest.fixture
def pictures():
    return list(np.random.default_rng(0).integers(0, 256, (3, 128, 64, 3), np.uint8))


def test_it_gives_the_same_vectors(tmp_path, pictures):
    model = dgfast.load()
    again = Model.from_pretrained(model.save_pretrained(tmp_path / "shared"))
    assert torch.equal(again.embed(pictures), model.embed(pictures))
    assert np.array_equal(again.swap(pictures, pictures[0]), model.swap(pictures, pictures[0]))
    halved = dgfast.load(model.save_pretrained(tmp_path / "half", half=True))
    assert torch.allclose(halved.embed(pictures), model.embed(pictures), atol=2e-3)
    assert all(p.dtype == torch.float32 for p in model.parameters()), "the model itself stays as it is"
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("shared", "half")]
    assert sizes[1] < 0.55 * sizes[0]


def test_equal_models_give_equal_bytes(tmp_path):
    one, other = (dgfast.load().save_pretrained(tmp_path / name) for name in "ab")
    assert {f.name for f in one.iterdir()} == {file.name for file in BUNDLED.iterdir()}
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


def test_the_card_tells_data_figures_and_licence(tmp_path, monkeypatch):
    model = dgfast.load()
    model.folder = tmp_path
    (tmp_path / TABLE).write_text("market1501: 3 queries")
    (tmp_path / "data.json").write_text(
        json.dumps(
            {"name": "shop", "fingerprint": "x", "root": "/home/me/shop", "train_images": 7, "train_identities": 3}
        )
    )
    built_in = (model.save_pretrained(tmp_path / "built-in") / "README.md").read_text()
    assert "on: 7 images of 3 people (synthetic" in built_in, "dgfast's own people have no other name"
    data = replace(model.settings.data, data_root=Path("/home/me/shop"))
    model.settings = replace(model.settings, data=data)
    card = (model.save_pretrained(tmp_path / "shared", licence="mit") / "README.md").read_text()
    for words in ("shop: 7 images of 3 people", "market1501: 3 queries", "license: mit", "128x64", "@inproceedings"):
        assert words in card
    assert "/home/me" not in card
    unsaid = (model.save_pretrained(tmp_path / "unsaid") / "README.md").read_text()
    assert "license: unknown" in unsaid and "has not said" in unsaid
    again = dgfast.load(tmp_path / "shared").save_pretrained(tmp_path / "again")
    assert "license: mit" in (again / "README.md").read_text(), "a model that is saved once more keeps its licence"


def test_it_does_not_tell_where_the_data_lay(tmp_path):
    model = dgfast.load()
    settings = json.loads((model.save_pretrained(tmp_path / "a") / "config.json").read_text())
    settings["data"]["data_root"] = "/home/me/Market-1501"
    settings["run"]["out"] = "/home/me/runs"
    (tmp_path / "a" / "config.json").write_text(json.dumps(settings))
    shared = dgfast.load(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert "/home/me" not in (shared / "config.json").read_text()
    assert dgfast.load(shared).settings.data.data_root.name == "Market-1501"


def test_imported_weights_keep_their_licence(tmp_path):
    model = dgfast.load()
    model.folder = tmp_path
    (tmp_path / LICENCE).write_text(import_reference.TERMS)
    shared = model.save_pretrained(tmp_path / "shared", licence="apache-2.0")
    card = (shared / "README.md").read_text()
    assert "license: other" in card and import_reference.TERMS.strip() in card
    assert (shared / LICENCE).read_text() == import_reference.TERMS


def test_the_command(tmp_path, capsys):
    save.main(["--out", str(tmp_path / "shared"), "--licence", "mit", "--half"])
    assert "MB" in capsys.readouterr().out
    assert dgfast.load(tmp_path / "shared").image_size == (128, 64)
    with pytest.raises(dgfast.UserError, match="where the model was read from"):
        save.main(["--model", str(tmp_path / "shared"), "--out", str(tmp_path / "shared")])


def test_a_card_that_somebody_wrote_in_is_kept(tmp_path, capsys):
    out, written = tmp_path / "shared", ["# Our own words\n", "# More of them\n"]
    save.main(["--out", str(out)])
    save.main(["--out", str(out)])
    assert not list(out.glob("README.old*"))  # nothing of anybody's was in it
    for number, text in enumerate(written, 1):
        (out / "README.md").write_text(text)
        capsys.readouterr()
        save.main(["--out", str(out)])
        assert f"README.old-{number}.md" in capsys.readouterr().out
    assert [(out / f"README.old-{n}.md").read_text() for n in (1, 2)] == written
    assert "DG-Net" in (out / "README.md").read_text()
