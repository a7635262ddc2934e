"""Loading a re-identification data set: read its layout, check its images once, keep what is sound."""

import logging
from collections.abc import Collection
from pathlib import Path

from dgfast.data.datasets import layouts
from dgfast.data.datasets.check import check_images, default_cache_dir
from dgfast.data.records import Record, ReidData
from dgfast.errors import UserError

_log = logging.getLogger("dgfast")

KINDS = (*layouts.READERS, "auto")
SPLITS = ("train", "query", "gallery")


def load_reid(
    root: Path,
    kind: str = "auto",
    *,
    splits: Collection[str] = SPLITS,
    variant: str = "labeled",
    check: bool = True,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> ReidData:
    """Reads the splits of a data set, and checks that every image can be decoded.

    Kinds (`layouts` says how each is laid out): "market1501", "dukemtmc", "msmt17", "cuhk03np"; "folder": one folder of
    images per identity, all of them training images, or train/, query/ and gallery/ of such folders; "prepared": the
    same with numbers as folder names and Market-like or MSMT17 file names, as other code bases prepare it (train_all/,
    or train/ and val/); "auto" tells by what lies in the folder. Training images of identity -1 or 0 are left out,
    MSMT17's and "folder"'s numbers being shifted by one first.

    An identity with one training image is kept: its positive is the image itself.

    Args:
        root: the data set, or the folder that its archive was unpacked in.
        splits: which of "train", "query" and "gallery" to read; the others stay empty.
        variant: "labeled" or "detected", for CUHK03-NP alone.
        check: decode images that have not been decoded before and leave out what cannot be read, with a warning.
        cache_dir: where the result of the check is kept; None: `$XDG_CACHE_HOME/dgfast` or `~/.cache/dgfast`.
        workers: threads of the check; None: one per core.
        progress: show a bar on stderr during the check.

    Raises:
        UserError: the root or kind is wrong, a split is missing or empty, a name does not tell its camera, a list names
            a missing file.
        ValueError: an unknown split.
    """
    root = Path(root).expanduser()
    if kind not in KINDS:
        raise UserError(f"kind {kind!r} of data set; expected one of {', '.join(KINDS)}; pass one of them")
    if unknown := set(splits) - set(SPLITS):
        raise ValueError(f"splits {sorted(unknown)}; expected some of {SPLITS}")
    splits = [split for split in SPLITS if split in splits]
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
    if check:
        records = _leave_out_bad(layout.root, records, notes, cache_dir or default_cache_dir(), workers, progress)
    return ReidData(
        name=_folder_name(layout.root) if kind in ("folder", "prepared") else kind,
        root=layout.root,
        **{split: tuple(records.get(split, ())) for split in (*SPLITS, "multi_query")},
        notes=tuple(notes),
    )


def _folder_name(folder: Path) -> str:
    """What people call the data set: prepared ones lie in <data set>/pytorch."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "pytorch" else folder.name


def _leave_out_bad(
    root: Path, records: dict[str, list[Record]], notes: list[str], cache_dir: Path, workers: int | None, progress: bool
) -> dict[str, list[Record]]:
    paths = [record.path for found in records.values() for record in found]
    index = check_images(paths, cache_dir, root=root, workers=workers, progress=progress)
    if index.smallest and index.largest:
        sizes = [f"{height} x {width}" for height, width in (index.smallest, index.largest)]
        notes.append(f"image sizes (height x width): {' to '.join(sizes)}")
    if not index.bad:
        return records
    sound = {split: [record for record in found if record.path not in index.bad] for split, found in records.items()}
    for split, found in sound.items():
        if records[split] and not found:
            first = records[split][0].path
            raise UserError(
                f"{root}: not one of the {len(records[split])} {split} images can be read "
                f"({first}: {index.bad[first]}); expected sound image files; unpack the archive again"
            )
    notes.append(f"{len(index.bad)} unreadable images left out")
    return sound
