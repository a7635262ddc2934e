"""A data set of generated people in the layout of Market-1501: which pictures it holds, and how they are written.

generated.json        the settings, written first; the same ones go on with the folder, others are refused
bounding_box_train/   the pictures, each whole or not there
.progress.jsonl       the batches that are written, a line each, until all are
index.csv             written last: a row for each picture

Picture n is a function of the seed and n. Batches are cut at the same places however often the writing is stopped,
because sums over a batch are rounded by its size.
"""

import csv
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dgfast.data.batches import denormalise, normalise
from dgfast.data.records import Record, ReidData
from dgfast.errors import Interrupted, UserError
from dgfast.files import replacing, write_json, write_picture, write_text, writing
from dgfast.models import DGNet
from dgfast.models.structure import grey
from dgfast.ranges import flag
from dgfast.run_directory import LOCK, locked
from dgfast.training.loop import StopRequest

SETTINGS, PICTURES, INDEX, PROGRESS = "generated.json", "bounding_box_train", "index.csv", ".progress.jsonl"
COLUMNS = ("file", "identity", "camera", "body", "clothes", "confidence")
_WRITERS = 4  # threads

Judge = Callable[[Tensor, Sequence[int]], Tensor]
"""Pictures [N, 3, H, W], normalised, and the person whom each should show -> [N], how sure that is."""
_log = logging.getLogger("dgfast")


@dataclass(frozen=True)
class Planned:
    """One picture: who wears whose clothes."""

    number: int
    """Its place, from 0."""
    body: Record
    """Image that gives body, pose and scene."""
    clothes: Record
    """Image of another person, who gives the clothes and the identity."""

    @property
    def name(self) -> str:
        """Its file, named as in Market-1501: identity of the clothes, camera of the body, number."""
        return f"{self.clothes.person:04d}_c{self.body.camera}s1_{self.number:06d}_00.jpg"


class Plan:
    """Which pictures a data set of generated people holds; identities take turns, so that all get as many.

    Args:
        data: the photographs are its training images.
        seed: of the draws, at least 0.
    Raises:
        UserError: fewer than two identities.
    """

    def __init__(self, data: ReidData, seed: int):
        if data.num_classes < 2:
            raise UserError(f"{data.root}: one identity alone; expected at least two, who wear each other's clothes")
        self.data, self.seed = data, seed
        self._records = sorted(data.train, key=lambda record: record.person)  # stable: by name within a person

    def picture(self, number: int) -> Planned:
        """One picture.

        Args:
            number: from 0.
        """
        rng = np.random.default_rng([self.seed, number])
        start, count = self._places[self.data.identities[number % self.data.num_classes]]
        clothes = start + int(rng.integers(count))
        body = int(rng.integers(len(self._records) - count))  # among the images of all others
        return Planned(number, self._records[body + count if body >= start else body], self._records[clothes])

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        """Person -> first record, number of records."""
        found: dict[int, tuple[int, int]] = {}
        for place, record in enumerate(self._records):
            start, count = found.get(record.person, (place, 0))
            found[record.person] = start, count + 1
        return found


@dataclass(frozen=True)
class Generation:
    """A data set to write."""

    out: Path
    """Its folder."""
    plan: Plan
    """Its pictures."""
    images: int
    """How many are made."""
    batch: int
    """How many at a time."""
    least: float | None
    """Confidence that a picture needs to be kept; None keeps all."""
    described: Mapping[str, str]
    """Fingerprints of what else must be the same when it goes on, by the name of its flag: "model", "data_root"."""

    def begin(self) -> bool:
        """Make the folder, or find it begun with the same settings.

        Returns:
            whether all of it is there already.
        Raises:
            UserError: the folder holds something else, or was begun with other settings.
            CannotWrite: the folder cannot be made.
        """
        file = self.out / SETTINGS
        if file.is_file():
            self._compare(file)
            return (self.out / INDEX).is_file()
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UserError(f"{self.out} exists and is not an empty folder; choose another --out or remove it first")
        with replacing(self.out.absolute()) as folder:  # absolute: "." has no name that another could stand beside
            (folder / PICTURES).mkdir(parents=True)
            write_json(self._settings, folder / SETTINGS)
        return False

    def write(
        self,
        networks: DGNet,
        judge: Judge,
        loaded: Callable[[Sequence[Record], int], Iterable[tuple[Tensor, int]]],
        *,
        progress: bool,
    ) -> int:
        """Make and write all pictures that are not there yet, then the index.

        Args:
            networks: in eval mode.
            judge: how sure it is that a picture shows a person.
            loaded: (records, number) -> their images in batches of that number, as `data.evaluation_batches` gives
                them, on the networks' device.
            progress: show a bar on stderr.
        Returns:
            how many were made now.
        Raises:
            Interrupted: SIGINT or SIGTERM; the batch that was begun is finished.
            UserError: another process writes the folder, a photograph cannot be read, or a file cannot be written.
        """
        with locked(self.out, "written"), StopRequest().listening() as stop:
            sure = self._read_progress()
            there = self._made(sure)
            todo = [b for b in range(-(-self.images // self.batch)) if b not in sure]
            if there:
                _log.info("%s: going on after %d of %d pictures", self.out, there, self.images)
            bar = tqdm(
                initial=there,
                total=self.images,
                desc="generated people",
                unit="image",
                dynamic_ncols=True,
                disable=not progress,
            )
            batches = loaded([record for b in todo for record in self._photographs(b)], 2 * self.batch)
            with (
                bar,
                writing(self.out / PROGRESS),
                (self.out / PROGRESS).open("a") as file,
                ThreadPoolExecutor(_WRITERS) as pool,
            ):

                def note(number: int, writes: list[Future[None]]) -> None:
                    """Wait for a batch's files, and only then say that they are there."""
                    for written in writes:
                        written.result()
                    file.write(json.dumps({"batch": number, "confidence": sure[number]}) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                    bar.update(len(sure[number]))

                before: tuple[int, list[Future[None]]] | None = None  # is written while the next one is computed
                for number, (images, _) in zip(todo, batches, strict=True):
                    pictures, sure[number] = self._make(networks, judge, number, images)
                    planned = zip(self._of(number), pictures, sure[number], strict=True)
                    kept = [(pixels, self.out / PICTURES / one.name) for one, pixels, s in planned if self._keeps(s)]
                    writes = [pool.submit(write_picture, *each) for each in kept]
                    if before:
                        note(*before)
                    before = number, writes
                    if stop.signal:
                        break
                if before:
                    note(*before)
            made = self._made(sure)
            if made < self.images:
                raise Interrupted(
                    stop.signal, f"stopped after {made} of {self.images} pictures; the same command goes on"
                )
            self._write_index(sure)
            (self.out / PROGRESS).unlink()
            (self.out / LOCK).unlink(missing_ok=True)
            return made - there

    def kept(self) -> int:
        """How many pictures a finished data set holds."""
        with (self.out / INDEX).open(newline="", encoding="utf-8") as file:
            return sum(1 for _ in csv.reader(file)) - 1

    @torch.inference_mode()
    def _make(self, networks: DGNet, judge: Judge, number: int, images: Tensor) -> tuple[np.ndarray, list[float]]:
        """The pictures of a batch, [N, H, W, 3] uint8, and the confidence in each; of its bodies, then its clothes."""
        bodies, clothes = images.chunk(2)
        made = networks.dress(networks.structure(grey(bodies)), networks.look(clothes), bodies)
        pixels = denormalise(made).permute(0, 2, 3, 1)
        # What is judged are the rounded pixels, which others will read.
        sure = judge(normalise(pixels.contiguous()), [planned.clothes.person for planned in self._of(number)])
        return pixels.cpu().numpy(), [round(value, 4) for value in sure.tolist()]

    def _of(self, number: int) -> list[Planned]:
        """The pictures of a batch."""
        return [self.plan.picture(n) for n in range(number * self.batch, min((number + 1) * self.batch, self.images))]

    def _photographs(self, number: int) -> list[Record]:
        planned = self._of(number)
        return [picture.body for picture in planned] + [picture.clothes for picture in planned]

    def _keeps(self, confidence: float) -> bool:
        return self.least is None or confidence >= self.least

    def _made(self, sure: Mapping[int, list[float]]) -> int:
        return sum(map(len, sure.values()))

    @property
    def _settings(self) -> dict[str, Any]:
        own = {"images": self.images, "seed": self.plan.seed, "confidence": self.least, "batch_size": self.batch}
        return own | dict(self.described)

    def _compare(self, file: Path) -> None:
        """Refuse settings other than those that the folder was begun with."""
        try:
            begun = json.loads(file.read_text())
            found = {name: begun[name] for name in self._settings}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{file} cannot be read ({error}); expected what dgfast wrote there: choose another --out"
            ) from error
        for name, now in self._settings.items():
            if found[name] != now:
                short = name not in self.described  # the others are fingerprints
                named = f"{flag(name)} {found[name]}, now {now}" if short else f"another {flag(name)}"
                raise UserError(
                    f"{self.out} was begun with {named}; expected the same settings: pass those, or another --out"
                )

    def _read_progress(self) -> dict[int, list[float]]:
        """Batch -> confidences, of those that are written. The last line may be half a line, and goes."""
        file, sure = self.out / PROGRESS, dict[int, list[float]]()
        if not file.is_file():
            return sure
        lines = file.read_text().splitlines(keepends=True)
        sound = [line for line in lines if line.endswith("\n")]
        try:
            for line in map(json.loads, sound):
                sure[line["batch"]] = line["confidence"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{file} cannot be read ({error}); expected what dgfast wrote there: remove it, to begin anew"
            ) from error
        if len(sound) < len(lines):
            write_text("".join(sound), file)
        return {number: found for number, found in sure.items() if self._is_there(number, found)}

    def _is_there(self, number: int, sure: Sequence[float]) -> bool:
        """Whether nobody has removed a picture of the batch since."""
        files = (self.out / PICTURES / planned.name for planned in self._of(number))
        return all(file.is_file() for file, confidence in zip(files, sure, strict=True) if self._keeps(confidence))

    def _write_index(self, sure: Mapping[int, list[float]]) -> None:
        with (
            replacing(self.out / INDEX) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(COLUMNS)
            for number in sorted(sure):
                for planned, confidence in zip(self._of(number), sure[number], strict=True):
                    if self._keeps(confidence):
                        body, clothes = (
                            Path(os.path.relpath(record.path, self.plan.data.root)).as_posix()
                            for record in (planned.body, planned.clothes)
                        )
                        file_name = f"{PICTURES}/{planned.name}"
                        person, camera = planned.clothes.person, planned.body.camera
                        rows.writerow((file_name, person, camera, body, clothes, confidence))
