"""A trained model as its users hold it: the same vectors however pictures come, and swaps of any pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

import dgfast
from dgfast.data.datasets.layouts import told_by_name
from dgfast.data.image_files import find_images
from dgfast.data.records import Record
from dgfast.models import DGNet
from dgfast.retrieval.evaluation import features_of
from dgfast.retrieval.features import FeatureSettings


@pytest.fixture(scope="module")
def model():
    return dgfast.load()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    paths = []
    for number, size in enumerate([(128, 64), (150, 61), (90, 40)]):
        paths.append(folder / f"{number:04d}_c{number + 1}s1_000001.png")
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).resize(size[::-1]).save(paths[-1])
    return paths


def test_the_networks_are_there(model):
    assert isinstance(model, DGNet) and not model.training
    assert model.image_size == (128, 64)
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {
        "appearance",
        "structure",
        "decoder",
        "discriminator",
    }


def test_vectors_are_those_of_the_evaluation(model, files):
    settings = FeatureSettings(
        image_size=model.image_size, alpha=model.alpha, batch=2, workers=0, device=model.device, loader="torchvision"
    )
    expected = features_of([Record(path, 1, 1) for path in files], model, None, settings)["both"]
    assert torch.equal(model.embed(files, batch=2, loader="torchvision"), expected)
    norms = expected.square().sum(1)
    assert torch.allclose(norms, torch.full_like(norms, 1 + model.alpha))


def test_pictures_of_every_kind_give_the_same_vectors(model, files):
    expected = model.embed(files, loader="torchvision")
    images = [Image.open(path) for path in files]
    kinds = {
        "images": images,
        "arrays": [np.asarray(image) for image in images],
        "mixed": [files[0], str(files[1]), images[2]],
        "tensor": model.images(files),
    }
    for kind, pictures in kinds.items():
        assert torch.allclose(model.embed(pictures, batch=2), expected, atol=1e-5), kind
    assert torch.allclose(model.embed(files[1], loader="torchvision"), expected[1:2], atol=1e-5)
    assert model.embed([]).shape == (0, expected.shape[1])


def test_swaps_of_pairs_and_of_one_with_many(model, files):
    pairs = model.swap(files, files[::-1])
    assert pairs.shape == (3, 128, 64, 3) and pairs.dtype == np.uint8
    assert np.abs(model.swap(files[0], files).astype(int)[2] - pairs[0]).max() <= 1
    assert np.abs(model.swap(files, files[0]).astype(int)[2] - pairs[2]).max() <= 1


@pytest.mark.parametrize(
    "pictures",
    ["missing.jpg", [np.zeros((4, 4), np.uint8)], [np.zeros((4, 4, 3))], [3], torch.zeros(3, 4, 4)],
    ids=["no file", "grey", "float", "number", "flat tensor"],
)
def test_what_is_no_picture_is_told_in_one_line(model, pictures):
    for call in (model.embed, model.pixels):
        with pytest.raises(dgfast.UserError) as error:
            call(pictures)
        assert "\n" not in str(error.value)


def test_numbers_that_do_not_fit(model, files):
    with pytest.raises(dgfast.UserError, match="2 bodies and 3 clothes"):
        model.swap(files[:2], files)


def test_files_are_found_however_they_are_named(files, tmp_path, monkeypatch):
    folder = files[0].parent
    (folder / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in files[::-1]))
    assert find_images([folder], progress=False) == files
    assert find_images([str(folder / "*.png")], progress=False) == files
    assert find_images([tmp_path / "list.txt"], progress=False) == files[::-1]
    assert find_images([files[1], folder], progress=False) == [files[1], files[0], files[2]]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nothing", "does not exist"),
        (lambda folder: folder, "holds no images"),
        (lambda folder: f"{folder}/*.png", "no image fits"),
        (lambda folder: _written(folder / "a.txt", "b.png"), "which does not exist"),
        (lambda folder: _written(folder / "a.txt", "\n"), "is empty"),
        (lambda folder: _written(folder / "a.png", "no image"), "none of 1 files can be read"),
    ],
)
def test_sources_without_images_are_refused(tmp_path, make, said):
    with pytest.raises(dgfast.UserError, match=said) as error:
        find_images([make(tmp_path)], progress=False)
    assert "\n" not in str(error.value)


def test_no_source_at_all_is_refused():
    with pytest.raises(dgfast.UserError, match="no images are named"):
        find_images([], progress=False)


def test_bad_files_are_left_out_and_named(files, tmp_path, caplog):
    bad = _written(tmp_path / "bad.jpg", "no image")
    assert find_images([*files, bad], progress=False) == files
    assert "bad.jpg" in caplog.text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("0002_c1s1_000451_03.jpg", (2, 1)),
        ("-1_c3s2_000123_00.jpg", (-1, 3)),
        ("0000_000_01_0303morning_0008_0.jpg", (0, 1)),
        ("shop_c12.png", (None, 12)),
        ("a.png", (None, None)),
    ],
)
def test_names_tell_identity_and_camera(tmp_path, name, told):
    assert told_by_name(tmp_path / name) == told


def _written(path, text):
    path.write_text(text)
    return path
