"""Where the images of each kind of data set lie and what their names say. No image is opened here.

Market-like names number identities from 1; 0 is a distractor and -1 junk. MSMT17 and plain folders number them from 0,
so there every number is raised by one: otherwise 0 would be taken for a distractor.

MSMT17 numbers its training and test persons independently: the same number in both is not the same person.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from dgfast.config import DatasetName, Variant
from dgfast.data.records import DISTRACTOR, JUNK, Record
from dgfast.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

# Market-1501: 0002_c1s1_000451_03.jpg, -1_c3s2_...; DukeMTMC-reID: 0001_c2_f0046182.jpg; CUHK03-NP: 0003_c1_21.png
_MARKET_NAME = re.compile(r"(-?\d+)_c(\d+)")
_MSMT_NAME = re.compile(r"\d+_\d+_(\d+)_")  # 0000_000_01_0303morning_0008_0.jpg
_FOLDER_CAMERA = re.compile(r"_c(\d+)")

_MARKET_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
_MSMT_LISTS = {
    "train": ("list_train.txt", "list_val.txt"),
    "query": ("list_query.txt",),
    "gallery": ("list_gallery.txt",),
}
_MSMT_TEST_IMAGES = ("test", "mask_test_v2")  # of version 1 and of version 2
_MSMT_IMAGES = {"train": ("train", "mask_train_v2"), "query": _MSMT_TEST_IMAGES, "gallery": _MSMT_TEST_IMAGES}
_TRAINING_ALONE = "no query and no gallery: the model can be trained but not evaluated on this folder"
_FOLDER_SPLITS = ("train", "query", "gallery")
_PREPARED_FOLDERS = {"train": "train_all", "query": "query", "gallery": "gallery"}

# Folders that the published archives unpack to. The root may be this folder or the one around it.
_WRAPPERS: dict[DatasetName, tuple[str, ...]] = {
    "market1501": ("Market-1501-v15.09.15", "Market-1501", "market1501"),
    "dukemtmc": ("DukeMTMC-reID", "dukemtmc-reid"),
    "msmt17": ("MSMT17_V1", "MSMT17_V2", "MSMT17"),
    "cuhk03np": ("cuhk03-np", "CUHK03-NP"),
    "prepared": ("pytorch",),
    "folder": (),
}


@dataclass
class Layout:
    """What a reader found."""

    root: Path
    """The folder that it read."""
    records: dict[str, list[Record]] = field(default_factory=dict)
    """Split -> its records."""
    notes: list[str] = field(default_factory=list)
    """What it left out, a line each, for people."""


def detect(root: Path) -> tuple[DatasetName, Path]:
    """What kind of data set a folder holds, by the folders and lists in it and, where two kinds have the same, by the
    name of an image.

    Args:
        root: the folder of the data set, or the one around it.
    Returns:
        the kind, and the folder that the data set lies in.
    Raises:
        UserError: nothing known lies there, or several data sets do.
    """
    _require_folder(root, "a data set's folder")
    here = _kind_of(root)
    if here:
        return here, root
    inside: dict[DatasetName, tuple[DatasetName, Path]] = {}  # by the name of the folder, which the content may belie
    for named, wrappers in _WRAPPERS.items():
        for wrapper in wrappers:
            if (root / wrapper).is_dir() and (kind := _kind_of(root / wrapper)):
                inside.setdefault(named, (kind, root / wrapper))
    if len(inside) == 1:
        return next(iter(inside.values()))
    if inside:
        names = _some(folder.name for _, folder in inside.values())
        raise UserError(f"{root}: found several data sets in it, {names}; expected one; pass the folder of one of them")
    if _identity_folders(root):
        return "folder", root
    raise UserError(
        f"{root}: no known data set; found {_found(root)}; expected Market-1501, DukeMTMC-reID, MSMT17, CUHK03-NP, "
        "a folder prepared with train_all/, or one folder of images per identity; pass the folder that holds these"
    )


def read(kind: DatasetName, root: Path, splits: Collection[str], variant: Variant) -> Layout:
    """The records of a data set, each split in the order of the files' names (MSMT17: of its lists).

    Args:
        kind: any but "auto".
        root: the folder of the data set, or the one around it.
        splits: some of "train", "query" and "gallery".
        variant: boxes of CUHK03-NP; other data sets have one variant.
    Returns:
        the records of `splits`, and of "multi_query" if the data set has one and "query" is asked for.
    Raises:
        UserError: a folder, list or file is missing, or a name does not say its camera.
    """
    _require_folder(root, f"the folder of a {kind} data set")
    return _READERS[kind](root, splits, variant)


def _read_market(root: Path, splits: Collection[str], variant: Variant) -> Layout:
    return _read_market_folders(_unwrap(root, "market1501", _MARKET_FOLDERS.values()), splits)


def _read_duke(root: Path, splits: Collection[str], variant: Variant) -> Layout:
    return _read_market_folders(_unwrap(root, "dukemtmc", _MARKET_FOLDERS.values()), splits)


def _read_cuhk(root: Path, splits: Collection[str], variant: Variant) -> Layout:
    variants = get_args(Variant)
    if variant not in variants:
        expected = " or ".join(map(repr, variants))
        raise UserError(f"variant {variant!r}; expected {expected} (CUHK03-NP); pass one of them")
    base = _unwrap(root, "cuhk03np", (*variants, *_MARKET_FOLDERS.values()))
    if not any((base / folder).is_dir() for folder in _MARKET_FOLDERS.values()):
        base = base / variant
    _require_folder(base, f"the {variant} boxes of CUHK03-NP")
    return _read_market_folders(base, splits)


def _read_market_folders(base: Path, splits: Collection[str]) -> Layout:
    layout = Layout(base)
    tests = [split for split in ("query", "gallery") if (base / _MARKET_FOLDERS[split]).is_dir()]
    if "train" in splits and not tests:  # as `dgfast generate` writes it
        if len(splits) > 1:
            layout.notes.append(_TRAINING_ALONE)
        splits = ["train"]
    for split in splits:
        folder = base / _MARKET_FOLDERS[split]
        _require_folder(folder, f"the {split} images")
        layout.records[split] = [_market_record(path) for path in _images(folder)]
    if "query" in splits and (base / "gt_bbox").is_dir():
        layout.records["multi_query"] = [_market_record(path) for path in _images(base / "gt_bbox")]
    _drop_unknown(layout)
    return layout


def _read_msmt(root: Path, splits: Collection[str], variant: Variant) -> Layout:
    base = _unwrap(root, "msmt17", [name for lists in _MSMT_LISTS.values() for name in lists])
    layout = Layout(base)
    for split in splits:
        candidates = [base / name for name in _MSMT_IMAGES[split]]
        folder = next((candidate for candidate in candidates if candidate.is_dir()), candidates[0])
        _require_folder(folder, f"the {split} images ({' or '.join(_MSMT_IMAGES[split])})")
        layout.records[split] = [record for name in _MSMT_LISTS[split] for record in _msmt_list(base / name, folder)]
    return layout


def _msmt_list(list_file: Path, folder: Path) -> list[Record]:
    """The records of lines like `0000/0000_000_01_0303morning_0008_0.jpg 0`: a path in `folder`, whose third field is
    the camera, and the person."""
    if not list_file.is_file():
        raise UserError(
            f"{list_file} is missing; found {_found(list_file.parent)}; expected all lists of MSMT17; unpack them all"
        )
    records, missing = [], []
    for number, line in enumerate(_lines(list_file), start=1):
        if not line.strip():
            continue
        name, _, person = line.strip().rpartition(" ")
        camera = _MSMT_NAME.match(name.rpartition("/")[2])
        if not camera or not person.isdecimal():
            raise UserError(
                f"{list_file}, line {number}: found {line.strip()!r}; expected a line like "
                "'0000/0000_000_01_0303morning_0008_0.jpg 0', whose third field is the camera; unpack the list again"
            )
        path = folder / name.strip()
        records.append(Record(path, int(person) + 1, int(camera[1])))
        if not path.is_file():
            missing.append(name.strip())
    if missing:
        raise UserError(
            f"{list_file}: {len(missing)} of its {len(records)} files are not in {folder}: {_some(missing)}; "
            "expected every listed image; unpack the archive again"
        )
    return records


def _lines(file: Path) -> list[str]:
    """The lines of a list. Bytes that are no text stay as they are: a name on the disk may hold any."""
    return file.read_text("utf-8", errors="surrogateescape").splitlines()


def _read_prepared(root: Path, splits: Collection[str], variant: Variant) -> Layout:
    base = _unwrap(root, "prepared", ("train_all", "train", "query", "gallery"))
    layout = Layout(base)
    for split in splits:
        folders = [base / _PREPARED_FOLDERS[split]]
        if split == "train" and not folders[0].is_dir():
            # train_all is train and val together; val holds one image of each training identity.
            folders = [base / "train"] + [base / "val"] * (base / "val").is_dir()
        for folder in folders:
            _require_folder(folder, f"the {split} images, one folder per identity")
        layout.records[split] = [record for folder in folders for record in _prepared_split(folder)]
    if "query" in splits and (base / "multi-query").is_dir():
        layout.records["multi_query"] = _prepared_split(base / "multi-query")
    _drop_unknown(layout)
    return layout


def _prepared_split(folder: Path) -> list[Record]:
    records = []
    for identity in _identity_folders(folder):
        if not re.fullmatch(r"-?\d+", identity.name):
            raise UserError(
                f"{identity}: the folder's name is not a number; expected an identity such as 0002, 0000 or -1; "
                "rename it, or read the data set as kind 'folder'"
            )
        for path in _images(identity):
            person, market, msmt = int(identity.name), _MARKET_NAME.match(path.name), _MSMT_NAME.match(path.name)
            if market:
                records.append(Record(path, person, int(market[2])))
            elif msmt:
                records.append(Record(path, person + 1 if person >= 0 else person, int(msmt[1])))
            else:
                raise _no_camera(path, "0002_c1s1_000451_03.jpg or 0000_000_01_0303morning_0008_0.jpg")
    return records


def _read_folder(root: Path, splits: Collection[str], variant: Variant) -> Layout:
    layout = Layout(root)
    present = {split: root / split for split in _FOLDER_SPLITS if _identity_folders(root / split)}
    if not present:
        present = {"train": root}
        if (names := {path.name for path in _identity_folders(root)}) and names <= set(_FOLDER_SPLITS):
            raise UserError(
                f"{root}: {_some(sorted(names))} hold images, but no folders; expected one folder of images per"
                " identity in each; sort the images into such folders"
            )
    if "train" in splits and "train" in present and not {"query", "gallery"} & present.keys():
        # Training images alone suffice to train. If query and gallery alone are asked for, their absence is an error.
        if len(splits) > 1:
            layout.notes.append(_TRAINING_ALONE)
        splits = ["train"]
    person_of = _folder_persons({path.name for folder in present.values() for path in _identity_folders(folder)})
    without_camera = 0
    for split in splits:
        if split not in present:
            raise UserError(
                f"{root}: no {split}; found {_found(root)}; expected {split}/ with one folder of images per identity; "
                "add it, or pass another data set"
            )
        layout.records[split] = []
        for identity in _identity_folders(present[split]):
            for path in _images(identity):
                camera = _FOLDER_CAMERA.search(path.name)
                without_camera += camera is None
                layout.records[split].append(Record(path, person_of[identity.name], int(camera[1]) if camera else 1))
    if without_camera:
        layout.notes.append(f"{without_camera} names without a camera (_c<number>): taken for camera 1")
    _drop_unknown(layout)
    return layout


def _folder_persons(names: set[str]) -> dict[str, int]:
    """Folder name -> person: the number plus one if all names are different numbers (-1 stays junk), else 1, 2, ... in
    the order of the names."""
    if all(re.fullmatch(r"-1|\d+", name) for name in names) and len({int(name) for name in names}) == len(names):
        return {name: int(name) + 1 if int(name) >= 0 else JUNK for name in names}
    return {name: place for place, name in enumerate(sorted(names), start=1)}


_READERS: dict[DatasetName, Callable[[Path, Collection[str], Variant], Layout]] = {
    "market1501": _read_market,
    "dukemtmc": _read_duke,
    "msmt17": _read_msmt,
    "cuhk03np": _read_cuhk,
    "prepared": _read_prepared,
    "folder": _read_folder,
}


def _kind_of(folder: Path) -> DatasetName | None:
    """The kind of the data set that lies in this very folder; None: there is none, or a folder per identity."""
    entries = {entry.name for entry in os.scandir(folder)}
    if entries & {name for lists in _MSMT_LISTS.values() for name in lists}:
        return "msmt17"
    if entries & {"bounding_box_train", "bounding_box_test"}:
        names = [_first_image(folder / name) for name in _MARKET_FOLDERS.values()]
        name = next((name for name in names if name), "")
        if re.match(r"-?\d+_c\d+_f\d+", name):
            return "dukemtmc"
        return "cuhk03np" if re.match(r"-?\d+_c\d+_\d+\.", name) else "market1501"
    if any((folder / variant / "bounding_box_train").is_dir() for variant in get_args(Variant)):
        return "cuhk03np"
    if entries & {"train_all", "multi-query"}:
        return "prepared"
    splits = [folder / name for name in _FOLDER_SPLITS if _identity_folders(folder / name)]
    if splits:
        identity = _identity_folders(splits[0])[0]
        name = _first_image(identity)
        known = _MARKET_NAME.match(name) or _MSMT_NAME.match(name)
        return "prepared" if known and re.fullmatch(r"-?\d+", identity.name) else "folder"
    return None


def _unwrap(root: Path, kind: DatasetName, marks: Iterable[str]) -> Path:
    """`root`, or the archive's folder inside it, whichever holds one of `marks`."""
    marks = list(marks)
    for folder in (root, *(root / wrapper for wrapper in _WRAPPERS[kind])):
        if any((folder / mark).exists() for mark in marks):
            return folder
    raise UserError(
        f"{root}: not a {kind} data set; found {_found(root)}; expected {_some(marks)}; pass the folder that holds them"
    )


def told_by_name(path: Path) -> tuple[int | None, int | None]:
    """The identity and the camera that a file's name tells, as the data sets write them; None: it does not.

    Args:
        path: 0002_c1s1_000451_03.jpg, 0000_000_01_0303morning_0008_0.jpg, or any_c7.jpg, which tells a camera only.
    """
    if match := _MARKET_NAME.match(path.name):
        return int(match[1]), int(match[2])
    if match := _MSMT_NAME.match(path.name):
        return int(path.name.partition("_")[0]), int(match[1])
    match = _FOLDER_CAMERA.search(path.stem)
    return None, int(match[1]) if match else None


def _market_record(path: Path) -> Record:
    match = _MARKET_NAME.match(path.name)
    if not match:
        raise _no_camera(path, "0002_c1s1_000451_03.jpg or 0001_c2_f0046182.jpg")
    return Record(path, int(match[1]), int(match[2]))


def _no_camera(path: Path, example: str) -> UserError:
    return UserError(
        f"{path}: its name does not tell the person and the camera; expected a name like {example}; "
        "rename or remove the file, or read the data set as kind 'folder'"
    )


def _drop_unknown(layout: Layout) -> None:
    """Leave out junk and distractors outside the gallery: they can be neither trained on nor searched for."""
    for split, records in layout.records.items():
        if split == "gallery":
            continue
        dropped = Counter(record.person for record in records if record.person in (JUNK, DISTRACTOR))
        if dropped:
            layout.records[split] = [record for record in records if record.person not in dropped]
            counts = " and ".join(f"{count} of identity {person}" for person, count in sorted(dropped.items()))
            layout.notes.append(f"{split}: left out {counts} (junk and distractors)")


def _images(folder: Path) -> list[Path]:
    """The image files of a folder, by name; other files, such as Thumbs.db and the hidden ones of macOS, are none."""
    names = [
        entry.name
        for entry in os.scandir(folder)
        if not entry.name.startswith(".") and entry.name.lower().endswith(IMAGE_SUFFIXES)
    ]
    return [folder / name for name in sorted(names)]


def _first_image(folder: Path) -> str:
    """The name of the first image of a folder; "" if there is none."""
    return next((path.name for path in _images(folder)), "") if folder.is_dir() else ""


def _identity_folders(folder: Path) -> list[Path]:
    """Subfolders that hold images, by name."""
    if not folder.is_dir():
        return []
    inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    return [folder / name for name in inside if _first_image(folder / name)]


def _require_folder(folder: Path, purpose: str) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise UserError(f"{folder} is a file; expected {purpose}: a folder; pass the unpacked data set")
    parent = next(parent for parent in folder.absolute().parents if parent.is_dir())
    raise UserError(f"{folder} does not exist; found {_found(parent)} in {parent}; expected {purpose}; check the path")


def _found(folder: Path) -> str:
    """The first few entries of a folder, for a message."""
    return _some(sorted(entry.name for entry in os.scandir(folder)))


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    if not names:
        return "nothing"
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
