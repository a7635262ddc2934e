"""The data set: a folder in the layout of Market-1501 filled with pictures of synthetic pedestrians."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dgfast.errors import UserError

from .cameras import COUNT
from .figure import Figure, build_figure
from .identity import Identity, draw_identity
from .picture import Picture, Shot, World, draw_encounter, draw_shot, make_world, take_picture

VERSION = 1  # of the pictures: the same parameters and version give the same bytes
SPLITS = ("bounding_box_train", "query", "bounding_box_test")
_IDENTITY, _WALK, _STRAY = 1, 2, 3  # seed streams: [seed, stream, index]
_STRAY_PEOPLE = 10**6  # indices of the distractors' identities start here
_FEW = 300  # images below which starting processes costs more than it brings


@dataclass(frozen=True)
class Parameters:
    """What a data set is made from; see `generate`. size: (height, width)."""

    identities: int
    test_identities: int
    seed: int
    difficulty: float
    images_per_camera: float
    cameras_per_identity: tuple[int, int]
    distractors: int
    size: tuple[int, int]
    masks: bool
    swap_truth: int

    @property
    def train_identities(self) -> int:
        return self.identities - self.test_identities

    @property
    def junk(self) -> int:
        """Images labelled -1, which the protocol ignores: false detections."""
        return (self.distractors + 9) // 10


@dataclass(frozen=True)
class Summary:
    """What has been written to `out`: identities, images per folder (gallery includes distractors and junk), truths of
    swaps."""

    out: Path
    identities: int
    train_identities: int
    test_identities: int
    train_images: int
    query_images: int
    gallery_images: int
    distractor_images: int
    junk_images: int
    swap_truths: int

    @property
    def images(self) -> int:
        return self.train_images + self.query_images + self.gallery_images


@dataclass(frozen=True)
class Record:
    """One image to be: its folder, name without ending, and shot."""

    split: str
    stem: str
    shot: Shot

    @property
    def path(self) -> str:
        return f"{self.split}/{self.stem}.jpg"


def identity_of(seed: int, person: int) -> Identity:
    """The person with that number."""
    return draw_identity(np.random.default_rng([seed, _IDENTITY, person]))


def figure_of(world: World, person: int) -> Figure:
    return build_figure(identity_of(world.seed, person), world.pack)


@lru_cache(maxsize=1)
def world_of(seed: int, difficulty: float) -> World:
    """The world of a data set, kept for the process."""
    return make_world(seed, difficulty)


def _image_counts(rng: np.random.Generator, parameters: Parameters, is_test: bool) -> dict[int, int]:
    low, high = parameters.cameras_per_identity
    cameras = sorted(int(camera) for camera in rng.choice(COUNT, int(rng.integers(low, high + 1)), replace=False))
    images = {camera: max(1, int(rng.poisson(parameters.images_per_camera))) for camera in cameras}
    return {camera: count + is_test for camera, count in images.items()}  # a query on top


def count_images(parameters: Parameters, person: int) -> int:
    """How many images `records_of` will give, without drawing them."""
    rng = np.random.default_rng([parameters.seed, _WALK, person])
    return sum(_image_counts(rng, parameters, person > parameters.train_identities).values())


def records_of(world: World, parameters: Parameters, person: int) -> list[Record]:
    """All images of a person (1-based; the last `test_identities` are the test split's)."""
    rng = np.random.default_rng([parameters.seed, _WALK, person])
    is_test = person > parameters.train_identities
    found = []
    for index, count in _image_counts(rng, parameters, is_test).items():
        camera, sequence = world.cameras[index], int(rng.integers(1, 7))
        encounters = [draw_encounter(rng, camera)]
        if rng.random() < 0.3:  # the person comes back
            encounters.append(draw_encounter(rng, camera))
        frame = int(rng.integers(100, 90000))
        for number in range(count):
            shot = draw_shot(rng, encounters[number % len(encounters)], camera)
            frame += int(rng.integers(8, 40))
            box = int(rng.integers(1, 8))
            is_query = is_test and number == 0
            split = SPLITS[1] if is_query else SPLITS[2] if is_test else SPLITS[0]
            stem = f"{person:04d}_c{camera.number}s{sequence}_{frame:06d}_{0 if is_query else box:02d}"
            found.append(Record(split, stem, shot))
    return found


def _stray_record(world: World, parameters: Parameters, index: int) -> Record:
    """Distractor `index`, or, beyond the distractors, a piece of junk."""
    rng = np.random.default_rng([parameters.seed, _STRAY, index])
    camera = world.cameras[int(rng.integers(COUNT))]
    shot = draw_shot(rng, draw_encounter(rng, camera), camera)
    label = "0000" if index < parameters.distractors else "-1"
    stem = f"{label}_c{camera.number}s{int(rng.integers(1, 7))}_{index:06d}_{int(rng.integers(1, 8)):02d}"
    return Record(SPLITS[2], stem, shot)


def encode_png(path: Path, image: np.ndarray) -> None:
    """Writes [H, W] or RGB [H, W, 3] uint8 without loss."""
    path.write_bytes(cv2.imencode(".png", image if image.ndim == 2 else image[..., ::-1])[1].tobytes())


def _save(folder: Path, record: Record, picture: Picture, masks: bool) -> None:
    jpeg = cv2.imencode(".jpg", picture.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, picture.quality])[1]
    (folder / record.path).write_bytes(jpeg.tobytes())
    if masks:
        encode_png(folder / "masks" / record.split / f"{record.stem}.png", picture.mask)


def _render_person(folder: Path, parameters: Parameters, person: int) -> int:
    world = world_of(parameters.seed, parameters.difficulty)
    figure, records = figure_of(world, person), records_of(world, parameters, person)
    for record in records:
        _save(folder, record, take_picture(world, figure, record.shot, parameters.size), parameters.masks)
    return len(records)


def _render_stray(folder: Path, parameters: Parameters, index: int) -> int:
    world = world_of(parameters.seed, parameters.difficulty)
    record = _stray_record(world, parameters, index)
    figure = figure_of(world, _STRAY_PEOPLE + index // 3) if index < parameters.distractors else None
    _save(folder, record, take_picture(world, figure, record.shot, parameters.size), parameters.masks)
    return 1


def _check(out: Path, parameters: Parameters, workers: int | None) -> None:
    p, (low, high) = parameters, parameters.cameras_per_identity
    rules = (
        (p.identities >= 2, f"identities is {p.identities}, expected at least 2: one to train, one to test"),
        (
            0 <= p.test_identities <= p.identities,
            f"test_identities is {p.test_identities}, expected 0 to {p.identities}",
        ),
        (p.seed >= 0, f"seed is {p.seed}, expected 0 or more"),
        (0 <= p.difficulty <= 1, f"difficulty is {p.difficulty}, expected 0 (easy) to 1 (hard)"),
        (0 < p.images_per_camera <= 100, f"images_per_camera is {p.images_per_camera}, expected above 0, at most 100"),
        (2 <= low <= high <= COUNT, f"cameras_per_identity is {low, high}, expected 2 <= low <= high <= {COUNT}"),
        (0 <= p.distractors <= 500_000, f"distractors is {p.distractors}, expected 0 to 500000"),
        (
            all(32 <= side <= 2048 for side in p.size),
            f"size is {p.size}, expected (height, width) of 32 to 2048 pixels",
        ),
        (p.swap_truth >= 0, f"swap_truth is {p.swap_truth}, expected 0 or more"),
        (p.swap_truth == 0 or p.test_identities >= 2, f"swap_truth needs 2 test identities, found {p.test_identities}"),
        (workers is None or workers >= 1, f"workers is {workers}, expected 1 or more"),
    )
    for holds, complaint in rules:
        if not holds:
            raise UserError(f"synthetic pedestrians: {complaint}; change it and run again")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; choose another folder or remove it first")


def _finish(tasks: list[Callable[[], int]], workers: int) -> Iterator[int]:
    """Runs the tasks, in this process or in `workers` new ones; yields what each returns, in any order."""
    if workers == 1:
        for task in tasks:
            yield task()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        pending: set[Future[int]] = {pool.submit(task) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def generate(
    out: Path,
    *,
    identities: int,
    seed: int = 0,
    difficulty: float = 0.25,
    test_identities: int | None = None,
    images_per_camera: float = 3.0,
    cameras_per_identity: tuple[int, int] = (3, 6),
    distractors: int = 0,
    size: tuple[int, int] = (256, 128),
    workers: int | None = None,
    masks: bool = True,
    swap_truth: int = 0,
    progress: bool = True,
) -> Summary:
    """Writes a synthetic re-identification data set in the layout of Market-1501.

    The bytes of all files depend on the parameters alone, not on `workers`. Nothing is at `out` before all is written.

    Args:
        out: folder to make; must not exist or be empty.
        identities: number of people, train and test together, at least 2.
        seed: of everything random, >= 0.
        difficulty: 0..1, how much the cameras differ in colour, blur and noise; 0.25 to 0.5 are the useful settings.
        test_identities: of the identities, those of query and gallery; default half, rounded down.
        images_per_camera: mean number of images of a person by one camera (Poisson, at least 1); test people have a
            query for each of their cameras on top.
        cameras_per_identity: lowest and highest number of cameras that see a person, 2..6.
        distractors: images of people who are no query, labelled 0000; for every ten one of background, labelled -1.
        size: (height, width) in pixels.
        workers: processes; default all available cores.
        masks: also write `masks/<split>/<stem>.png`, 255 where clothes are visible.
        swap_truth: number of swaps of clothes between test images to write with their truth, see `swap`.
        progress: show a progress bar on stderr.

    Raises:
        UserError: a value is out of range, or `out` is in the way.
    """
    from .swap import render_truth, write_pairs  # it imports this module's records

    out = Path(out)
    parameters = Parameters(
        identities=identities,
        test_identities=identities // 2 if test_identities is None else test_identities,
        seed=seed,
        difficulty=float(difficulty),
        images_per_camera=float(images_per_camera),
        cameras_per_identity=tuple(cameras_per_identity),
        distractors=distractors,
        size=tuple(size),
        masks=masks,
        swap_truth=swap_truth,
    )
    _check(out, parameters, workers)
    people = range(1, identities + 1)
    counts = [count_images(parameters, person) for person in people]
    total = sum(counts) + distractors + parameters.junk + swap_truth
    if workers is None:
        workers = 1 if total < _FEW else max(1, len(os.sched_getaffinity(0)))

    folder = out.with_name(f"{out.name}.partial-{os.getpid()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        for split in SPLITS:
            (folder / split).mkdir(parents=True)
            if masks:
                (folder / "masks" / split).mkdir(parents=True)
        if swap_truth:
            (folder / "swap_truth").mkdir()
        tasks = [partial(_render_person, folder, parameters, person) for person in people]
        tasks += [partial(_render_stray, folder, parameters, index) for index in range(distractors + parameters.junk)]
        tasks += [partial(render_truth, folder, parameters, index) for index in range(swap_truth)]
        with tqdm(total=total, unit="image", desc=f"synthetic pedestrians -> {out}", disable=not progress) as bar:
            for written in _finish(tasks, workers):
                bar.update(written)
        if swap_truth:
            write_pairs(folder, parameters)
        queries = len(list((folder / SPLITS[1]).iterdir()))
        train = sum(counts[: parameters.train_identities])
        summary = Summary(
            out=out,
            identities=identities,
            train_identities=parameters.train_identities,
            test_identities=parameters.test_identities,
            train_images=train,
            query_images=queries,
            gallery_images=sum(counts) - train - queries + distractors + parameters.junk,
            distractor_images=distractors,
            junk_images=parameters.junk,
            swap_truths=swap_truth,
        )
        described = {name: value for name, value in asdict(summary).items() if name != "out"}
        text = json.dumps({"generator": VERSION, "parameters": asdict(parameters), "counts": described}, indent=2)
        (folder / "synthetic.json").write_text(text + "\n")
        os.replace(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return summary
