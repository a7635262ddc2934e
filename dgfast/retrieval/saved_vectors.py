"""Vectors of pictures in files: the numbers, an index of what each row shows, and which model made them.

NAME.npy            the vectors alone; NAME.json beside it says which model made them
NAME.safetensors    the same in one file: tensor "vectors", and the description among its metadata
NAME.csv            beside either: the index, a row for each vector
NAME.parquet        all of it in one table, for pandas, DuckDB, Spark and the like

The files of one set appear together, when all of them are complete.
"""

import csv
import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dgfast.data.datasets.layouts import told_by_name
from dgfast.data.video import Box
from dgfast.errors import CannotWrite, UserError, how_to_install, out_of_memory
from dgfast.files import replacing
from dgfast.models import DGNet

SUFFIXES = (".npy", ".safetensors", ".parquet")
FORMAT = "dgfast-vectors-1"
_KEY = "dgfast"  # of the description among the metadata of other formats
_OF_ALL = ("row", "path", "identity", "camera")  # columns of the index
_OF_VIDEOS = ("frame", "time", "track", "left", "top", "width", "height")
_EXPECTED = "expected what `dgfast embed` wrote: make it again"


@dataclass(frozen=True)
class Shown:
    """What one vector is of."""

    path: Path
    """The image, or the video."""
    identity: int | None = None
    """The identity that the name tells, as it is written there; None: it tells none."""
    camera: int | None = None
    """The camera, likewise."""
    box: Box | None = None
    """Where in a video; None for an image."""
    time: float | None = None
    """Of the frame of a video, seconds from the beginning; None for an image, or where the video does not say."""

    @classmethod
    def image(cls, path: Path) -> "Shown":
        """An image, with what its name tells.

        Args:
            path: its file.
        """
        return cls(path, *told_by_name(path))


@dataclass(frozen=True)
class Origin:
    """Which model made vectors, and how: only vectors of one origin can be compared."""

    model: str
    """Fingerprint of E_a's weights."""
    image_size: tuple[int, int]
    """Height and width that pictures were resized to, pixels."""
    alpha: float
    """Weight of the fine-grained cosine; a dot product divided by 1 + alpha is the score."""
    dgfast: str
    """Version of dgfast."""

    def differs_from(self, other: "Origin") -> str:
        """Why vectors of two origins cannot be compared, in words; "" where they can.

        Args:
            other: the other origin.
        """
        if self.model != other.model:
            return f"other weights ({self.model[:12]}, not {other.model[:12]})"
        if self.image_size != other.image_size:
            mine, others = ("x".join(map(str, origin.image_size)) for origin in (self, other))
            return f"images of {mine} pixels, not {others}"
        return f"alpha {self.alpha}, not {other.alpha}" if self.alpha != other.alpha else ""


@dataclass(frozen=True)
class Vectors:
    """Vectors, what they show, and where they come from."""

    values: np.ndarray
    """[N, D] float32; of a file it may be a view that is read when it is needed."""
    shown: Sequence[Shown]
    """What each of the N is of."""
    origin: Origin
    """What made them."""


def fingerprint(networks: DGNet) -> str:
    """What tells E_a from every other one: a checksum of its weights, whichever file they are from.

    Args:
        networks: on any device.
    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, value in sorted(networks.appearance.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(np.ascontiguousarray(value.cpu().numpy()).tobytes())
    return digest.hexdigest()


def check_name(path: Path, inputs: Sequence[Path]) -> None:
    """Find out before a long computation whether vectors can be written to a file of this name.

    Args:
        path: the file.
        inputs: files that must not be overwritten.
    Raises:
        UserError: another ending is needed, a library is missing, or something lies where a file of the set would.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out is {path}; expected a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if path.suffix == ".parquet":
        _require_pyarrow(path)
    kept = {file.resolve() for file in inputs}
    for file in _files(path):
        if file.resolve() in kept:
            raise UserError(f"--out {path} would overwrite {file}, which is read; expected another name")
        if file.is_dir() or (file.exists() and not path.exists()):
            raise UserError(f"--out {path} would overwrite {file}, which is of something else; expected another name")


def save(vectors: Vectors, path: Path) -> list[Path]:
    """Write vectors with their index: all files, or none.

    Paths of images below the folder of the file are written as seen from there, so that both can be moved together.

    Args:
        vectors: to be written.
        path: a file with one of the endings above; the others lie beside it.
    Returns:
        the files.
    Raises:
        CannotWrite: the system does not let it.
        UserError: `check_name` says why.
    """
    description = {"format": FORMAT, **asdict(vectors.origin), "vectors": len(vectors.values)}
    description["dimension"] = vectors.values.shape[1]
    files = _files(path)
    with ExitStack() as stack:
        partial = {file.suffix: stack.enter_context(replacing(file)) for file in files}
        if path.suffix == ".npy":
            with partial[".npy"].open("wb") as numbers:
                np.save(numbers, vectors.values)
            partial[".json"].write_text(json.dumps(description, indent=2) + "\n")
        elif path.suffix == ".safetensors":
            try:
                save_file({"vectors": vectors.values}, partial[path.suffix], {_KEY: json.dumps(description)})
            except SafetensorError as error:
                raise CannotWrite(path, OSError(str(error))) from error
        columns = _columns(vectors.shown, path.parent)
        if path.suffix == ".parquet":
            _write_parquet(vectors.values, columns, description, partial[path.suffix])
        else:
            # Names of files may hold bytes that are no text; they come out as they are.
            with partial[".csv"].open("w", encoding="utf-8", errors="surrogateescape", newline="") as index:
                writer = csv.writer(index, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
    return files


def load(path: Path) -> Vectors:
    """Read what `save` wrote. The numbers of a .npy file stay on the disk until they are needed.

    Args:
        path: of the vectors.
    Raises:
        UserError: a file of the set is missing, holds something else, or does not fit the others.
    """
    if path.suffix == ".parquet":
        values, table, description = _read_parquet(path)
    else:
        values, description = _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path)
        table = _read_csv(path.with_suffix(".csv"))
    origin = _origin(description, path)
    if values.dtype != np.float32 or values.ndim != 2 or 0 in values.shape:
        raise UserError(f"{path} holds {values.dtype} {list(values.shape)}; expected float32 [N, D]; {_EXPECTED}")
    if len(table) != len(values):
        raise UserError(f"{path} holds {len(values)} vectors and its index {len(table)} rows; {_EXPECTED}")
    try:
        shown = [_shown(row, path.parent) for row in table]
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"the index of {path} cannot be read ({error!r}); {_EXPECTED}") from error
    return Vectors(values, shown, origin)


def read_array(path: Path) -> np.ndarray:
    """A .npy file of numbers, which stay on the disk until they are needed.

    Args:
        path: the file.
    Raises:
        UserError: it cannot be read, or holds something else.
    """
    expected = "expected a NumPy file (.npy) of features [images, length], as numpy.save writes it"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        if out_of_memory(error):
            raise
        raise UserError(
            f"cannot read {path}: {error.strerror or 'it ends too early'}; {expected}; check the path"
        ) from error
    except (ValueError, EOFError) as error:  # NumPy's own message advises to allow pickles, which could run any code
        raise UserError(f"{path} is no file of plain numbers, or is cut short; {expected}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} holds several arrays; {expected}")
    if array.ndim == 0:
        raise UserError(f"{path} holds a single number; {expected}")
    return array


def _files(path: Path) -> list[Path]:
    others = {".npy": (".csv", ".json"), ".safetensors": (".csv",), ".parquet": ()}[path.suffix]
    return [path, *(path.with_suffix(suffix) for suffix in others)]


def _columns(shown: Sequence[Shown], folder: Path) -> dict[str, list[Any]]:
    """The index, a list for each column."""
    columns: dict[str, list[Any]] = {
        "row": list(range(len(shown))),
        "path": [_seen_from(one.path, folder) for one in shown],
        "identity": [one.identity for one in shown],
        "camera": [one.camera for one in shown],
    }
    boxes = [one.box for one in shown if one.box]
    if boxes:
        columns |= {
            "frame": [box.frame + 1 for box in boxes],  # counted as MOTChallenge does
            "time": [None if one.time is None else round(one.time, 6) for one in shown],
            "track": [box.track for box in boxes],
            "left": [box.x0 for box in boxes],
            "top": [box.y0 for box in boxes],
            "width": [box.x1 - box.x0 for box in boxes],
            "height": [box.y1 - box.y0 for box in boxes],
        }
    return columns


def _seen_from(path: Path, folder: Path) -> str:
    full, base = os.path.abspath(path), os.path.abspath(folder)
    return os.path.relpath(full, base) if full.startswith(base.rstrip(os.sep) + os.sep) else full


def _shown(row: dict[str, Any], folder: Path) -> Shown:
    identity, camera = (None if row[name] in ("", None) else int(row[name]) for name in ("identity", "camera"))
    path = folder / row["path"]
    if "frame" not in row:
        return Shown(path, identity, camera)
    left, top = int(row["left"]), int(row["top"])
    edges = left, top, left + int(row["width"]), top + int(row["height"])
    time = None if row["time"] in ("", None) else float(row["time"])
    return Shown(path, identity, camera, Box(str(row["track"]), int(row["frame"]) - 1, *edges), time)


def _origin(description: Any, path: Path) -> Origin:
    try:
        if description["format"] != FORMAT:
            raise ValueError(f"format {description['format']!r}")
        height, width = description["image_size"]
        alpha = float(description["alpha"])
        if not isinstance(description["model"], str) or not math.isfinite(alpha) or alpha < 0:
            raise ValueError("a value is out of range")
        return Origin(description["model"], (int(height), int(width)), alpha, str(description["dgfast"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} does not say which model made it ({error!r}); {_EXPECTED}") from error


def _read_npy(path: Path) -> tuple[np.ndarray, Any]:
    values, beside = read_array(path), path.with_suffix(".json")
    try:
        return values, json.loads(beside.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} does not say which model made it, as {beside} cannot be read ({error.strerror}); {_EXPECTED}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{beside} is no description of vectors; {_EXPECTED}") from error


def _read_safetensors(path: Path) -> tuple[np.ndarray, Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor("vectors"), json.loads((file.metadata() or {})[_KEY])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as vectors ({str(error)[:120]}); {_EXPECTED}") from error


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            columns = tuple(reader.fieldnames or ())
            if columns not in (_OF_ALL, _OF_ALL + _OF_VIDEOS):
                raise ValueError(f"columns {', '.join(columns)[:80]}")
            return list(reader)
    except OSError as error:
        raise UserError(f"{path}, the index, cannot be read ({error.strerror}); {_EXPECTED}") from error
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path} is no index of vectors ({error}); {_EXPECTED}") from error


def _require_pyarrow(path: Path) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"{path} needs pyarrow, which is not installed; expected it for Parquet: {how_to_install('parquet')}"
        )


def _write_parquet(values: np.ndarray, columns: dict[str, list[Any]], description: dict, partial: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"path": pa.string(), "track": pa.string(), "time": pa.float64()}
    try:
        arrays = {name: pa.array(column, kinds.get(name, pa.int64())) for name, column in columns.items()}
    except UnicodeEncodeError as error:
        raise UserError(
            f"the name {error.object!r} is no text, which Parquet cannot hold; expected another --out, such as .npy"
        ) from error
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    arrays["vector"] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    pq.write_table(pa.table(arrays).replace_schema_metadata({_KEY: json.dumps(description)}), partial)


def _read_parquet(path: Path) -> tuple[np.ndarray, list[dict[str, Any]], Any]:
    _require_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        description = json.loads((table.schema.metadata or {})[_KEY.encode()])
        length = table.schema.field("vector").type.list_size
        flat = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, length), table.drop_columns(["vector"]).to_pylist(), description
    except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as vectors ({str(error)[:120]}); {_EXPECTED}") from error
