"""The cropping tool, on a small video made here."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

TOOL = Path(__file__).parents[1] / "tools" / "crop_real_pedestrians.py"


@pytest.fixture
def video(tmp_path):
    """Ten frames of 64 x 48 whose grey value is 20 times their number."""
    path = tmp_path / "street.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(10):
        writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
    writer.release()
    return path


def run(tmp_path, video, tracklets):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"tracklets": tracklets}))
    command = [sys.executable, TOOL, "--video", video, "--boxes", boxes, "--out", tmp_path / "out"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("packed", [False, True])
def test_crops_the_boxes_of_the_right_frames(tmp_path, video, packed):
    if packed:
        video = video.with_name("street.avi.gz")
        video.write_bytes(gzip.compress(video.with_suffix("").read_bytes()))
    before = set(tmp_path.iterdir()) | {tmp_path / "boxes.json", tmp_path / "out"}
    done = run(tmp_path, video, {"1": [[0, 0, 0, 10, 20], [7, 5, 6, 25, 40]], "12": [[7, 44, 8, 64, 48]]})
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    names = ["0001/0001_c1_000000.jpg", "0001/0001_c1_000007.jpg", "0012/0012_c1_000007.jpg"]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.jpg")) == names
    pictures = [cv2.imread(str(out / name)) for name in names]
    assert [p.shape[:2] for p in pictures] == [(20, 10), (34, 20), (40, 20)]
    assert [round(float(p.mean())) for p in pictures] == pytest.approx([0, 140, 140], abs=3)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("tracklets", "message"),
    [
        ({"1": [[30, 0, 0, 10, 20]]}, "10 frames can be read, the boxes need 31"),
        ({"1": [[3, 0, 0, 65, 20]]}, "is not inside frame 3 (64 x 48)"),
        ({"1": [[3, 0, 0]]}, "not a file of boxes"),
        ({}, "no boxes"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, video, tracklets, message):
    done = run(tmp_path, video, tracklets)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"street.avi", "boxes.json"}


def test_a_missing_video_names_the_package(tmp_path):
    done = run(tmp_path, tmp_path / "none.avi", {"1": [[0, 0, 0, 1, 1]]})
    assert done.returncode == 2
    assert "apt-get install opencv-doc" in done.stderr
