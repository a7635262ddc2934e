"""Loading a re-identification data set: read its layout, check its images once, keep what can be decoded."""

import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import get_args

from dgfast.config import DatasetName, Variant
from dgfast.data.datasets import layouts
from dgfast.data.datasets.check import check_images, default_cache_dir, some
from dgfast.data.records import Record, ReidData
from dgfast.errors import UserError
from dgfast.pedestrians.plan import STATED

BUILT_IN = "pedestrians"  # the name of the synthetic people that dgfast draws
_log = logging.getLogger("dgfast")

_SPLITS = ("train", "query", "gallery")


def load_reid(
    root: Path,
    kind: DatasetName = "auto",
    *,
    splits: Collection[str] = _SPLITS,
    variant: Variant = "labeled",
    progress: bool = True,
) -> ReidData:
    """Read the splits of a data set, and leave out, with a warning, every image that cannot be decoded.

    The kinds of data sets:
        "market1501", "dukemtmc", "msmt17", "cuhk03np": the published archives.
        "folder": one folder of images per identity, all of them training images; or train/, query/ and gallery/ with
            such folders.
        "prepared": the same with numbers as folder names and Market-like or MSMT17 file names, as other code bases
            prepare it: train_all/ (or train/ and val/), query/ and gallery/.
        "auto": whichever of these lies in the folder.

    Training images of identity -1 or 0 are left out (MSMT17's and "folder"'s numbers are shifted by one before). An
    identity with a single training image is kept: its positive is the image itself.

    Images are decoded once. What was found is kept in `check.default_cache_dir()`.

    Args:
        root: the data set, or the folder that its archive was unpacked in.
        kind: how it is laid out; see above.
        splits: which of "train", "query" and "gallery" to read; the others stay empty.
        variant: boxes of CUHK03-NP; other data sets have one variant.
        progress: show a bar on stderr while images are decoded.
    Returns:
        the data set.
    Raises:
        UserError: the root or kind is wrong, a split is missing or empty, a name does not tell its camera, a list names
            a missing file.
        ValueError: an unknown split.
    """
    try:
        root = Path(root).expanduser()
    except RuntimeError as error:
        raise UserError(f"data root {root} begins with ~ and no user of that name; expected a folder") from error
    if kind not in get_args(DatasetName):
        kinds = ", ".join(get_args(DatasetName))
        raise UserError(f"kind {kind!r} of data set; expected one of {kinds}; pass one of them")
    if unknown := set(splits) - set(_SPLITS):
        raise ValueError(f"splits {sorted(unknown)}; expected some of {_SPLITS}")
    splits = [split for split in _SPLITS if split in splits]
    if kind == "auto":
        kind, root = layouts.detect(root)
    layout = layouts.read(kind, root, splits, variant)
    records = layout.records
    for split, found in records.items():
        if not found and split in splits:
            raise UserError(
                f"{layout.root}: the {split} split is empty; expected images of at least one identity; unpack it again"
            )
    notes = list(layout.notes)
    for note in notes:
        _log.info("%s: %s", layout.root, note)
    if "multi_query" in records:
        asked = {(record.person, record.camera) for record in records["query"]}
        extra = records["multi_query"]
        records["multi_query"] = [record for record in extra if (record.person, record.camera) in asked]
    records = _leave_out_bad(layout.root, records, notes, progress)
    return ReidData(
        name=_name(kind, layout.root),
        root=layout.root,
        **{split: tuple(records.get(split, ())) for split in (*_SPLITS, "multi_query")},
        notes=tuple(notes),
    )


def _name(kind: str, folder: Path) -> str:
    """What people call the data set. Prepared ones lie in DATASET/pytorch. People whom dgfast drew lie in Market-1501's
    layout, and their scores must not be taken for those of Market-1501."""
    if (folder / STATED).is_file():
        return BUILT_IN
    if kind not in ("folder", "prepared"):
        return kind
    folder = folder.resolve()
    return folder.parent.name if folder.name == "pytorch" else folder.name


def _leave_out_bad(
    root: Path, records: dict[str, list[Record]], notes: list[str], progress: bool
) -> dict[str, list[Record]]:
    """The records whose images can be decoded; adds to `notes` what was found."""
    paths = [record.path for found in records.values() for record in found]
    checked = check_images(paths, root, default_cache_dir(), progress=progress)
    if checked.smallest and checked.largest:
        sizes = [f"{height} x {width}" for height, width in (checked.smallest, checked.largest)]
        notes.append(f"image sizes (height x width): {' to '.join(sizes)}")
    flat = [record.path for record in records.get("train", ()) if record.path in checked.flat]
    if flat:
        # A picture without any contrast has no structure. E_s divides by it, once in every layer, and from there the
        # gradients grow until nothing is finite. In query and gallery it stays: leaving it out would change the scores.
        named = some(os.path.relpath(path, root) for path in flat)
        _log.warning("%s: %d training images show one colour alone and are left out: %s", root, len(flat), named)
        notes.append(f"{len(flat)} training images of one colour left out")
    if not checked.bad and not flat:
        return records
    sound = {split: [record for record in found if record.path not in checked.bad] for split, found in records.items()}
    if flat:
        sound["train"] = [record for record in sound["train"] if record.path not in checked.flat]
    for split, found in sound.items():
        if records[split] and not found:
            first = records[split][0].path
            raise UserError(
                f"{root}: not one of the {len(records[split])} {split} images can be read "
                f"({first}: {checked.bad.get(first, 'one colour alone')}); expected sound image files; unpack the "
                "archive again"
            )
    if checked.bad:
        notes.append(f"{len(checked.bad)} unreadable images left out")
    return sound
