"""Every layout of data set that load_reid reads, on small files, and the message for every mistake."""

import logging
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from dgfast.config import DatasetName
from dgfast.data.datasets import layouts
from dgfast.data.datasets.load import load_reid
from dgfast.data.records import Record, ReidData
from dgfast.errors import UserError
from dgfast.pedestrians import generate


def put(root: Path, *names: str) -> Path:
    """Small images under the given names; empty files where the name is no image's."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".jpg", ".png"):
            image = Image.new("RGB", (4, 8), (len(name), 80, 20))
            image.paste((255, 255, 255), (0, 0, 2, 2))
            image.save(path)
        else:
            path.touch()
    return root


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def load_here(root, kind="auto", **options):
        return load_reid(root, kind, progress=False, **options)

    return load_here


def people(records):
    return [(record.person, record.camera) for record in records]


MARKET = (
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0002_c6s1_000551_01.jpg",
    "bounding_box_train/0007_c2s3_000001_01.jpg",
    "bounding_box_train/0000_c2s3_000001_01.jpg",
    "bounding_box_train/-1_c2s3_000001_01.jpg",
    "bounding_box_train/Thumbs.db",
    "bounding_box_train/._0002_c1s1_000451_03.jpg",
    "query/0001_c1s1_001051_00.jpg",
    "query/0004_c3s1_001051_00.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c1s1_000151_01.jpg",
    "bounding_box_test/0001_c2s1_000301_00.jpg",
    "bounding_box_test/0004_c4s1_000301_00.png",
    "gt_bbox/0001_c1s1_001051_00.jpg",
    "gt_bbox/0001_c1s2_001052_00.jpg",
    "gt_bbox/0001_c2s1_001051_00.jpg",
    "gt_bbox/0002_c1s1_001051_00.jpg",
)


@pytest.mark.parametrize("wrapper", ["", "Market-1501-v15.09.15/"])
@pytest.mark.parametrize("kind", ["auto", "market1501"])
def test_market(tmp_path, load, kind, wrapper):
    root = put(tmp_path / "data", *(wrapper + name for name in MARKET))
    data = load(root, kind)
    assert data.name == "market1501"
    assert people(data.train) == [(2, 1), (2, 6), (7, 2)]
    assert people(data.query) == [(1, 1), (4, 3)]
    assert people(data.gallery) == [(-1, 1), (0, 1), (1, 2), (4, 4)]
    assert [record.path.name for record in data.multi_query] == ["0001_c1s1_001051_00.jpg", "0001_c1s2_001052_00.jpg"]
    assert data.identities == (2, 7) and data.class_of == {2: 0, 7: 1}
    assert data.num_classes == 2 and data.num_cameras == 5
    assert any("train: left out 1 of identity -1 and 1 of identity 0" in note for note in data.notes)
    table = data.summary().splitlines()
    assert table[2].split() == ["train", "3", "2", "3", "0", "0"]
    assert table[4].split() == ["gallery", "4", "2", "3", "1", "1"]


def test_only_the_splits_asked_for(tmp_path, load):
    root = put(tmp_path / "data", *(name for name in MARKET if name.startswith("bounding_box_train")))
    data = load(root, splits=["train"])
    assert len(data.train) == 3 and data.query == data.gallery == data.multi_query == ()
    with pytest.raises(ValueError, match="val"):
        load(root, splits=["val"])


@pytest.mark.parametrize("wrapper", ["", "DukeMTMC-reID/"])
def test_duke(tmp_path, load, wrapper):
    splits = "bounding_box_train/0001_c2_f0046182", "query/0005_c8_f0046985", "bounding_box_test/0005_c2_f0047105"
    names = [f"{name}.jpg" for name in splits]
    data = load(put(tmp_path / "data", *(wrapper + name for name in names)))
    assert data.name == "dukemtmc"
    assert people(data.train + data.query + data.gallery) == [(1, 2), (5, 8), (5, 2)]


def msmt(root: Path, train: str = "train", test: str = "test") -> Path:
    put(
        root,
        f"{train}/0000/0000_000_01_0303morning_0008_0.jpg",
        f"{train}/0001/0001_001_15_0303noon_0008_1.jpg",
        f"{train}/0000/0000_002_14_0303morning_0008_0.jpg",
        f"{test}/0000/0000_000_12_0303morning_0008_0.jpg",
        f"{test}/0003/0003_000_03_0303morning_0008_0.jpg",
    )
    (root / "list_train.txt").write_text(
        "0000/0000_000_01_0303morning_0008_0.jpg 0\n0001/0001_001_15_0303noon_0008_1.jpg 1\n"
    )
    (root / "list_val.txt").write_text("0000/0000_002_14_0303morning_0008_0.jpg 0\n")
    (root / "list_query.txt").write_text("0000/0000_000_12_0303morning_0008_0.jpg 0\n")
    (root / "list_gallery.txt").write_text("0003/0003_000_03_0303morning_0008_0.jpg 3\n\n")
    return root


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
@pytest.mark.parametrize("wrapper", ["", "MSMT17_V1", "MSMT17_V2"])
def test_msmt17_starts_at_person_0(tmp_path, load, folders, wrapper):
    msmt(tmp_path / "data" / wrapper, *folders)
    data = load(tmp_path / "data")
    assert data.name == "msmt17"
    assert people(data.train) == [(1, 1), (2, 15), (1, 14)]  # list_train, then list_val
    assert people(data.query) == [(1, 12)] and people(data.gallery) == [(4, 3)]


def test_msmt17_list_names_a_missing_file(tmp_path, load):
    root = msmt(tmp_path / "data")
    (root / "train/0001/0001_001_15_0303noon_0008_1.jpg").unlink()
    with pytest.raises(UserError, match=r"list_train.txt: 1 of its 2 files .*0001_001_15_0303noon"):
        load(root)


@pytest.mark.parametrize("line", ["0000/0000_000_01_0303morning_0008_0.jpg", "0000/photo.jpg 0", "a b c"])
def test_msmt17_line_that_says_nothing(tmp_path, load, line):
    root = msmt(tmp_path / "data")
    (root / "list_val.txt").write_text(line)
    with pytest.raises(UserError, match="list_val.txt, line 1: found"):
        load(root)


CUHK = "bounding_box_train/0001_c1_1.png", "query/0002_c1_1.png", "bounding_box_test/0002_c2_6.png"


@pytest.mark.parametrize("wrapper", ["", "cuhk03-np/"])
def test_cuhk_variants(tmp_path, load, wrapper):
    root = put(tmp_path / "data", *(f"{wrapper}labeled/{name}" for name in CUHK))
    put(root, *(f"{wrapper}detected/{name}" for name in CUHK), f"{wrapper}detected/bounding_box_train/0003_c2_1.png")
    assert len(load(root).train) == 1 and load(root).name == "cuhk03np"
    assert people(load(root, variant="detected").train) == [(1, 1), (3, 2)]
    with pytest.raises(UserError, match="variant 'drawn'; expected 'labeled' or 'detected'"):
        load(root, variant="drawn")


def test_cuhk_variant_folder_itself_or_missing(tmp_path, load):
    root = put(tmp_path / "data", *(f"detected/{name}" for name in CUHK))
    assert load(root / "detected").name == "cuhk03np"
    with pytest.raises(UserError, match="labeled does not exist; found detected"):
        load(root)


def test_folder_of_identities(tmp_path, load):
    root = put(tmp_path / "mine", "anna/x_c12_3.jpg", "anna/y.jpg", "0/z_c2.png", "notes.txt")
    data = load(root)
    assert data.name == "mine"
    assert people(data.train) == [(1, 2), (2, 12), (2, 1)]  # named folders: 1, 2, ... in the order of the names
    assert any("not evaluated" in note for note in data.notes)
    assert any("1 names without a camera" in note for note in data.notes)
    with pytest.raises(UserError, match="no query; found 0, anna, notes.txt"):
        load(root, splits=["query", "gallery"])


def test_folder_numbers_start_at_0(tmp_path, load):
    root = put(tmp_path / "mine", "train/0/a.jpg", "train/11/b.jpg")
    put(root, "query/5/c.jpg", "gallery/5/d_c2.jpg", "gallery/-1/e.jpg")
    data = load(root)
    assert people(data.train) == [(1, 1), (12, 1)]
    assert people(data.query) == [(6, 1)] and people(data.gallery) == [(-1, 1), (6, 2)]


def test_folder_names_that_are_the_same_number_stay_apart(tmp_path, load):
    assert load(put(tmp_path / "mine", "1/a.jpg", "01/b.jpg")).num_classes == 2


def test_splits_without_identity_folders_are_not_taken_for_identities(tmp_path, load):
    with pytest.raises(UserError, match="gallery, query, train hold images, but no folders"):
        load(put(tmp_path / "mine", "train/a.jpg", "query/b.jpg", "gallery/c.jpg"))


def test_folder_with_query_but_no_gallery(tmp_path, load):
    with pytest.raises(UserError, match="no gallery"):
        load(put(tmp_path / "mine", "train/0/a.jpg", "query/5/c.jpg"))


PREPARED = (
    "train/0002/0002_c1s1_000451_03.jpg",
    "val/0002/0002_c6s1_000551_01.jpg",
    "query/0005/0005_c11s1_000001_00.jpg",
    "gallery/-1/-1_c1s1_000401_03.jpg",
    "gallery/0000/0000_c1s1_000151_01.jpg",
    "gallery/0005/0005_c2s1_000001_00.jpg",
    "multi-query/0005/0005_c11s2_000001_00.jpg",
    "multi-query/0005/0005_c2s2_000001_00.jpg",
)


@pytest.mark.parametrize("wrapper", ["", "pytorch/"])
def test_prepared(tmp_path, load, wrapper):
    root = put(tmp_path / "data", *(wrapper + name for name in PREPARED))
    data = load(root)
    assert data.name == "data"
    assert people(data.train) == [(2, 1), (2, 6)]  # train and val together
    assert people(data.query) == [(5, 11)]
    assert people(data.gallery) == [(-1, 1), (0, 1), (5, 2)]
    assert people(data.multi_query) == [(5, 11)]
    put(root, wrapper + "train_all/0009/0009_c1_f0046182.jpg")
    assert people(load(root).train) == [(9, 1)]  # train_all alone


def test_prepared_msmt17_starts_at_person_0(tmp_path, load):
    names = "0000/0000_000_01_0303morning_0008_0.jpg", "0001/0001_001_15_0303noon_0008_1.jpg"
    splits = "train", "query", "gallery"
    data = load(put(tmp_path / "data", *(f"{split}/{name}" for split in splits for name in names)))
    assert people(data.train) == people(data.gallery) == [(1, 1), (2, 15)]


def test_prepared_with_a_named_folder(tmp_path, load):
    root = put(tmp_path / "data", *PREPARED, "train/anna/0002_c1s1_000451_03.jpg")
    with pytest.raises(UserError, match="anna: the folder's name is not a number"):
        load(root)


def test_every_kind_of_the_configuration_has_a_reader():
    assert {"auto", *layouts._READERS} == {"auto", *layouts._WRAPPERS} == set(get_args(DatasetName))


@pytest.mark.parametrize(
    ("query", "gallery", "reason"),
    [
        ([], [], "0 query and 0 gallery images; scores need some of each: add the folders"),
        ([(1, 1)], [(1, 1), (2, 1)], "all query and gallery images are of one camera"),
        ([(1, 1)], [(1, 1), (2, 2)], "none of the 1 queries has an image of the same person by another camera"),
        ([(1, 1)], [(2, 2), (0, 2), (-1, 2)], "none of the 1 queries has an image of the same person"),
        ([(1, 1), (3, 1)], [(1, 2)], ""),
    ],
)
def test_what_cannot_be_scored_says_why(query, gallery, reason):
    sides = [tuple(Record(Path(f"{i}.jpg"), *one) for i, one in enumerate(side)) for side in (query, gallery)]
    found = ReidData("own", Path(), (), *sides).why_no_scores()
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_the_home_of_nobody_is_one_line():
    with pytest.raises(UserError, match="data root ~nobody-of-that-name/market begins with ~ and no user of that name"):
        load_reid("~nobody-of-that-name/market")


def test_wrong_root(tmp_path, load):
    put(tmp_path, "here.txt", "data/readme.txt")
    with pytest.raises(UserError, match="nowhere does not exist; found data, here.txt in"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="here.txt is a file"):
        load(tmp_path / "here.txt")
    with pytest.raises(UserError, match="data: no known data set; found readme.txt; expected Market-1501"):
        load(tmp_path / "data")
    with pytest.raises(UserError, match="not a dukemtmc data set; found readme.txt; expected bounding_box_train"):
        load(tmp_path / "data", "dukemtmc")
    with pytest.raises(UserError, match="kind 'market'.*expected one of auto, market1501"):
        load(tmp_path / "data", "market")


def test_names_decide_not_the_folder_around_them(tmp_path, load):
    data = load(put(tmp_path / "data", *(f"DukeMTMC-reID/{name}" for name in MARKET)))
    assert data.name == "market1501" and data.root == tmp_path / "data/DukeMTMC-reID"


def test_several_data_sets_in_one_folder(tmp_path, load):
    folders = "DukeMTMC-reID", "Market-1501"
    root = put(tmp_path / "data", *(f"{folder}/{name}" for folder in folders for name in MARKET))
    with pytest.raises(UserError, match="several data sets in it, Market-1501, DukeMTMC-reID"):
        load(root)


def test_missing_and_empty_splits(tmp_path, load):
    root = put(tmp_path / "data", *(name for name in MARKET if not name.startswith("query")))
    with pytest.raises(UserError, match="query does not exist; found bounding_box_test, bounding_box_train, gt_bbox"):
        load(root)
    (root / "query").mkdir()
    with pytest.raises(UserError, match="the query split is empty"):
        load(root)


def test_camera_that_cannot_be_parsed(tmp_path, load):
    root = put(tmp_path / "data", *MARKET, "query/0001_camera1.jpg")
    with pytest.raises(UserError, match="0001_camera1.jpg: its name does not tell"):
        load(root)


def test_unreadable_images_are_left_out_and_named(tmp_path, load, caplog):
    root = put(tmp_path / "data", *MARKET)
    (root / "bounding_box_train/0002_c1s1_000451_03.jpg").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "dgfast"):
        data = load(root)
    assert people(data.train) == [(2, 6), (7, 2)]
    assert [r.message for r in caplog.records if "0002_c1s1_000451_03.jpg (the file is empty)" in r.message]
    assert "- 1 unreadable images left out" in data.summary()


def test_training_images_of_one_colour_are_left_out_and_named(tmp_path, load, caplog):
    root = put(tmp_path / "Market-1501", *MARKET)
    for name in ("bounding_box_train/0002_c1s1_000451_03.jpg", "query/0001_c1s1_001051_00.jpg"):
        Image.new("RGB", (4, 8)).save(root / name)
    with caplog.at_level(logging.WARNING, "dgfast"):
        data = load(root)
    assert len(data.train) == 2 and len(data.query) == 2  # an evaluation needs every image
    assert "1 training images of one colour left out" in data.notes
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "1 training images show one colour alone" in warning and "0002_c1s1_000451_03.jpg" in warning


def test_split_without_a_sound_image(tmp_path, load):
    root = put(tmp_path / "data", *MARKET)
    for path in (root / "query").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="not one of the 2 query images can be read"):
        load(root)


def test_splits_are_checked_once_whichever_are_asked_for(tmp_path, load, monkeypatch):
    root = put(tmp_path / "data", *MARKET)
    load(root, splits=["train"])
    load(root, splits=["query", "gallery"])
    assert len(list((tmp_path / "cache/dgfast").iterdir())) == 1
    monkeypatch.setattr("dgfast.data.datasets.check.read_image", lambda path: pytest.fail(f"{path} was opened again"))
    load(root)


def test_message_is_one_line(tmp_path, load):
    with pytest.raises(UserError) as raised:
        load(put(tmp_path / "data", "readme.txt"))
    assert "\n" not in str(raised.value)


def test_people_who_were_drawn_are_not_called_market1501(tmp_path):
    root = tmp_path / "drawn"
    generate(root, identities=2, images_per_camera=0.1, cameras_per_identity=(2, 2), distractors=1, size=(32, 32),
             workers=1, progress=False)  # fmt: skip
    assert load_reid(root, "market1501", progress=False).name == load_reid(root, progress=False).name == "pedestrians"
