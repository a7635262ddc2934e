"""Crops real pedestrians from a public video into a folder per person: a smoke test of real photographs.

    python tools/crop_real_pedestrians.py --video auto --boxes tests/goldens/real_pedestrian_boxes.json --out DIR

The video is `vtest.avi` of Debian's package opencv-doc: one street, one fixed camera, about ten people. The boxes were
found automatically, and some tracks pass from one person to another, so a track is an identity only roughly. That is
good enough to see a model train, reconstruct and swap on photographs, but not to measure anything.
"""

import gzip
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import tyro
from tqdm import tqdm

from dgfast.errors import UserError
from dgfast.files import replacing

VIDEO = "vtest.avi"
PACKAGE_FOLDERS = (Path("/usr/share/doc/opencv-doc/examples"), Path("/usr/share/opencv4/samples"))
PACKAGE_HINT = "install it with `apt-get install opencv-doc` or pass --video PATH"
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Box:
    """One person in one frame."""

    track: str
    """Name of the track, which counts as the identity."""
    frame: int
    """Number of the frame, from 0."""
    x0: int
    """Left edge, pixels."""
    y0: int
    """Upper edge, pixels."""
    x1: int
    """Right edge, pixels; the first column that is not inside."""
    y1: int
    """Lower edge, pixels; the first row that is not inside."""


def read_boxes(path: Path) -> list[Box]:
    """The boxes in a file.

    Args:
        path: JSON file {"tracklets": {track: [[frame, x0, y0, x1, y1], ...]}}.
    Raises:
        UserError: it cannot be read, is no such file, or holds no box.
    """
    try:
        tracks = json.loads(path.read_text(encoding="utf-8"))["tracklets"]
        boxes = [Box(track, *map(int, row)) for track, rows in tracks.items() for row in rows]
    except OSError as error:
        raise UserError(
            f"--boxes {path}: {error.strerror}; expected the JSON file of boxes in tests/goldens"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"--boxes {path}: not a file of boxes ({error!r}); "
            'expected {"tracklets": {track: [[frame, x0, y0, x1, y1], ...]}}'
        ) from error
    if not boxes:
        raise UserError(f"--boxes {path}: no boxes; expected at least one track")
    return boxes


def find_video(folders: tuple[Path, ...] = PACKAGE_FOLDERS) -> Path:
    """Where Debian's package put the video, possibly compressed.

    Args:
        folders: where to look.
    Raises:
        UserError: it is in none of them.
    """
    for folder in folders:
        for path in sorted(folder.rglob(f"{VIDEO}*")):
            if path.name in (VIDEO, f"{VIDEO}.gz"):
                return path
    raise UserError(f"--video auto: no {VIDEO} below {' or '.join(map(str, folders))}; {PACKAGE_HINT}")


def crop(video: Path, boxes: list[Box], out: Path) -> int:
    """Write out/TRACK/TRACK_c1_FRAME.jpg for each box; nothing is left behind on failure.

    Args:
        video: .avi or .avi.gz.
        boxes: of this video.
        out: folder to make.
    Returns:
        the number of images.
    Raises:
        UserError: the video cannot be read, ends before the last box, a box is not inside its frame, or `out` exists.
    """
    if not video.is_file():
        raise UserError(f"--video {video}: no such file; {PACKAGE_HINT}")
    if out.exists():
        raise UserError(f"--out {out}: exists already; remove it or name another folder")
    with replacing(out) as images, tempfile.TemporaryDirectory() as scratch:
        if video.suffix == ".gz":
            packed, video = video, Path(scratch) / VIDEO
            with gzip.open(packed) as source, video.open("wb") as target:
                shutil.copyfileobj(source, target)
        images.mkdir()
        _crop_frames(video, boxes, images)
    return len(boxes)


def _crop_frames(video: Path, boxes: list[Box], folder: Path) -> None:
    wanted: dict[int, list[Box]] = defaultdict(list)
    for box in boxes:
        wanted[box.frame].append(box)
    last = max(wanted)
    capture = cv2.VideoCapture(str(video))
    try:
        for number in tqdm(range(last + 1), desc=f"cropping {len(boxes)} boxes", unit="frame"):
            good, frame = capture.read()
            if not good:
                raise UserError(
                    f"--video {video}: {number} frames can be read, the boxes need {last + 1}; "
                    f"expected {VIDEO} of opencv-doc; {PACKAGE_HINT}"
                )
            for box in wanted.get(number, ()):
                _write(frame, box, folder)
    finally:
        capture.release()


def _write(frame: np.ndarray, box: Box, folder: Path) -> None:
    height, width = frame.shape[:2]
    if not (0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height):
        raise UserError(
            f"--boxes: box {box.x0, box.y0, box.x1, box.y1} of track {box.track} is not inside frame {box.frame} "
            f"({width} x {height}); expected the boxes of this very video"
        )
    person = folder / box.track.zfill(4)
    person.mkdir(exist_ok=True)
    picture = frame[box.y0 : box.y1, box.x0 : box.x1]
    name = person / f"{person.name}_c1_{box.frame:06d}.jpg"
    if not cv2.imwrite(str(name), picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
        raise UserError(f"--out: cannot write {name}; is the disk full?")


def main(
    out: Annotated[Path, tyro.conf.arg(help="Folder to make; a folder per track.")],
    video: Annotated[
        str, tyro.conf.arg(help="The video, .avi or .avi.gz; auto looks where Debian installs it.")
    ] = "auto",
    boxes: Annotated[Path, tyro.conf.arg(help="JSON file of boxes.")] = Path(
        "tests/goldens/real_pedestrian_boxes.json"
    ),
) -> None:
    """Crop real pedestrians from a public video into a folder per person."""
    found = read_boxes(boxes)
    count = crop(find_video() if video == "auto" else Path(video), found, out)
    print(f"{count} images of {len({box.track for box in found})} tracks in {out}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
