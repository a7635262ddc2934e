"""Between two people: the ends are the swaps, what lies between moves from one to the other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dgfast
from dgfast.commands import cli, interpolate
from dgfast.data.loaders.image import read_image
from dgfast.inference import Model
from dgfast.models import DGNet
from dgfast.pedestrians import Parameters, first_photographs
from dgfast.synthesis import between_bodies, between_clothes
from dgfast.synthesis import interpolate as functions
from tests import tiny


@pytest.fixture(scope="module")
def people():
    return list(first_photographs(Parameters(identities=4, test_identities=2, seed=3, size=(128, 64)), (1, 2, 4)))


@pytest.fixture(scope="module")
def files(people, tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    for name, pixels in zip(("anna", "ben", "carla"), people, strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return [str(folder / f"{name}.png") for name in ("anna", "ben", "carla")]


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


def test_the_ends_are_the_swaps(people):
    model, (anna, ben, carla) = dgfast.load(), people
    clothes = model.interpolate(anna, ben, other=carla, steps=5)
    assert clothes.shape == (5, 128, 64, 3) and clothes.dtype == np.uint8
    assert apart(clothes[0], model.swap(carla, anna)[0]) <= 1
    assert apart(clothes[-1], model.swap(carla, ben)[0]) <= 1
    bodies = model.interpolate(anna, ben, what="structure", other=carla, steps=3)
    assert apart(bodies[0], model.swap(anna, carla)[0]) <= 1
    assert apart(bodies[-1], model.swap(ben, carla)[0]) <= 1


def test_without_another_the_first_person_is_reconstructed(people):
    model, (anna, ben, _) = dgfast.load(), people
    own = model.swap(anna, anna)[0]
    for what in ("appearance", "structure"):
        assert apart(model.interpolate(anna, ben, what=what, steps=2)[0], own) <= 1


def test_a_person_and_the_same_one_stand_still(people):
    found = dgfast.load().interpolate(people[0], people[0], other=people[1], steps=4)
    assert all(apart(picture, found[0]) <= 1 for picture in found)


@pytest.mark.parametrize("background", ["painted", "kept"])
def test_codes_and_photographs_lie_on_a_straight_line(background, monkeypatch):
    """What the decoder and the background are given at step k is (1 - w) of the first and w of the last."""
    config = tiny.MODEL.__class__(**{**vars(tiny.MODEL), "background": background})
    torch.manual_seed(0)
    networks = DGNet(config, 2).eval()
    a, b, c = torch.randn(3, 1, 3, 48, 48)
    given = []

    def dress(structure, code, bodies):
        given.append([*torch.broadcast_tensors(structure.flatten(1).mean(1), code.mean(1), bodies.mean((1, 2, 3)))])
        return bodies.expand(len(code), -1, -1, -1)

    monkeypatch.setattr(networks, "dress", dress)
    monkeypatch.setattr(functions, "_BATCH", 2)  # five steps are three batches
    between_bodies(networks, a, b, c, 5)
    structure, code, bodies = (torch.cat(column) for column in zip(*given, strict=True))
    for values in (structure, bodies):
        assert torch.allclose(values, torch.lerp(values[0], values[-1], torch.linspace(0, 1, 5)), atol=1e-6)
        assert values[0] != values[-1]
    assert torch.allclose(bodies[0], a.mean()) and torch.allclose(bodies[-1], b.mean())
    assert (code == code[0]).all()
    given.clear()
    between_clothes(networks, c, a, b, 5)
    structure, code, bodies = (torch.cat(column) for column in zip(*given, strict=True))
    assert torch.allclose(code, torch.lerp(code[0], code[-1], torch.linspace(0, 1, 5)), atol=1e-6)
    assert code[0] != code[-1] and (structure == structure[0]).all() and (bodies == bodies[0]).all()


def test_a_strip_shows_the_photographs_and_what_lies_between(files, tmp_path):
    anna, ben, carla = (np.asarray(read_image(Path(path))) for path in files)
    out = tmp_path / "strip.png"
    words = ["interpolate", "--from", files[0], "--to", files[1], "--steps", "3", "--out", str(out)]
    cli.dispatch([*words, "--body", files[2]])
    strip = np.asarray(read_image(out))
    made = dgfast.load().interpolate(*files[:2], other=files[2], steps=3)
    cells = [carla, anna, *made, ben]
    assert strip.shape == (132, 2 + 6 * 64 + 3 * 10 + 2 * 2 + 2, 3)
    columns = [2, 2 + 64 + 10, 2 + 2 * 74]
    columns += [columns[2] + 66, columns[2] + 132, columns[2] + 132 + 74]
    for column, picture in zip(columns, cells, strict=True):
        assert apart(strip[2:-2, column : column + 64], picture) <= 1
    cli.dispatch(words)
    assert read_image(out).width == strip.shape[1] - 74  # nobody stands apart


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_an_animation_goes_there_and_back(files, tmp_path, ending):
    out = tmp_path / f"a.{ending}"
    words = ["--from", files[0], "--to", files[1], "--what", "structure", "--clothes", files[2], "--steps", "5"]
    cli.dispatch(["interpolate", *words, "--out", str(out)])
    with Image.open(out) as animation:
        assert animation.n_frames == 8 and animation.size == (64, 128) and animation.info["loop"] == 0
        frames = []
        for number in range(8):
            animation.seek(number)
            animation.load()
            assert animation.info["duration"] == 500
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    for one, other in ((1, 7), (2, 6), (3, 5)):
        assert np.abs(frames[one] - frames[other]).mean() < 3 < np.abs(frames[one] - frames[4]).mean()


def test_the_demo_needs_nothing(people, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interpolate, "demo_people", lambda numbers, _: np.stack(people[: len(numbers)]))
    cli.dispatch(["interpolate", "--demo", "--steps", "2"])
    assert read_image(tmp_path / "strip.png").height == 132


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--from is missing; expected images of two people"),
        (["--from", "a.jpg"], "--to is missing"),
        (["--demo", "--to", "a.jpg"], "--demo and --to are both given"),
        (["--demo", "--out", "a.mp4"], "--out a.mp4 ends in .mp4; expected a file that ends in .png, .jpg"),
        (["--from", "a.jpg", "--to", "b.jpg", "--clothes", "c.jpg"], "--clothes is given with --what appearance"),
        (["--from", "a", "--to", "b", "--what", "structure", "--body", "c"], "--body is given with --what structure"),
        (["--from", "a.jpg", "--to", "b.jpg"], "a.jpg cannot be read"),
        (["--demo", "--steps", "1"], "--steps is 1; expected a number from 2"),
        (["--demo", "--what", "both"], "--what is 'both'; expected one of 'appearance', 'structure'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interpolate, "demo_people", lambda *_: pytest.fail("too late"))
    with pytest.raises(dgfast.UserError, match=said) as error:
        cli.dispatch(["interpolate", *words])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_in_python_a_mistake_is_one_line(people):
    model: Model = dgfast.load()
    for options in ({"what": "both"}, {"steps": 1}):
        with pytest.raises(dgfast.UserError, match="expected 'appearance' or 'structure', and at least 2"):
            model.interpolate(*people[:2], **options)
