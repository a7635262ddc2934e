"""Who is taken for whom: pairs of identities, by how many queries of the one find the other first."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dgfast.data.records import DISTRACTOR, Record
from dgfast.retrieval.visualise import Answers

from .pictures import Picture, photograph

PAIRS = 6  # that are shown
IMAGES = 4  # of each of the two


@dataclass(frozen=True)
class Side:
    """One of two people who are mistaken for each other."""

    person: int
    """The identity."""
    pictures: tuple[tuple[Picture, Record], ...]
    """Photographs; first the one that was mistaken, or taken for the other."""


@dataclass(frozen=True)
class Confusion:
    """Two people who are mistaken for each other."""

    mistaken: int
    """Queries of either whose nearest image is one of the other."""
    queries: int
    """Queries of both together."""
    asked: Side
    """The one whose query is the first picture."""
    found: Side
    """The one whose image is nearest to it."""


@dataclass(frozen=True)
class Confusions:
    """What goes wrong in the first place of the rankings."""

    wrong: int
    """Queries whose nearest image is of somebody else."""
    strangers: int
    """Those of them whose nearest image is a distractor, of nobody in the query set."""
    queries: int
    """Queries that have a right image."""
    pairs: tuple[Confusion, ...]
    """The worst, the most mistaken first."""


def confusions(
    query: Sequence[Record],
    gallery: Sequence[Record],
    answers: Answers,
    distances: np.ndarray,
    image_size: tuple[int, int],
) -> Confusions:
    """Count who is taken for whom.

    Args:
        query: Q query images.
        gallery: G gallery images.
        answers: to the queries.
        distances: [Q, G], smaller is nearer.
        image_size: (height, width) of the networks' images, pixels.
    Raises:
        UserError: an image cannot be read.
    """
    mistakes: dict[tuple[int, int], list[tuple[float, int, int]]] = defaultdict(list)
    asked: Counter[int] = Counter()
    wrong = strangers = 0
    for index, record in enumerate(query):
        kept, right = answers.of(index)
        if not right.any():
            continue
        asked[record.person] += 1
        values = distances[index, kept]
        nearest = int(np.argmin(values))
        if right[nearest]:
            continue
        wrong += 1
        other = gallery[kept[nearest]].person
        if other == DISTRACTOR:
            strangers += 1
            continue
        lead = float(values[right].min() - values[nearest])  # how much nearer the wrong image is than the first right
        mistakes[min(record.person, other), max(record.person, other)].append((lead, index, int(kept[nearest])))

    def worst(pair: tuple[int, int]) -> tuple[float, ...]:
        return -len(mistakes[pair]), -max(lead for lead, _, _ in mistakes[pair]), *pair

    def side(first: Record) -> Side:
        own = [r for r in (*query, *gallery) if r.person == first.person and r != first]
        turns: Counter[int] = Counter({first.camera: 1})
        order: list[tuple[int, int, Record]] = []
        for record in own:  # other cameras first: they show how much a person changes
            order.append((turns[record.camera], len(order), record))
            turns[record.camera] += 1
        shown = [first, *(record for _, _, record in sorted(order, key=lambda entry: entry[:2]))][:IMAGES]
        return Side(first.person, tuple((photograph(record, image_size), record) for record in shown))

    pairs = []
    for pair in sorted(mistakes, key=worst)[:PAIRS]:
        _, index, match = max(mistakes[pair])
        queries = sum(asked[person] for person in pair)
        pairs.append(Confusion(len(mistakes[pair]), queries, side(query[index]), side(gallery[match])))
    return Confusions(wrong, strangers, sum(asked.values()), tuple(pairs))
