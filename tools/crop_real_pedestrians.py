"""Crops real pedestrians from a public video into a folder per person: a smoke test of real photographs.

    python tools/crop_real_pedestrians.py --video auto --boxes tests/goldens/real_pedestrian_boxes.json --out DIR

The video is `vtest.avi` of Debian's package opencv-doc: one street, one fixed camera, about ten people. The boxes were
found automatically, and some tracks pass from one person to another, so a track is an identity only roughly. That is
good enough to see a model train, reconstruct and swap on photographs, but not to measure anything.
"""

import gzip
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import tyro

from dgfast.data.video import Box, read_boxes, read_frames
from dgfast.errors import UserError
from dgfast.files import replacing

VIDEO = "vtest.avi"
PACKAGE_FOLDERS = (Path("/usr/share/doc/opencv-doc/examples"), Path("/usr/share/opencv4/samples"))
PACKAGE_HINT = "install it with `apt-get install opencv-doc` or pass --video PATH"
JPEG_QUALITY = 95


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
    hint = f"take {VIDEO} of opencv-doc; {PACKAGE_HINT}"
    for number, _, frame in read_frames(video, wanted, progress=f"cropping {len(boxes)} boxes", hint=hint):
        for box in wanted[number]:
            _write(frame, box, folder)


def _write(frame: np.ndarray, box: Box, folder: Path) -> None:
    if box.within(frame) != box or min(box.size) < 1:
        raise UserError(
            f"--boxes: box {box.x0, box.y0, box.x1, box.y1} of track {box.track} is not inside frame {box.frame} "
            f"({frame.shape[1]} x {frame.shape[0]}); expected the boxes of this very video"
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
