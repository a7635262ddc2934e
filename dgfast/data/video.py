"""People in a video, by the boxes that a tracker or a detector has found there."""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dgfast.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")
SMALLEST = 8  # pixels; of a person who is narrower or lower, no network sees anything

# The decoder would write its own complaints to stderr, beside the line that says what is wrong.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


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

    def within(self, frame: np.ndarray) -> "Box":
        """The part of the box that lies in its frame; where there is none, x1 <= x0 or y1 <= y0.

        Args:
            frame: [H, W, 3].
        """
        height, width = frame.shape[:2]
        return replace(self, x0=max(0, self.x0), y0=max(0, self.y0), x1=min(width, self.x1), y1=min(height, self.y1))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.y1 - self.y0, self.x1 - self.x0

    def __str__(self) -> str:
        return f"frame {self.frame + 1}, track {self.track}"


@dataclass(frozen=True)
class Crop:
    """A person cut out of a frame."""

    box: Box
    """Where; within the frame."""
    time: float
    """Of the frame, seconds from the beginning."""
    pixels: np.ndarray
    """[h, w, 3] uint8 RGB."""


def read_boxes(path: Path) -> list[Box]:
    """The boxes in a file.

    Args:
        path: rows frame,id,left,top,width,height,... as MOTChallenge has them and trackers write them (frames from 1;
            commas or spaces; what follows is not read; the first row may be a heading), or a .json file
            {"tracklets": {track: [[frame, x0, y0, x1, y1], ...]}}, with frames from 0.
    Raises:
        UserError: it cannot be read, is no such file, or holds no box.
    """
    expected = (
        '{"tracklets": {track: [[frame, x0, y0, x1, y1], ...]}}'
        if path.suffix.lower() == ".json"
        else "rows frame,id,left,top,width,height as trackers write them (MOTChallenge; frames from 1)"
    )
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            tracks = json.loads(text)["tracklets"]
            boxes = [Box(track, *map(int, row)) for track, rows in tracks.items() for row in rows]
        else:
            boxes = [box for number, line in enumerate(text.splitlines(), 1) for box in _row(number, line)]
        if any(box.frame < 0 for box in boxes):
            raise ValueError("a frame has a number below that of the first")
    except OSError as error:
        raise UserError(f"--boxes {path}: {error.strerror}; expected a file of boxes: {expected}") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"--boxes {path}: not a file of boxes ({str(error)[:120]!r}); expected {expected}") from error
    if not boxes:
        raise UserError(f"--boxes {path}: no boxes; expected {expected}")
    return boxes


def read_frames(
    video: Path, numbers: Collection[int], *, progress: str = "", hint: str = "pass the boxes of this very video"
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Frames of a video. It is decoded from its beginning, as seeking is exact in some formats only.

    Args:
        video: a file that OpenCV can read.
        numbers: of the wanted frames, from 0; at least one.
        progress: title of a progress bar on stderr, "" for none.
        hint: what to do where the video is not as long as that.
    Yields:
        number, time in seconds, [H, W, 3] uint8 in OpenCV's order, which is BGR.
    Raises:
        UserError: there is no such file, it is no video, or it ends before the last of the frames.
    """
    if not video.is_file():
        raise UserError(f"{video}: no such file; expected a video: {hint}")
    wanted, last = set(numbers), max(numbers)
    capture = cv2.VideoCapture(str(video))
    try:
        rate = capture.get(cv2.CAP_PROP_FPS)
        bar = tqdm(range(last + 1), progress, unit="frame", disable=None if progress else True, leave=False)
        for number in bar:
            # What nobody wants is decoded, but not turned into pixels.
            good, frame = capture.read() if number in wanted else (capture.grab(), None)
            if not good:
                raise UserError(
                    f"{video}: {number} frames can be read, the boxes need {last + 1}; expected a video with all frames"
                    f" of its boxes: {hint}"
                )
            if frame is not None:
                yield number, number / rate if rate > 0 else math.nan, frame
    finally:
        capture.release()


def crops(
    video: Path, boxes: Sequence[Box], left_out: list[Box] | None = None, *, progress: str = ""
) -> Iterator[Crop]:
    """The people of a video, frame by frame, and in a frame in the order of their boxes.

    Args:
        video: a file that OpenCV can read.
        boxes: of this video; what lies outside its frame is cut off.
        left_out: receives the boxes of which less than 8 pixels a side lie in their frame, and which are passed over.
        progress: title of a progress bar on stderr, "" for none.
    Raises:
        UserError: the video cannot be read, or ends before the last box.
    """
    of_frame: dict[int, list[Box]] = defaultdict(list)
    for box in boxes:
        of_frame[box.frame].append(box)
    for number, time, frame in read_frames(video, of_frame, progress=progress):
        for box in of_frame[number]:
            inside = box.within(frame)
            if min(inside.size) >= SMALLEST:
                pixels = frame[inside.y0 : inside.y1, inside.x0 : inside.x1, ::-1]
                yield Crop(inside, time, np.ascontiguousarray(pixels))
            elif left_out is not None:
                left_out.append(box)


def _row(number: int, line: str) -> list[Box]:
    """The box of a line; none of an empty one and of a heading."""
    cells = [cell.strip() for cell in re.split(r"[,;\s]+", line.strip())]
    if cells == [""] or (number == 1 and cells[0].lower() in ("frame", "frame_id", "frame_number")):
        return []
    try:
        frame, left, top, width, height = (float(cells[place]) for place in (0, 2, 3, 4, 5))
        track = cells[1] if not re.fullmatch(r"-?\d+\.0*", cells[1]) else cells[1].partition(".")[0]
        edges = [round(value) for value in (left, top, left + width, top + height)]
        return [Box(track, round(frame) - 1, *edges)]
    except (ValueError, IndexError, OverflowError):
        raise ValueError(f"line {number}: {line[:60]}") from None
