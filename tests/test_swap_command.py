"""`dgfast swap`: tables of people in each other's clothes, from whatever names people."""

import numpy as np
import pytest
from PIL import Image

import dgfast
from dgfast.commands import cli, swap
from dgfast.data.loaders.image import read_image
from dgfast.models import DGNet
from dgfast.models.dgnet import save_model
from dgfast.pedestrians import Parameters, first_photographs, generate
from tests import tiny


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Three people of the built-in model's size."""
    folder = tmp_path_factory.mktemp("crops")
    people = first_photographs(Parameters(identities=4, test_identities=2, seed=3, size=(128, 64)), (1, 2, 4))
    for name, pixels in zip(("anna", "ben", "carla"), people, strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def cell(table: np.ndarray, row: int, column: int) -> np.ndarray:
    """A picture of a table of 128 x 64, row and column 0 being the heads'."""
    return table[2 + 130 * row : 130 * (row + 1), 2 + 66 * column : 66 * (column + 1)]


def near(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal up to the rounding of a batch of another size."""
    return one.shape == other.shape and bool(np.abs(one.astype(int) - other).max() <= 1)


def pixels(path) -> np.ndarray:
    return np.asarray(read_image(path))


def test_a_table_has_heads_and_every_pair(crops, tmp_path):
    out, separate = tmp_path / "a" / "swaps.png", tmp_path / "each"
    bodies = [crops / "anna.png", crops / "ben.png"]
    words = ["swap", "--bodies", *map(str, bodies), "--clothes", f"{crops}/*.png", "--out", str(out)]
    cli.dispatch([*words, "--separate", str(separate)])
    table = pixels(out)
    assert table.shape == (4 * 130 + 2, 3 * 66 + 2, 3)
    clothes = sorted(crops.iterdir())
    assert (cell(table, 0, 0) == 255).all()
    for column, body in enumerate(bodies, start=1):
        assert np.array_equal(cell(table, 0, column), pixels(body))
        for row, own in enumerate(clothes, start=1):
            assert np.array_equal(cell(table, row, 0), pixels(own))
            alone = pixels(separate / f"{body.stem}-in-{own.stem}.png")
            assert np.array_equal(alone, cell(table, row, column))
            assert near(alone, dgfast.load().swap(body, own)[0])
    assert len(list(separate.iterdir())) == 6


def test_who_is_not_named_is_the_other_side(crops, tmp_path):
    cli.dispatch(["swap", "--clothes", str(crops), "--out", str(tmp_path / "swaps.webp")])
    with Image.open(tmp_path / "swaps.webp") as table:
        assert table.format == "WEBP" and table.size == (4 * 66 + 2, 4 * 130 + 2)


def test_the_demo_needs_nothing_and_takes_what_is_there(crops, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = []

    def demo(people, size):
        drawn.append(people)
        return np.stack([pixels(crops / "ben.png")] * len(people))

    monkeypatch.setattr(swap, "demo_people", demo)
    cli.dispatch(["swap", "--demo"])
    assert drawn == [swap.BODIES, swap.CLOTHES]
    assert pixels(tmp_path / "swaps.png").shape[:2] == (130 * 5 + 2, 66 * 5 + 2)
    cli.dispatch(["swap", "--demo", "--bodies", str(crops / "anna.png"), "--out", "one.jpg"])
    assert drawn[2:] == [swap.CLOTHES]
    assert Image.open("one.jpg").size == (66 * 2 + 2, 130 * (len(swap.CLOTHES) + 1) + 2)


def test_the_people_of_the_demo_are_those_of_the_data_set(tmp_path):
    """A photograph that is drawn alone is the one in the file, to the bit."""
    from dgfast.commands.demo import demo_people

    generate(tmp_path / "set", identities=24, test_identities=12, seed=77, difficulty=0.5, size=(48, 48), workers=1)
    for number in (8, 13):
        files = (tmp_path / "set").glob(f"*/{number:04d}_*.jpg")
        assert any(np.array_equal(pixels(path), demo_people((number,), (48, 48))[0]) for path in files)


def test_people_of_a_data_set_by_their_numbers(market, tmp_path):
    save_model(DGNet(tiny.MODEL, 2), tiny.MODEL, 2, tmp_path / "model.safetensors")
    out = tmp_path / "swaps.png"
    words = ["swap", "--model", str(tmp_path / "model.safetensors"), "--data-root", str(market), "--out", str(out)]
    cli.dispatch([*words, "--identities", "2", "4"])  # one is in the training split, the other is not
    first = sorted((market / "bounding_box_train").glob("0002_*"))[0]
    table = pixels(out)
    side = (table.shape[1] - 2) // 3 - 2
    head = np.asarray(read_image(first).resize((side, 256), Image.Resampling.BICUBIC))
    assert np.array_equal(table[2:258, side + 4 : 2 * side + 4], head)
    with pytest.raises(dgfast.UserError, match="--identities 9: .* has no image of that person; .* 1, 2, 3, 4"):
        cli.dispatch([*words, "--identities", "9"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nobody to dress; expected --bodies"),
        (["--demo", "--out", "swaps.tif"], "--out swaps.tif ends in .tif; expected a file that ends in .png"),
        (["--demo", "--out", "swaps"], "--out swaps has no ending"),
        (["--identities", "3"], "--identities is given without --data-root"),
        (["--data-root", "x"], "--data-root is given without --identities"),
        (["--demo", "--identities", "3", "--data-root", "x"], "--demo and --identities are both given"),
        (["--bodies", "nowhere.jpg"], "nowhere.jpg does not exist"),
        (["--demo", "--model", "nowhere"], "nowhere does not exist"),
        (["--demo", "--out", "/proc/x/swaps.png"], "cannot be written to"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(dgfast.UserError, match=said) as error:
        cli.dispatch(["swap", *words])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_tables_beyond_reason_are_refused_before_a_picture_is_made(crops, tmp_path, monkeypatch):
    monkeypatch.setattr(swap, "swap_all", lambda *_: pytest.fail("too late"))
    words = ["swap", "--bodies", str(crops), "--out", str(tmp_path / "swaps.png")]
    monkeypatch.setattr(swap, "MOST", 2)
    with pytest.raises(dgfast.UserError, match="found 3 images; expected at most 2"):
        cli.dispatch(words)
    monkeypatch.setattr(swap, "MOST", 8)
    with pytest.raises(dgfast.UserError, match="3 bodies in 3 sets of clothes are 9 pictures; expected at most 8"):
        cli.dispatch(words)
    monkeypatch.setattr(swap, "MOST", 9)
    monkeypatch.setitem(swap._SIDES, ".webp", 500)
    with pytest.raises(dgfast.UserError, match="take 522 pixels; .webp has room for 500"):
        cli.dispatch([*words[:-1], str(tmp_path / "swaps.webp")])


def test_names_of_files_are_distinct_and_short():
    assert swap._distinct(["a", "b", "a", "a-2", "a"]) == ["a", "b", "a-2", "a-2-2", "a-3"]
    long = swap._distinct(["ä" * 300, "ä" * 300])
    assert len(set(long)) == 2 and all(len(name.encode()) < 200 for name in long)
