"""The data set: a folder in the layout of Market-1501, filled with pictures of synthetic pedestrians."""

import csv
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dgfast.errors import UserError
from dgfast.files import replacing

from .figure import build_figure
from .picture import Picture, World, make_world, take_picture
from .plan import (
    QUERY,
    SPLITS,
    STATED,
    Parameters,
    PlannedImage,
    check,
    count_images,
    identity_of,
    images_of,
    stray_image,
    swap_of,
)
from .swap import render_swap

VERSION = 1  # of the pictures: the same parameters and version give the same bytes
_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")  # of NumPy's matrix products
_FEW = 300  # with fewer images than this, starting processes takes longer than they save


@dataclass(frozen=True)
class Summary:
    """What `generate` has written."""

    out: Path
    """Folder of the data set."""
    identities: int
    """People of the training and the test splits."""
    train_identities: int
    """People of bounding_box_train."""
    test_identities: int
    """People of query and bounding_box_test."""
    train_images: int
    """Images in bounding_box_train."""
    query_images: int
    """Images in query."""
    gallery_images: int
    """Images in bounding_box_test, distractors and junk among them."""
    distractor_images: int
    """Images of people who are in no other split, labelled 0000."""
    junk_images: int
    """Images that show nobody, labelled -1."""
    swap_truths: int
    """True results of swaps in swap_truth."""

    @property
    def images(self) -> int:
        """Images of the three splits."""
        return self.train_images + self.query_images + self.gallery_images


def generate(
    out: Path,
    *,
    identities: int,
    seed: int = Parameters.seed,
    difficulty: float = Parameters.difficulty,
    test_identities: int | None = None,
    images_per_camera: float = Parameters.images_per_camera,
    cameras_per_identity: tuple[int, int] = Parameters.cameras_per_identity,
    distractors: int = Parameters.distractors,
    size: tuple[int, int] = Parameters.size,
    workers: int | None = None,
    masks: bool = Parameters.masks,
    swap_truth: int = Parameters.swap_truth,
    progress: bool = True,
) -> Summary:
    """Write a synthetic re-identification data set in the layout of Market-1501.

    The bytes of all files depend on the parameters alone, not on `workers`. Nothing is at `out` before all is written.

    Args:
        out: folder to make; must not exist or be empty.
        identities: number of people, train and test together, at least 2.
        seed: of everything random, at least 0.
        difficulty: 0 .. 1: how much the cameras differ in colour, blur and noise; 0.25 to 0.5 are the useful settings.
        test_identities: of the identities, those of query and gallery; None: half, rounded down.
        images_per_camera: mean number of images of a person by one camera (Poisson, at least 1), above 0, at most 100;
            test people have a query for each of their cameras on top.
        cameras_per_identity: lowest and highest number of cameras that see a person, 2 .. 6.
        distractors: images of people who are no query, labelled 0000; for every ten, one of background, labelled -1.
        size: (height, width) in pixels, 32 .. 2048.
        workers: processes; None: one per available core, or this one alone for few images.
        masks: also write masks/SPLIT/NAME.png, 255 where clothes are visible, else 0.
        swap_truth: number of swaps of clothes between test images whose truth is written into swap_truth/, with its
            mask; swap_truth/pairs.csv lists them. Needs two test identities.
        progress: show a progress bar on stderr.
    Returns:
        what was written.
    Raises:
        UserError: a value is out of range, or `out` is in the way.
        OSError: `out` cannot be written.
    """
    out = Path(out)
    parameters = Parameters(
        identities=identities,
        test_identities=identities // 2 if test_identities is None else test_identities,
        seed=seed,
        difficulty=float(difficulty),
        images_per_camera=float(images_per_camera),
        cameras_per_identity=cameras_per_identity,
        distractors=distractors,
        size=size,
        masks=masks,
        swap_truth=swap_truth,
    )
    _check(out, parameters, workers)
    people, strays = range(1, identities + 1), range(distractors + parameters.junk)
    counts = [count_images(parameters, person) for person in people]
    total = sum(counts) + len(strays) + swap_truth
    if workers is None:
        workers = 1 if total < _FEW else len(os.sched_getaffinity(0))

    with replacing(out.absolute()) as folder:  # absolute, because "." has no name that another could stand beside
        for split in SPLITS:
            (folder / split).mkdir(parents=True)
            if masks:
                (folder / "masks" / split).mkdir(parents=True)
        if swap_truth:
            (folder / "swap_truth").mkdir()
        tasks = [partial(_render_person, folder, parameters, person) for person in people]
        tasks += [partial(_render_stray, folder, parameters, index) for index in strays]
        tasks += [partial(_render_truth, folder, parameters, index) for index in range(swap_truth)]
        with tqdm(total=total, unit="image", desc=f"synthetic pedestrians -> {out}", disable=not progress) as bar:
            for written in _finish(tasks, workers):
                bar.update(written)
        if swap_truth:
            _write_pairs(folder, parameters)
        queries = len(list((folder / QUERY).iterdir()))
        train = sum(counts[: parameters.train_identities])
        summary = Summary(
            out=out,
            identities=identities,
            train_identities=parameters.train_identities,
            test_identities=parameters.test_identities,
            train_images=train,
            query_images=queries,
            gallery_images=sum(counts) - train - queries + len(strays),
            distractor_images=distractors,
            junk_images=parameters.junk,
            swap_truths=swap_truth,
        )
        described = {name: value for name, value in asdict(summary).items() if name != "out"}
        text = json.dumps({"generator": VERSION, "parameters": asdict(parameters), "counts": described}, indent=2)
        (folder / STATED).write_text(text + "\n")
    return summary


def _check(out: Path, parameters: Parameters, workers: int | None) -> None:
    check(parameters)
    if workers is not None and workers < 1:
        raise UserError(f"synthetic pedestrians: workers is {workers}, expected 1 or more; change it and run again")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; choose another folder or remove it first")


def _finish(tasks: Sequence[Callable[[], int]], workers: int) -> Iterator[int]:
    """Run the tasks, in this process or in `workers` new ones, and yield what each returns, in any order."""
    if workers == 1:
        for task in tasks:
            yield task()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        with _one_thread_each():  # the processes begin while their first tasks are submitted
            pending: set[Future[int]] = {pool.submit(task) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """New processes' matrix products take one thread: there is a worker for every core, and threads that wait for each
    other would take twice the time. The libraries read this when they are loaded, before a worker could set it."""
    kept = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker() -> None:
    """Let the first process alone answer Ctrl-C, end with it, and use one thread, as `_one_thread_each` says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A first process that is killed cannot end its workers; they would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _render_person(folder: Path, parameters: Parameters, person: int) -> int:
    """Write all images of a person; returns how many."""
    world = _world(parameters)
    figure = build_figure(identity_of(parameters.seed, person), world.pack)
    images = images_of(world, parameters, person)
    for image in images:
        _save(folder, image, take_picture(world, figure, image.shot, parameters.size), parameters.masks)
    return len(images)


def _render_stray(folder: Path, parameters: Parameters, index: int) -> int:
    """Write a distractor or a piece of junk; returns 1, the number of images."""
    world = _world(parameters)
    image, person = stray_image(world, parameters, index)
    figure = None if person is None else build_figure(identity_of(parameters.seed, person), world.pack)
    _save(folder, image, take_picture(world, figure, image.shot, parameters.size), parameters.masks)
    return 1


def _render_truth(folder: Path, parameters: Parameters, index: int) -> int:
    """Write the truth of a swap and its mask; returns 1, the number of swaps."""
    world = _world(parameters)
    swap = swap_of(world, parameters, index)
    picture = render_swap(world, swap.structure.shot, parameters.size, wearer=swap.wearer, owner=swap.owner)
    truth, mask = _truth_names(index)
    _save_png(folder / truth, picture.image[..., ::-1])
    _save_png(folder / mask, picture.mask)
    return 1


def _write_pairs(folder: Path, parameters: Parameters) -> None:
    """Write swap_truth/pairs.csv; its paths are relative to the data set's folder."""
    world = _world(parameters)
    with (folder / "swap_truth" / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("structure", "appearance", "truth", "mask"))
        for index in range(parameters.swap_truth):
            swap = swap_of(world, parameters, index)
            writer.writerow((swap.structure.path, swap.appearance.path, *_truth_names(index)))


def _world(parameters: Parameters) -> World:
    return make_world(parameters.seed, parameters.difficulty)


def _truth_names(index: int) -> tuple[str, str]:
    return f"swap_truth/{index:05d}.png", f"swap_truth/{index:05d}_mask.png"


def _save(folder: Path, image: PlannedImage, picture: Picture, masks: bool) -> None:
    (folder / image.path).write_bytes(picture.jpeg())
    if masks:
        _save_png(folder / "masks" / image.split / f"{image.stem}.png", picture.mask)


def _save_png(path: Path, pixels: np.ndarray) -> None:
    """Write [H, W] grey or [H, W, 3] BGR, uint8."""
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
