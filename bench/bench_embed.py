"""Vectors of people from the exported file and from PyTorch: images/s on the same cores, and mAP as a tracker would
have it.

    python bench/bench_embed.py                              images/s of the bundled model, all in one run
    python bench/bench_embed.py --data-root FOLDER           also mAP, with people of several heights in pixels

For mAP, pictures are brought to each height first (by area, as if the person stood farther away), then to the
network's size: by dgfast's own way (bicubic, antialiased), by that of trackers (OpenCV's bilinear, of BGR crops), or by
OpenCV's mean over areas, which trackers can be told to use.

The machine may be busy: the kinds take turns, round by round, and the ratio is the median of the rounds' ratios.
`pytest bench/bench_embed.py --benchmark` times one batch after comparing its vectors.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Threads that wait sleep, in torch as in onnxruntime: on a busy machine spinning ones take the cores from those that
# work, and torch's would lose more by it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

import dgfast
from dgfast.data import Record, load_reid
from dgfast.data.batches import normalise
from dgfast.data.image_files import find_images
from dgfast.export import Embedder, half, onnx_graph, quantised
from dgfast.inference import Model
from dgfast.retrieval import cmc_map
from dgfast.retrieval.metrics import cosine_distances

BATCH = 32
ROUNDS = 9
HEIGHTS = (128, 192, 256, 384)
CALIBRATION = 256  # pictures

Vectors = Callable[[np.ndarray], np.ndarray]  # [N, 3, H, W] float32, normalised -> [N, D]


def session(graph: bytes, threads: int) -> Vectors:
    """A graph in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    made = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda images: made.run(["features"], {"images": images})[0]


def pytorch(model: Model, mirror: bool) -> Vectors:
    network = Embedder(model, mirror).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def vectors(images: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(images)).numpy()

    return vectors


def graphs_of(model: Model, calibration: np.ndarray) -> dict[str, bytes]:
    """Every file that `dgfast export` writes of a model."""
    found = {}
    for suffix, mirror in (("", False), (", mirror", True)):
        single = onnx_graph(Embedder(model, mirror), model.image_size)
        graphs = {"fp32": single, "fp16": half(single), "int8": quantised(single, calibration)}
        found |= {f"ONNX {name}{suffix}": graph.SerializeToString() for name, graph in graphs.items()}
    return found


def kinds(model: Model, graphs: dict[str, bytes], threads: int) -> dict[str, Vectors]:
    """All that is compared; PyTorch's threads are set."""
    torch.set_num_threads(threads)
    found = {"PyTorch": pytorch(model, mirror=False), "PyTorch, mirror": pytorch(model, mirror=True)}
    return found | {name: session(graph, threads) for name, graph in graphs.items()}


def compare(found: dict[str, Vectors], images: np.ndarray) -> dict[str, float]:
    """Nothing is timed before its vectors have been compared with PyTorch's: least cosine of each kind."""
    least = {}
    for name, vectors in found.items():
        ours = found["PyTorch, mirror" if name.endswith("mirror") else "PyTorch"](images)
        least[name] = torch.cosine_similarity(torch.from_numpy(ours), torch.from_numpy(vectors(images))).min().item()
        assert least[name] > (0.98 if "int8" in name else 0.9999), (name, least[name])
    return least


def rates(found: dict[str, Vectors], images: np.ndarray) -> dict[str, dict[str, float]]:
    """Images/s of each kind, by the clock and by CPU time, and how many times as fast as PyTorch it is."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        for name, vectors in found.items():
            wall, cpu = time.perf_counter(), time.process_time()
            vectors(images)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    rows = {}
    for name, spent in seconds.items():
        base = seconds["PyTorch, mirror" if name.endswith("mirror") else "PyTorch"]
        rows[name] = {
            "images_per_second": len(images) / statistics.median(wall for wall, _ in spent),
            "images_per_cpu_second": len(images) / statistics.median(cpu for _, cpu in spent),
            "ratio": statistics.median(b[0] / s[0] for b, s in zip(base, spent, strict=True)),
            "cpu_ratio": statistics.median(b[1] / s[1] for b, s in zip(base, spent, strict=True)),
        }
    return rows


def crops(records: Sequence[Record], height: int) -> list[np.ndarray]:
    """BGR pictures of people who are so many pixels tall."""
    found = []
    for record in records:
        image = cv2.imread(str(record.path))
        width = round(image.shape[1] * height / image.shape[0])
        found.append(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    return found


def as_trackers(pictures: Sequence[np.ndarray], size: tuple[int, int], way: int = cv2.INTER_LINEAR) -> np.ndarray:
    """[N, 3, H, W]: resized by OpenCV, RGB, /255, ImageNet's mean and deviation, in float32."""
    small = [cv2.resize(picture, size[::-1], interpolation=way)[..., ::-1] for picture in pictures]
    images = np.stack(small).astype(np.float32) / 255
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return np.ascontiguousarray(((images - mean) / std).transpose(0, 3, 1, 2))


def as_dgfast(model: Model, pictures: Sequence[np.ndarray]) -> np.ndarray:
    return model.images([np.ascontiguousarray(picture[..., ::-1]) for picture in pictures]).contiguous().numpy()


def in_batches(vectors: Vectors, images: np.ndarray) -> np.ndarray:
    return np.concatenate([vectors(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])


def scores(model: Model, found: dict[str, Vectors], root: Path, heights: Sequence[int]) -> list[dict]:
    """mAP of each file after a tracker's resizing, percent; of fp32, which is PyTorch's, also after others."""
    data = load_reid(root, "market1501", splits=("query", "gallery"))
    splits = (data.query, data.gallery)
    labels = [np.array([getattr(r, name) for r in side]) for side in splits for name in ("person", "camera")]
    rows = []
    for height in heights:
        pictures = [crops(side, height) for side in splits]
        ways = {
            "bicubic": [as_dgfast(model, side) for side in pictures],
            "bilinear": [as_trackers(side, model.image_size) for side in pictures],
            "area": [as_trackers(side, model.image_size, cv2.INTER_AREA) for side in pictures],
        }
        for name, vectors in found.items():
            for way in ways if "fp32" in name else ["bilinear"]:
                query, gallery = (torch.from_numpy(in_batches(vectors, side)) for side in ways[way])
                result = cmc_map(cosine_distances(query, gallery), *labels)
                rows.append({"height": height, "kind": name, "resizing": way, "mAP": 100 * float(result.mAP)})
                print(f"{height:>5} {name:<22}{way:<10}{rows[-1]['mAP']:>7.2f}", flush=True)
    return rows


def noise(count: int, size: tuple[int, int]) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
    return normalise(torch.from_numpy(pixels)).contiguous().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="what `dgfast export --model` takes; default: the bundled model")
    parser.add_argument("--data-root", type=Path, help="folder in Market-1501's layout, for mAP")
    parser.add_argument("--calibrate", type=Path, help="pictures for int8; default: noise, good for times alone")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of either library")
    parser.add_argument("--heights", type=int, nargs="+", default=HEIGHTS, help="of the people, pixels")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    words = parser.parse_args()
    model = dgfast.load(words.model)
    images = noise(BATCH, model.image_size)
    calibration = images
    if words.calibrate:
        files = find_images([words.calibrate])
        calibration = model.images(files[:: -(-len(files) // CALIBRATION)]).contiguous().numpy()
        images = calibration[:BATCH]
    graphs = graphs_of(model, calibration)
    report: dict = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "batch": BATCH}
    report |= {"backbone": model.config.backbone, "size": model.image_size}
    report |= {"bytes": {name: len(graph) for name, graph in graphs.items()}, "rates": {}}
    for threads in words.threads:
        found = kinds(model, graphs, threads)
        report |= {"least_cosine": compare(found, images)}
        report["rates"][threads] = rates(found, images)
        print(f"{threads} threads: images/s, images per CPU second, times PyTorch by the clock, by CPU time")
        for name, row in report["rates"][threads].items():
            print(f"{name:<22}" + "".join(f"{value:>9.2f}" for value in row.values()), flush=True)
    if words.data_root:
        single = {name: session(graph, words.threads[0]) for name, graph in graphs.items()}
        report["mAP"] = scores(model, single, words.data_root, words.heights)
    if words.json:
        words.json.write_text(json.dumps(report, indent=1))


@pytest.fixture(scope="module")
def case() -> tuple[dict[str, Vectors], np.ndarray]:
    model = dgfast.load()
    images = noise(BATCH, model.image_size)
    graph = onnx_graph(Embedder(model, mirror=False), model.image_size).SerializeToString()
    return kinds(model, {"ONNX fp32": graph}, torch.get_num_threads()), images


@pytest.mark.parametrize("kind", ["PyTorch", "ONNX fp32"])
def test_embed(benchmark, case, kind):
    found, images = case
    compare(found, images)
    benchmark.pedantic(lambda: found[kind](images), rounds=5, warmup_rounds=1)


if __name__ == "__main__":
    main()
