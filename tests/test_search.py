"""Searching: the nearest people in the right order, and what is said where vectors do not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dgfast
from dgfast import run_directory
from dgfast.commands import cli, search
from dgfast.data.video import Box
from dgfast.errors import UserError
from dgfast.retrieval import rerank, saved_vectors
from dgfast.retrieval.saved_vectors import Origin, Shown, Vectors
from dgfast.retrieval.searching import most_alike, scores_of
from dgfast.retrieval.visualise import FRAME, GAP, RIGHT, UNKNOWN, WRONG
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """People in stripes: gallery/ with twelve pictures of two, query/ with one of each, and somebody without a name."""
    here = tmp_path_factory.mktemp("place")
    root = tiny.market(here / "market", images=3, size=(128, 64))
    (root / "bounding_box_test").rename(here / "gallery")
    query = sorted((root / "query").iterdir())
    (here / "query").mkdir()
    for path in (query[0], query[-1]):
        path.rename(here / "query" / path.name)
    Image.new("RGB", (30, 60), (200, 30, 30)).save(here / "somebody.png")
    return here


def call(*words) -> None:
    cli.dispatch(["search", *map(str, words), "--loader", "torchvision", "--loader-workers", "0"])


def found(out) -> list[dict]:
    return json.loads((out / "search.json").read_text())["queries"]


def test_people_are_found_in_a_folder(place, tmp_path, capsys):
    call("--query", place / "query", "--gallery", place / "gallery", "--top", 4, "--out", tmp_path)
    model = dgfast.load()
    files = sorted((place / "gallery").iterdir())
    vectors = model.embed(files, loader="torchvision")
    for query in found(tmp_path):
        scores = (vectors @ model.embed(query["path"], loader="torchvision")[0]) / (1 + model.alpha)
        # Two pictures may be alike to the last bits, which differ between batches of another size.
        rows = [hit["row"] for hit in query["found"]]
        assert len(set(rows)) == 4 and scores[rows].tolist() == pytest.approx(scores.topk(4).values.tolist(), abs=1e-5)
        assert [hit["path"] for hit in query["found"]] == [str(files[row]) for row in rows]
        assert [hit["score"] for hit in query["found"]] == pytest.approx(scores[rows].tolist(), abs=1e-5)
        assert [hit["right"] for hit in query["found"]] == [
            hit["identity"] == query["identity"] for hit in query["found"]
        ]
        assert query["found"][0]["right"] and "distance" not in query["found"][0]
        assert query["found"][0]["same_person_likely"]  # the bundled model has its threshold
    out = capsys.readouterr().out
    assert out.count("rank   score  identity  camera   image") == 2 and all(files[row].name in out for row in rows)


def test_vectors_of_embed_stand_for_the_folder(place, tmp_path):
    cli.dispatch(["embed", str(place / "gallery"), "--out", str(tmp_path / "v.npy"), "--loader", "torchvision"])
    both = []
    for gallery in (place / "gallery", tmp_path / "v.npy"):
        call("--query", place / "query", "--gallery", gallery, "--out", tmp_path)
        both.append([[(h["row"], h["score"]) for h in query["found"]] for query in found(tmp_path)])
    assert both[0] == both[1] and len(both[0][0]) == 10


def test_re_ranking_is_that_of_the_room_below(place, tmp_path, capsys):
    settings = ["--rerank", "--k1", 4, "--k2", 2, "--lambda", 0.4]
    call("--query", place / "query", "--gallery", place / "gallery", "--out", tmp_path, "--top", 5, *settings)
    model = dgfast.load()
    sides = [model.embed(sorted((place / name).iterdir()), loader="torchvision") for name in ("query", "gallery")]
    expected = rerank(*sides, 4, 2, 0.4)
    for row, query in zip(expected, found(tmp_path), strict=True):
        assert [hit["row"] for hit in query["found"]] == row.argsort(stable=True)[:5].tolist()
        assert [hit["distance"] for hit in query["found"]] == pytest.approx(row.sort()[0][:5].tolist(), abs=1e-5)
    assert "distance" in capsys.readouterr().out
    assert json.loads((tmp_path / "search.json").read_text())["reranking"]["k1"] == 4


def test_the_query_itself_is_no_answer(place, tmp_path, capsys):
    file = sorted((place / "gallery").iterdir())[3]
    call("--query", file, "--gallery", place / "gallery", "--top", 50, "--out", tmp_path)
    (query,) = found(tmp_path)
    assert len(query["found"]) == 11 and str(file) not in [hit["path"] for hit in query["found"]]
    assert [hit["rank"] for hit in query["found"]] == list(range(1, 12))
    call("--query", file, "--gallery", file, "--out", tmp_path)
    assert "nothing: the gallery holds this very file alone" in capsys.readouterr().out


def test_frames_of_the_picture_say_what_names_tell(place, tmp_path):
    call("--query", place / "query", place / "somebody.png", "--gallery", place / "gallery", "--out", tmp_path)
    with Image.open(tmp_path / "search.png") as sheet:
        pitch = sheet.height // 3
        for row, query in enumerate(found(tmp_path)):
            colours = {True: RIGHT, False: WRONG, None: UNKNOWN}
            expected = [colours[hit["right"]] for hit in query["found"]]
            x = [3 * GAP + (1 + column) * (64 + 2 * FRAME + GAP) for column in range(10)]
            assert [sheet.getpixel((left, GAP + row * pitch)) for left in x] == expected
            assert (UNKNOWN in expected) == (query["identity"] is None)


@pytest.mark.parametrize(
    ("query", "hit", "right"),
    [(2, 2, True), (2, 3, False), (2, 0, False), (2, -1, None), (2, None, None), (None, 2, None), (0, 0, None)],
)
def test_only_names_of_people_are_right_or_wrong(query, hit, right):
    shown = [Shown(Path("a.png"), identity) for identity in (query, hit)]
    assert search._right(*shown) is right


def test_scores_above_the_threshold_of_the_model_are_marked(place, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(run_directory.BUNDLED, folder)
    words = "--query", place / "query", "--gallery", place / "gallery", "--model", folder, "--out", tmp_path
    call(*words)
    scores = [hit["score"] for hit in found(tmp_path)[0]["found"]]
    threshold = (scores[2] + scores[3]) / 2
    kept = run_directory.read_verification(folder)
    point = {"0.01": {"threshold": threshold, "tpr": 0.9}}
    run_directory.write_verification(kept | {"thresholds": point}, folder)
    capsys.readouterr()
    call(*words)
    assert [hit["same_person_likely"] for hit in found(tmp_path)[0]["found"]] == [True] * 3 + [False] * 7
    assert f"{scores[2]:.3f}*" in capsys.readouterr().out
    assert search.likely_from(folder, 0.5) == threshold
    run_directory.write_verification(kept | {"alpha": 0.7}, folder)
    assert search.likely_from(folder, 0.5) is None
    run_directory.write_verification(kept | {"thresholds": {}}, folder)
    assert search.likely_from(folder, 0.5) is None
    (folder / "verification.json").write_text("[]")
    with pytest.raises(UserError, match="verification.json cannot be read"):
        search.likely_from(folder, 0.5)


@pytest.mark.parametrize("of_video", [False, True])
def test_vectors_whose_images_are_gone_can_be_searched(place, tmp_path, caplog, of_video):
    model = dgfast.load()
    values = model.embed(sorted((place / "gallery").iterdir()), loader="torchvision").numpy()
    gone = [Shown(tmp_path / f"{row}.png") for row in range(len(values))]
    if of_video:
        gone = [Shown(tmp_path / "a.mp4", box=Box("3", row, 0, 0, 10, 20), time=row / 4) for row in range(len(values))]
    saved_vectors.save(Vectors(values, gone, search.origin_of(model)), tmp_path / "v.npy")
    call("--query", place / "query", "--gallery", tmp_path / "v.npy", "--top", 20, "--out", tmp_path)
    assert "12 pictures cannot be read and are empty" in caplog.text
    (last,) = [hit for hit in found(tmp_path)[0]["found"] if hit["row"] == 11]
    if of_video:
        assert (last["frame"], last["time"], last["track"], last["box"]) == (12, 2.75, "3", [0, 0, 10, 20])


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ({"model": "1" * 64}, "other weights"),
        ({"image_size": (256, 128)}, "images of 256x128 pixels, not 128x64"),
        ({"alpha": 0.7}, "alpha 0.7, not 0.5"),
    ],
)
def test_vectors_of_another_model_are_refused(place, tmp_path, origin, said):
    own = search.origin_of(dgfast.load())
    other = Origin(**{**vars(own), **origin})
    shown = [Shown(tmp_path / "a.png")]
    saved_vectors.save(Vectors(np.ones((1, 512), np.float32), shown, other), tmp_path / "v.safetensors")
    with pytest.raises(UserError, match=said):
        call("--query", place / "query", "--gallery", tmp_path / "v.safetensors", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--query", "nowhere.png", "--gallery", "gallery"], "nowhere.png does not exist"),
        (["--query", "query", "--gallery", "nowhere"], "nowhere does not exist"),
        (["--query", "query", "--gallery", "nowhere.npy"], "cannot read nowhere.npy"),
        (["--query", "query", "--gallery", "v.npy", "gallery"], "expected one file of vectors"),
        (["--query", "query", "--gallery", "gallery", "--rerank"], "k1 is 20 for 14 images"),
        (["--query", "query"], "--gallery"),
        (["--query", "query", "--gallery", "gallery", "--out", "/proc/x"], "cannot be written to"),
        (["--query", "query", "--gallery", "clip.mp4"], "clip.mp4 is a video"),
        (["--query", "query", "--gallery", "gallery", "--top", "0"], "--top is 0"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(place, monkeypatch, words, said):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(UserError) as error:
        cli.dispatch(["search", *words])
    assert said in str(error.value) and "\n" not in str(error.value)
    assert sorted(place.rglob("*")) == before


def test_the_best_are_those_of_all_scores(monkeypatch):
    monkeypatch.setattr("dgfast.retrieval.searching._SCORES", 100)  # so that three queries come at a time
    rng = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(7, 5, generator=rng), torch.randn(31, 5, generator=rng)
    gallery[20] = gallery[4]  # a tie
    scores, rows = most_alike(query, gallery, 31, 0.5)
    every = query @ gallery.T / 1.5
    assert torch.allclose(scores, every.gather(1, rows), atol=1e-6) and (scores.diff(dim=1) <= 0).all()
    assert (rows.sort(1)[0] == torch.arange(31)).all()
    places = rows.argsort(1)
    assert (places[:, 4] + 1 == places[:, 20]).all()
    assert torch.allclose(scores_of(query, gallery, rows, 0.5), scores, atol=1e-6)
    with pytest.raises(UserError, match="a score is NaN"):
        most_alike(query, gallery.fill_(torch.nan), 1, 0.5)
