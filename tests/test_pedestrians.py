"""The synthetic pedestrians: layout of the data set, determinism, masks, truth of swaps, refusals."""

import csv
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from dgfast.errors import UserError
from dgfast.pedestrians import dataset, generate
from dgfast.pedestrians.picture import make_world
from dgfast.pedestrians.plan import Parameters, count_images, identity_of, images_of, swap_of
from dgfast.pedestrians.rasterise import rasterise
from dgfast.pedestrians.swap import render_swap

NAME = re.compile(r"^(-1|\d{4})_c([1-6])s([1-6])_(\d{6})_(\d{2})$")
SIZE = (96, 48)
OPTIONS = {"identities": 6, "distractors": 11, "swap_truth": 3, "size": SIZE, "images_per_camera": 1.5}
TINY = {"identities": 2, "cameras_per_identity": (2, 2), "size": (64, 32), "workers": 1, "progress": False}


def threads():
    return int(os.environ["OPENBLAS_NUM_THREADS"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "set"
    return out, generate(out, workers=1, progress=False, **OPTIONS)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def images(folder: Path) -> list[tuple[int, int]]:
    """(person, camera) of every image of a split."""
    matches = [NAME.match(path.stem) for path in sorted(folder.glob("*.jpg"))]
    assert all(matches)
    return [(int(match[1]), int(match[2])) for match in matches]


def test_same_bytes_for_any_number_of_workers(made, tmp_path):
    generate(tmp_path / "set", workers=2, progress=False, **OPTIONS)
    assert contents(tmp_path / "set") == contents(made[0])


def test_global_random_state_is_neither_used_nor_changed(tmp_path):
    random.seed(1)
    np.random.seed(1)
    generate(tmp_path / "a", **TINY)
    assert random.random() == random.Random(1).random()
    assert np.random.random() == np.random.RandomState(1).random()
    generate(tmp_path / "b", **TINY)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_seed_changes_the_pictures(tmp_path):
    first = generate(tmp_path / "a", seed=1, masks=False, **TINY)
    generate(tmp_path / "b", seed=2, masks=False, **TINY)
    assert set(contents(tmp_path / "a")) != set(contents(tmp_path / "b"))
    assert not (first.out / "masks").exists() and not (first.out / "swap_truth").exists()


def test_drawing_needs_no_torch():
    """The processes that draw start in a fraction of the time that importing torch takes."""
    code = "import sys, dgfast.pedestrians; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {name.split(".")[1] for name in loaded if name.startswith("dgfast.")} == {"errors", "files", "pedestrians"}
    assert "torch" not in loaded


def test_layout_and_counts(made):
    out, summary = made
    train, query, gallery = (images(out / split) for split in ("bounding_box_train", "query", "bounding_box_test"))
    assert (len(train), len(query), len(gallery)) == (
        summary.train_images,
        summary.query_images,
        summary.gallery_images,
    )
    assert len(train) + len(query) + len(gallery) == summary.images
    assert {person for person, _ in train} == {1, 2, 3}
    assert {person for person, _ in query} == {4, 5, 6}
    labels = Counter(person for person, _ in gallery)
    assert set(labels) == {-1, 0, 4, 5, 6}
    assert (labels[0], labels[-1]) == (summary.distractor_images, summary.junk_images) == (11, 2)
    stated = json.loads((out / "synthetic.json").read_text())
    assert stated["parameters"]["seed"] == 0 and stated["parameters"]["size"] == list(SIZE)
    assert stated["counts"]["gallery_images"] == summary.gallery_images
    assert read(next(out.glob("query/*.jpg"))).shape == (*SIZE, 3)
    assert list(out.parent.iterdir()) == [out]


def test_protocol_has_an_answer_for_every_query(made):
    out, _ = made
    query, gallery = images(out / "query"), images(out / "bounding_box_test")
    assert len(set(query)) == len(query)  # one query per person and camera
    for person, camera in query:
        assert any(p == person and c != camera for p, c in gallery)
        assert any(p == person and c == camera for p, c in gallery)


def test_masks_show_clothes(made):
    out, _ = made
    people = 0
    for image in [*out.glob("bounding_box_*/*.jpg"), *out.glob("query/*.jpg")]:
        mask = read(out / "masks" / image.parent.name / f"{image.stem}.png")
        assert mask.shape == SIZE and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
        share = (mask > 0).mean()
        if image.name.startswith("-1"):
            assert share == 0
        else:
            assert 0.02 < share < 0.75, image
            people += 1
    assert people > 30


def test_mask_lies_on_the_clothes():
    parameters = _parameters()
    world = make_world(parameters.seed, parameters.difficulty)
    own = render_swap(world, _good_image(world, parameters, 4).shot, SIZE, wearer=4, owner=4)
    assert (own.mask[: SIZE[0] // 12] == 0).mean() > 0.9  # no clothes above the head
    middle = own.mask[SIZE[0] // 3 : SIZE[0] // 2, SIZE[1] // 3 : -SIZE[1] // 3]
    assert (middle > 0).mean() > 0.5  # the chest


def _parameters(size=SIZE) -> Parameters:
    return Parameters(
        identities=6, test_identities=3, seed=0, difficulty=0.25, images_per_camera=1.5, cameras_per_identity=(3, 6),
        distractors=0, size=size, masks=True, swap_truth=3,
    )  # fmt: skip


def _good_image(world, parameters, person):
    """A picture with a good box and nobody else."""
    for image in images_of(world, parameters, person):
        shot = image.shot
        if shot.view.fitted and shot.before is None and shot.behind is None and shot.furniture is None:
            return image
    raise AssertionError("no such picture")


def test_pairs_file(made):
    out, _ = made
    with (out / "swap_truth" / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and list(rows[0]) == ["structure", "appearance", "truth", "mask"]
    for row in rows:
        assert all((out / path).is_file() for path in row.values())
        people = [NAME.match(Path(row[name]).stem)[1] for name in ("structure", "appearance")]
        assert people[0] != people[1]
        assert all(row[name].startswith(("query/", "bounding_box_test/")) for name in ("structure", "appearance"))
        assert read(out / row["truth"]).shape == (*SIZE, 3) and read(out / row["mask"]).shape == SIZE


def test_truth_with_ones_own_clothes_is_the_image(made):
    out, _ = made
    parameters = _parameters()
    world = make_world(parameters.seed, parameters.difficulty)
    for index in range(3):
        swap = swap_of(world, parameters, index)
        structure = swap.structure
        own = render_swap(world, structure.shot, SIZE, wearer=swap.wearer, owner=swap.wearer)
        jpeg = cv2.imdecode(cv2.imencode(".jpg", own.image[..., ::-1], [1, own.quality])[1], 1)
        assert np.array_equal(jpeg, read(out / structure.path))
        truth = read(out / "swap_truth" / f"{index:05d}.png")[..., ::-1]
        assert np.array_equal(
            truth, render_swap(world, structure.shot, SIZE, wearer=swap.wearer, owner=swap.owner).image
        )
        error = np.square(read(out / structure.path)[..., ::-1].astype(float) - own.image).mean()
        assert 10 * np.log10(255**2 / error) > 30


@pytest.mark.parametrize(("wearer", "owner"), [(4, 5), (5, 6), (6, 4)])
def test_swap_changes_clothes_only(wearer, owner):
    parameters = _parameters((128, 64))
    world = make_world(parameters.seed, parameters.difficulty)
    shot = _good_image(world, parameters, wearer).shot
    own, other = (render_swap(world, shot, (128, 64), wearer=wearer, owner=person) for person in (wearer, owner))
    # Shadows of hems fall on five centimetres of skin, and the camera blurs. Shoes, which are below, change without
    # being in the mask.
    reach = np.ones((19, 19), np.uint8)
    touched = cv2.dilate(np.maximum(own.mask, other.mask), reach) > 0
    touched[int(0.7 * len(touched)) :] = True
    difference = np.abs(own.image.astype(int) - other.image).max(2)
    assert (~touched).mean() > 0.15
    assert difference[~touched].max() == 0
    assert difference[(own.mask > 0) & (other.mask > 0)].mean() > 10


def test_counting_agrees_with_drawing():
    parameters = _parameters()
    world = make_world(parameters.seed, parameters.difficulty)
    for person in range(1, 7):
        assert count_images(parameters, person) == len(images_of(world, parameters, person))


def test_identities_differ_and_stay():
    people = [identity_of(0, person) for person in range(1, 30)]
    assert len({(person.clothes.upper.colour, person.clothes.lower.colour) for person in people}) == len(people)
    assert people[4] == identity_of(0, 5)


def test_rasteriser_against_a_plain_loop():
    rng = np.random.default_rng(0)
    height, width, count = 24, 17, 12
    points = rng.uniform(-4, 26, (3 * count, 2)).astype(np.float32)
    depth, clip = rng.uniform(1, 2, 3 * count), rng.uniform(-0.3, 1, 3 * count)
    faces = np.arange(3 * count).reshape(-1, 3)
    rank = rng.integers(0, 4, count).astype(np.uint8)
    found = rasterise(points, depth, faces, np.zeros(count, bool), clip, rank, height, width)
    assert (np.diff(rank[found.face].astype(int)) >= 0).all()
    expected = {}
    for y in range(height):
        for x in range(width):
            for face, (a, b, c) in enumerate(faces):
                corners = np.stack([points[[a, b, c], 0], points[[a, b, c], 1], np.ones(3)]).astype(float)
                share = np.linalg.solve(corners, [x + 0.5, y + 0.5, 1])
                if (share >= 0).all() and share @ clip[[a, b, c]] >= 0:
                    candidate = (share @ depth[[a, b, c]], face, share)
                    pixel = y * width + x
                    expected[pixel] = min(expected.get(pixel, candidate), candidate, key=lambda entry: entry[0])
    order = np.argsort(found.pixel)
    assert list(found.pixel[order]) == sorted(expected)
    assert list(found.face[order]) == [expected[pixel][1] for pixel in sorted(expected)]
    np.testing.assert_allclose(
        found.share[order], [expected[pixel][2] for pixel in sorted(expected)], atol=1e-4
    )  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"identities": 1},
        {"difficulty": 1.5},
        {"difficulty": -0.1},
        {"difficulty": float("nan")},
        {"test_identities": 7},
        {"images_per_camera": 0},
        {"cameras_per_identity": (1, 6)},
        {"cameras_per_identity": (4, 3)},
        {"cameras_per_identity": (3, 7)},
        {"distractors": -1},
        {"size": (8, 8)},
        {"workers": 0},
        {"seed": -1},
        {"swap_truth": 1, "test_identities": 1},
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(UserError) as error:
        generate(tmp_path / "set", **{"identities": 6, "progress": False, **wrong})
    assert next(iter(wrong)) in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_full_folder_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not an empty folder"):
        generate(tmp_path / "set", identities=2, progress=False)
    assert (tmp_path / "set" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("name", [".", "../empty"])
def test_an_empty_folder_is_filled(tmp_path, monkeypatch, name):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    generate(Path(name), **TINY)
    assert (tmp_path / "empty" / "synthetic.json").is_file() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("empty_folder", [False, True])
def test_nothing_is_left_after_a_failure(tmp_path, monkeypatch, error, empty_folder):
    def fail(*_):
        raise error

    if empty_folder:
        (tmp_path / "set").mkdir()
    monkeypatch.setattr("dgfast.pedestrians.dataset.take_picture", fail)
    with pytest.raises(type(error)):
        generate(tmp_path / "set", identities=2, workers=1, progress=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["set"] * empty_folder


def test_each_worker_computes_in_one_thread(monkeypatch):
    """Two threads in each of two workers took twice the time."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert list(dataset._finish([threads] * 4, 2)) == [1] * 4
    assert threads() == 7 and "MKL_NUM_THREADS" not in os.environ
