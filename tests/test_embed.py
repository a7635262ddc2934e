"""Vectors in files: the same numbers in every format, an index that says what each row shows, people in videos."""

import csv
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import dgfast
from dgfast import run_directory
from dgfast.commands import cli, embed
from dgfast.data.video import Box, crops, read_boxes
from dgfast.errors import UserError
from dgfast.models import DGNet
from dgfast.models.dgnet import save_model
from dgfast.retrieval import saved_vectors
from dgfast.retrieval.saved_vectors import Origin, Shown, Vectors, fingerprint
from tests import tiny

NAMES = ("0002_c1s1_000451_03.png", "-1_c3s2_000123_00.png", "shop_c12.png", "a, b.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four pictures of noise, one of them in a folder below, and a file that is none."""
    here = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        path = here / ("sub" if number == 3 else "") / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60 + number, 30, 3), np.uint8)).save(path)
    (here / "bad.jpg").write_text("no image")
    return here


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that costs nothing, in a run directory."""
    run = tmp_path_factory.mktemp("runs") / "run"
    run_directory.make(tiny.config(run / "no-data", run.parent), run)
    torch.manual_seed(0)
    save_model(DGNet(tiny.MODEL, 2), tiny.MODEL, 2, run / "model.safetensors")
    return run


@pytest.fixture
def video(tmp_path):
    """Ten frames of 64 x 48 whose grey value is 20 times their number, five in a second."""
    path = tmp_path / "street.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for number in range(10):
        writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
    writer.release()
    return path


def call(*words) -> None:
    cli.dispatch(["embed", *map(str, words), "--loader", "torchvision", "--loader-workers", "0"])


def index(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_bundled_model_embeds_a_folder(folder, tmp_path, capsys, caplog):
    call(folder, "--out", tmp_path / "v.npy")
    out = capsys.readouterr().out
    assert "4 vectors of length 512" in out and "images/s on the CPU" in out and "bad.jpg" in caplog.text
    paths = [folder / row["path"] for row in index(tmp_path / "v.csv")]
    assert paths == sorted(p for p in folder.rglob("*.png"))
    model = dgfast.load()
    values = np.load(tmp_path / "v.npy")
    assert values.dtype == np.float32
    assert np.array_equal(values, model.embed(paths, loader="torchvision").numpy())
    about = json.loads((tmp_path / "v.json").read_text())
    assert about["model"] == fingerprint(model) and about["image_size"] == [128, 64] and about["alpha"] == model.alpha
    assert about["vectors"] == 4 and about["dimension"] == 512 and about["dgfast"]


def test_the_index_tells_what_names_tell(folder, model, tmp_path):
    call(*(folder / name for name in NAMES[:3]), folder / "sub", "--model", model, "--out", tmp_path / "v.npy")
    rows = index(tmp_path / "v.csv")
    assert [row["row"] for row in rows] == ["0", "1", "2", "3"]
    assert [(row["identity"], row["camera"]) for row in rows] == [("2", "1"), ("-1", "3"), ("", "12"), ("", "")]
    assert rows[3]["path"].endswith("sub/a, b.png")


def test_every_format_holds_the_same(folder, model, tmp_path):
    pytest.importorskip("pyarrow")
    found = {}
    for suffix in saved_vectors.SUFFIXES:
        call(folder, "--model", model, "--out", tmp_path / suffix[1:] / f"v{suffix}")
        found[suffix] = saved_vectors.load(tmp_path / suffix[1:] / f"v{suffix}")
    first = found[".npy"]
    assert first.values.shape == (4, 32) and {one.identity for one in first.shown} == {2, -1, None}
    for suffix, vectors in found.items():
        assert np.array_equal(vectors.values, first.values), suffix
        assert vectors.origin == first.origin and list(vectors.shown) == list(first.shown), suffix
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("v.*"))
    assert names == [
        *("npy/v.csv", "npy/v.json", "npy/v.npy"),
        *("parquet/v.parquet", "safetensors/v.csv", "safetensors/v.safetensors"),
    ]


def test_a_set_moves_with_its_images_and_names_may_be_no_text(model, tmp_path):
    here = tmp_path / "before"
    here.mkdir()
    odd = here / "caf\udce9\nnew line.png"
    Image.new("RGB", (30, 60)).save(odd)
    call(here, "--model", model, "--out", here / "v.safetensors")
    here.rename(tmp_path / "after")
    (shown,) = saved_vectors.load(tmp_path / "after" / "v.safetensors").shown
    assert shown.path == tmp_path / "after" / odd.name and shown.path.is_file()


def test_parquet_cannot_hold_names_that_are_no_text(model, tmp_path):
    pytest.importorskip("pyarrow")
    Image.new("RGB", (30, 60)).save(tmp_path / "caf\udce9.png")
    with pytest.raises(UserError, match="is no text, which Parquet cannot hold"):
        call(tmp_path, "--model", model, "--out", tmp_path / "v.parquet")
    assert not list(tmp_path.glob("*parquet*")) and not list(tmp_path.glob(".*"))


def test_people_of_a_video(model, video, tmp_path, caplog):
    boxes = tmp_path / "tracks.txt"
    boxes.write_text(
        "frame,id,bb_left,bb_top,bb_width,bb_height,conf\n"
        "8,7,5,6,20,34,0.9,-1,-1,-1\n1 3 -4.4 0 20 20 1\n\n8,3.0,60,0,30,48\n8,9,50,-10,14,18\n10,9,56.4,39.6,100,100\n"
    )
    call(video, "--boxes", boxes, "--model", model, "--out", tmp_path / "people.npy", "--batch-size", 2)
    columns = ("frame", "time", "track", "left", "top", "width", "height")
    rows = [tuple(float(row[name]) for name in columns) for row in index(tmp_path / "people.csv")]
    assert rows == [
        (1, 0, 3, 0, 0, 16, 20),  # cut off at the left
        (8, 1.4, 7, 5, 6, 20, 34),
        (8, 1.4, 9, 50, 0, 14, 8),  # at the top; 8 pixels are left, which is enough
        (10, 1.8, 9, 56, 40, 8, 8),  # at the corner
    ]
    assert "1 of 5 boxes are left out" in caplog.text and "frame 8, track 3" in caplog.text
    values = np.load(tmp_path / "people.npy")
    networks = dgfast.load(model)
    expected = networks.embed([crop.pixels for crop in crops(video, read_boxes(boxes))])
    assert values.shape == (4, 32) and np.allclose(values, expected, atol=1e-5)
    shades = [crop.pixels.mean() for crop in crops(video, read_boxes(boxes))]
    assert shades == pytest.approx([0, 140, 140, 180], abs=3)


def test_crops_are_rgb(tmp_path):
    path = tmp_path / "red.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    writer.write(np.broadcast_to(np.array([0, 0, 250], np.uint8), (48, 64, 3)).copy())
    writer.release()
    (crop,) = crops(path, [Box("1", 0, 10, 10, 30, 40)])
    assert crop.pixels[..., 0].mean() > 200 and crop.pixels[..., 2].mean() < 50


def test_no_more_than_a_batch_of_images_is_held(folder, model, tmp_path, monkeypatch):
    """Vectors are written to where they stay, batch by batch."""
    seen = []
    networks = dgfast.load(model)
    networks.appearance.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    monkeypatch.setattr(embed.dgfast, "load", lambda _: networks)
    call(folder, "--model", model, "--out", tmp_path / "v.npy", "--batch-size", "3")
    assert seen == [2 * 3, 2 * 1]  # each with its mirror image, in one pass


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "v.npy"], "no SOURCE"),
        (["nowhere", "--out", "v.npy"], "nowhere does not exist"),
        (["crops", "--out", "v.txt"], "expected a name that ends in .npy, .safetensors or .parquet"),
        (["crops", "--out", "/proc/x/v.npy"], "cannot be written to"),
        (["crops", "--out", "v.npy", "crops"], "'crops' belongs to no flag; expected what has no flag first"),
        (["--sources", "crops", "--out", "v.npy"], "--sources is no flag of dgfast embed"),
        (["crops"], "--out PATH is missing"),
        (["crops", "--out", "v.npy", "--model", "nowhere"], "does not exist"),
        (["street.avi", "--out", "v.npy"], "street.avi is a video"),
        (["crops", "--boxes", "b.txt", "--out", "v.npy"], "crops is no file"),
        (["street.avi", "crops", "--boxes", "b.txt", "--out", "v.npy"], "expected one video"),
        (["street.avi", "--boxes", "nowhere.txt", "--out", "v.npy"], "--boxes nowhere.txt: No such file"),
        (["street.avi", "--boxes", "words.txt", "--out", "v.npy"], "not a file of boxes ('line 1: no boxes"),
        (["street.avi", "--boxes", "zero.txt", "--out", "v.npy"], "below that of the first"),
        (["street.avi", "--boxes", "nan.txt", "--out", "v.npy"], "not a file of boxes ('line 1"),
        (["street.avi", "--boxes", "late.txt", "--out", "v.npy"], "10 frames can be read, the boxes need 11"),
        (["street.avi", "--boxes", "outside.txt", "--out", "v.npy"], "none of 1 boxes lies in its frames"),
        (["crops/bad.jpg", "--boxes", "b.txt", "--out", "v.npy"], "0 frames can be read"),
        (["street.avi", "--boxes", "v.csv", "--out", "v.npy"], "would overwrite v.csv, which is read"),
        (["crops", "--out", "b.npy"], "would overwrite b.csv, which is of something else"),
        (["x" * 300, "--out", "v.npy"], "at most 200 bytes"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(folder, video, monkeypatch, words, said):
    here = video.parent
    monkeypatch.chdir(here)
    (here / "crops").symlink_to(folder)
    texts = {"b": "1,1,0,0,20,20", "words": "no boxes here", "zero": "0,1,0,0,20,20", "nan": "1,1,nan,0,20,20"}
    texts |= {"late": "11,1,0,0,20,20", "outside": "1,1,64,0,20,20"}
    for name, text in texts.items():
        (here / f"{name}.txt").write_text(text + "\n")
    for name in ("b.csv", "v.csv"):
        (here / name).write_text("1,1,0,0,20,20\n")
    if "v.csv" not in words:
        (here / "v.csv").unlink()
    before = sorted(here.iterdir())
    monkeypatch.setattr(logging.getLogger("dgfast"), "disabled", True)
    with pytest.raises(UserError) as error:
        cli.dispatch(["embed", *words])
    assert said in str(error.value) and "\n" not in str(error.value)
    assert sorted(here.iterdir()) == before


def test_parquet_without_its_library_names_the_extra(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(saved_vectors.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install -e '.\[parquet\]'"):
        call(folder, "--out", tmp_path / "v.parquet")


def vectors(count: int = 2) -> Vectors:
    origin = Origin("0" * 64, (128, 64), 0.5, "0")
    return Vectors(np.ones((count, 4), np.float32), [Shown(Path(f"{n}.png")) for n in range(count)], origin)


def test_a_failure_leaves_the_old_set(tmp_path, monkeypatch):
    path = tmp_path / "v.npy"
    saved_vectors.save(vectors(), path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_vectors, "_columns", full)
    with pytest.raises(UserError, match="No space left on device"):
        saved_vectors.save(vectors(3), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("v.csv", None, "the index, cannot be read"),
        ("v.json", None, "does not say which model made it"),
        ("v.json", b"{", "is no description of vectors"),
        ("v.json", b"[]", "does not say which model made it"),
        ("v.json", b'{"format": "dgfast-vectors-9"}', "format 'dgfast-vectors-9'"),
        ("v.csv", b"row,path,identity,camera\n0,a.png,,\n", "holds 2 vectors and its index 1 rows"),
        ("v.csv", b"row,path,identity,camera\n0,a.png,,\n1,b.png,x,\n", "the index of"),
        ("v.csv", b"frame,id\n1,2\n", "is no index of vectors (columns frame, id)"),
        ("v.npy", b"", "cut short"),
        ("v.safetensors", b"x" * 20, "cannot be read as vectors"),
        ("v.parquet", b"x" * 20, "cannot be read as vectors"),
    ],
)
def test_damaged_sets_are_refused_in_one_line(tmp_path, file, content, said):
    if file.endswith("parquet"):
        pytest.importorskip("pyarrow")
    saved_vectors.save(vectors(), tmp_path / "v.npy")
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    name = file if file.endswith(saved_vectors.SUFFIXES) else "v.npy"
    with pytest.raises(UserError) as error:
        saved_vectors.load(tmp_path / name)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_fingerprint_is_that_of_the_weights(model):
    one, other = dgfast.load(model), dgfast.load(model)
    assert fingerprint(one) == fingerprint(other)
    with torch.no_grad():
        other.decoder.to_rgb.weight.add_(1)
    assert fingerprint(one) == fingerprint(other)  # what makes no vectors does not count
    with torch.no_grad():
        next(other.appearance.parameters()).add_(1e-6)
    assert fingerprint(one) != fingerprint(other)


def test_boxes_of_json_and_of_rows_agree(tmp_path):
    (tmp_path / "b.json").write_text('{"tracklets": {"4": [[2, 10, 20, 40, 80]]}}')
    (tmp_path / "b.txt").write_text("3;4;10;20;30;60\n")
    assert read_boxes(tmp_path / "b.json") == read_boxes(tmp_path / "b.txt") == [Box("4", 2, 10, 20, 40, 80)]
