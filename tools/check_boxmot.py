"""The exported file inside BoxMOT: are its vectors ours?

    python3 -m venv boxmot-env && boxmot-env/bin/pip install "boxmot[onnx]"
    python tools/check_boxmot.py --python boxmot-env/bin/python

Frames of a real street, with boxes of people in them, go to BoxMOT as its own trackers get them. It reads the file,
crops, resizes, normalises and embeds by its own code, in its own environment; dgfast is not there. Its vectors are
compared with those of dgfast's networks in PyTorch. A tracker of BoxMOT then follows the same boxes, embedding them
with the file. The video is `vtest.avi` of Debian's package opencv-doc. Where a cosine is below 0.999, the status is 1.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
VIDEO = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
BOXES = ROOT / "tests" / "goldens" / "real_pedestrian_boxes.json"
FRAMES = 24  # that have boxes, one after another
LEAST_COSINE = 0.999


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    python: Path
    """Python of an environment that has BoxMOT and onnxruntime."""
    model: Path | None = None
    """What `dgfast export --model` takes. Default: the small model that comes with dgfast."""
    video: Path = VIDEO
    """The street."""


def main() -> None:
    """Export, let BoxMOT embed and track, compare."""
    import torch
    import tyro

    import dgfast
    from dgfast.commands import export
    from dgfast.data.batches import normalise
    from dgfast.export import Embedder

    command = tyro.cli(Command, description=__doc__)
    model = dgfast.load(command.model)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        export.main(["--out", folder, *(["--model", str(command.model)] if command.model else [])])
        (file,) = place.glob("*.onnx")
        frames, boxes = street(command.video)
        np.savez(place / "street.npz", frames=frames, **{f"boxes{i}": found for i, found in enumerate(boxes)})
        subprocess.run([command.python, "-I", __file__, "--child", file, place / "street.npz"], check=True)
        theirs = np.load(place / "vectors.npy")
        print((place / "said.txt").read_text().strip())
    crops = [frame[y0:y1, x0:x1] for frame, found in zip(frames, boxes, strict=True) for x0, y0, x1, y1 in found]
    network = Embedder(model, mirror=False)
    with torch.inference_mode():
        same = network(normalise(torch.from_numpy(np.stack([bilinear(crop, model.image_size) for crop in crops]))))
        own = network(model.images([np.ascontiguousarray(crop[..., ::-1]) for crop in crops]))
    exact = model.embed([np.ascontiguousarray(crop[..., ::-1]) for crop in crops])
    print(f"{len(crops)} boxes in {len(frames)} frames; cosine of BoxMOT's vectors and dgfast's: least, mean")
    least = report("PyTorch, the same resizing (bilinear)", same, theirs)
    report("PyTorch, dgfast's resizing (bicubic, antialiased)", own, theirs)
    report("Model.embed, with mirror images", exact, theirs)
    if not least >= LEAST_COSINE:
        sys.exit(1)


def street(video: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Frames that hold people: [F, H, W, 3] uint8 BGR, and for each its boxes [N, 4]: x0, y0, x1, y1."""
    import cv2

    at: dict[int, list[list[int]]] = {}
    for rows in json.loads(BOXES.read_text())["tracklets"].values():
        for frame, *box in rows:
            at.setdefault(frame, []).append(box)
    wanted, frames = sorted(at)[:FRAMES], []
    capture = cv2.VideoCapture(str(video))
    for number in range(wanted[-1] + 1):
        good, frame = capture.read()
        if not good:
            sys.exit(f"{video} cannot be read; apt-get install opencv-doc, or pass --video")
        if number in wanted:
            frames.append(frame)
    return np.stack(frames), [np.array(at[number]) for number in wanted]


def bilinear(crop: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A crop [H, W, 3] uint8 BGR as trackers resize it, in RGB."""
    import cv2

    return cv2.cvtColor(cv2.resize(crop, size[::-1], interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)


def report(name: str, ours: "object", theirs: np.ndarray) -> float:
    """Print and return the least cosine."""
    ours = np.asarray(ours, np.float64)
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    print(f"  {name:<52}{cosine.min():.6f}  {cosine.mean():.6f}")
    return float(cosine.min())


def child(file: str, place: str) -> None:
    """In BoxMOT's environment: its vectors, then one of its trackers."""
    import boxmot
    from boxmot import BotSort
    from boxmot.reid.core import ReID

    held = np.load(place)
    frames = held["frames"]
    boxes = [held[f"boxes{i}"].astype(np.float32) for i in range(len(frames))]
    reid = ReID(file, device="cpu")
    vectors = [reid(frame, boxes=found) for frame, found in zip(frames, boxes, strict=True)]
    np.save(Path(place).with_name("vectors.npy"), np.concatenate(vectors))
    tracker = BotSort(reid_weights=Path(file), device="cpu")
    tracks: set[int] = set()
    for frame, found in zip(frames, boxes, strict=True):
        sure = np.tile(np.float32([0.9, 0]), (len(found), 1))  # confidence and class
        followed = tracker.update(np.concatenate([found, sure], 1), frame)
        tracks |= {int(row[4]) for row in followed}
    Path(place).with_name("said.txt").write_text(
        f"BoxMOT {boxmot.__version__} took {Path(file).name} for {reid.model.model_name},"
        f" {reid.model.input_shape[0]}x{reid.model.input_shape[1]}; its BotSort found {len(tracks)} tracks"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
