"""What a data set is: records, each of which is one image of a person, in splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

JUNK = -1  # a gallery image that is ignored in the evaluation
DISTRACTOR = 0  # a gallery image of nobody in the query set: always a wrong answer


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a person."""

    path: Path
    """Its file."""
    person: int
    """The identity, at least 1; in the gallery also `JUNK` or `DISTRACTOR`."""
    camera: int
    """The camera that took it, numbered as in the file's name."""


@dataclass(frozen=True)
class ReidData:
    """A data set with its splits, each in the order of the file names (MSMT17: of its lists)."""

    name: str
    """What people call it."""
    root: Path
    """The folder that its splits lie in."""
    train: tuple[Record, ...]
    """Images to train on."""
    query: tuple[Record, ...]
    """Images to search for."""
    gallery: tuple[Record, ...]
    """Images to search in."""
    multi_query: tuple[Record, ...] = ()
    """Further images of the queries' persons by the queries' cameras, where the data set has them."""
    notes: tuple[str, ...] = ()
    """What was left out or could not be read, one line each."""

    @cached_property
    def identities(self) -> tuple[int, ...]:
        """The training persons in ascending order."""
        return tuple(sorted({record.person for record in self.train}))

    @cached_property
    def class_of(self) -> dict[int, int]:
        """Training person -> class index 0 .. num_classes - 1."""
        return {person: index for index, person in enumerate(self.identities)}

    @property
    def num_classes(self) -> int:
        """How many persons there are to train on."""
        return len(self.identities)

    @cached_property
    def num_cameras(self) -> int:
        """How many different cameras occur in all splits together."""
        return len({record.camera for split in self._splits().values() for record in split})

    def why_no_scores(self) -> str:
        """Why no query can be scored, and what to add; "" where at least one can be."""
        if not self.query or not self.gallery:
            return (
                f"{len(self.query)} query and {len(self.gallery)} gallery images; scores need some of each: add the"
                " folders query/ and gallery/"
            )
        cameras: dict[int, set[int]] = {}
        for record in self.gallery:
            cameras.setdefault(record.person, set()).add(record.camera)
        if any(cameras.get(record.person, set()) - {record.camera} for record in self.query):
            return ""
        if len({record.camera for record in (*self.query, *self.gallery)}) == 1:
            return (
                "all query and gallery images are of one camera, and images of the query's own camera do not count: add"
                " _c<number> to the names of own images, with another number for each camera"
            )
        return (
            f"none of the {len(self.query)} queries has an image of the same person by another camera in the gallery:"
            " add such images, or give the same person the same folder or number in query and gallery"
        )

    def summary(self) -> str:
        """A table for people: images, identities and cameras of each split, then the notes."""
        lines = [
            f"{self.name} ({self.root})",
            f"{'split':<12}{'images':>8}{'identities':>12}{'cameras':>9}{'distractors':>13}{'junk':>7}",
        ]
        for name, records in self._splits().items():
            if not records:
                continue
            persons = {record.person for record in records} - {JUNK, DISTRACTOR}
            cameras = {record.camera for record in records}
            lines.append(
                f"{name:<12}{len(records):>8}{len(persons):>12}{len(cameras):>9}"
                f"{_count(records, DISTRACTOR):>13}{_count(records, JUNK):>7}"
            )
        return "\n".join(lines + [f"- {note}" for note in self.notes])

    def _splits(self) -> dict[str, tuple[Record, ...]]:
        return {"train": self.train, "query": self.query, "gallery": self.gallery, "multi-query": self.multi_query}


def _count(records: Sequence[Record], person: int) -> int:
    return sum(record.person == person for record in records)


def spread(records: Sequence[Record], number: int) -> list[Record]:
    """Choose some images, of as many identities as there are, evenly over the data set.

    Args:
        records: images.
        number: how many, at most.
    Returns:
        an even number of records.
    """
    of_person: dict[int, list[Record]] = {}
    for record in records:
        of_person.setdefault(record.person, []).append(record)
    firsts = [own[0] for own in of_person.values()]
    if len(firsts) >= number:
        return [firsts[i * len(firsts) // number] for i in range(number)]
    rounds = [r for turn in zip_longest(*of_person.values()) for r in turn if r is not None]
    return rounds[: min(number, len(rounds)) // 2 * 2]
