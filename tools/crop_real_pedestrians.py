"""Crops real pedestrians from a public video into a folder per person: a smoke test of real photographs.

    python tools/crop_real_pedestrians.py --video auto --boxes tests/goldens/real_pedestrian_boxes.json --out DIR

The video is `vtest.avi` of Debian's package opencv-doc (one street, one fixed camera, about ten people). The boxes were
found automatically and some tracks switch person, so a track counts as an identity only roughly: good enough to see a
model train, reconstruct and swap on photographs, not to measure anything.
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
import tyro
from tqdm import tqdm

from dgfast.errors import UserError

VIDEO = "vtest.avi"
PACKAGE_FOLDERS = (Path("/usr/share/doc/opencv-doc/examples"), Path("/usr/share/opencv4/samples"))
PACKAGE_HINT = "install it with `apt-get install opencv-doc` or pass --video PATH"
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Box:
    """One person in one frame; pixels, the right and lower edges excluded."""

    track: str
    frame: int
    x0: int
    y0: int
    x1: int
    y1: int


def read_boxes(path: Path) -> list[Box]:
    """The boxes of a JSON file {"tracklets": {track: [[frame, x0, y0, x1, y1], ...]}}."""
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
    """Where the Debian package put the video, possibly compressed."""
    for folder in folders:
        for path in sorted(folder.rglob(f"{VIDEO}*")):
            if path.name in (VIDEO, f"{VIDEO}.gz"):
                return path
    raise UserError(f"--video auto: no {VIDEO} below {' or '.join(map(str, folders))}; {PACKAGE_HINT}")


def crop(video: Path, boxes: list[Box], out: Path) -> int:
    """Writes out/TRACK/TRACK_c1_FRAME.jpg for each box and returns how many; nothing is left behind on failure.

    Raises:
        UserError: the video cannot be read, ends before the last box, a box is not inside its frame, or `out` exists.
    """
    if not video.is_file():
        raise UserError(f"--video {video}: no such file; {PACKAGE_HINT}")
    if out.exists():
        raise UserError(f"--out {out}: exists already; remove it or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system.
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        if video.suffix == ".gz":
            packed, video = video, scratch / VIDEO
            with gzip.open(packed) as source, video.open("wb") as target:
                shutil.copyfileobj(source, target)
        images = scratch / "images"
        images.mkdir()
        _crop_frames(video, boxes, images)
        images.rename(out)
    finally:
        shutil.rmtree(scratch)
    return len(boxes)


def _crop_frames(video: Path, boxes: list[Box], folder: Path) -> None:
    wanted = defaultdict(list)
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


def _write(frame, box: Box, folder: Path) -> None:
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
