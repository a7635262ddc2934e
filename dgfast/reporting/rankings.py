"""Queries with their nearest gallery images, before and after re-ranking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dgfast.data.records import Record
from dgfast.retrieval.visualise import Answers

from .pictures import Picture, photograph

TOP = 10  # gallery images of a query
EVENLY, HARDEST = 5, 3  # queries that are shown: spread over all of them, and those whose first right image comes last


@dataclass(frozen=True)
class Answer:
    """A gallery image at its place."""

    picture: Picture
    """The photograph."""
    record: Record
    """Whom it shows, and who took it."""
    right: bool
    """Whether it is the query's person, seen by another camera."""


@dataclass(frozen=True)
class Ranked:
    """The answers to a query in one order."""

    place: int
    """Of the first right image, from 1."""
    nearest: tuple[Answer, ...]
    """The first images."""


@dataclass(frozen=True)
class Query:
    """A query and its answers."""

    picture: Picture
    """The photograph."""
    record: Record
    """Whom it shows, and who took it."""
    number: int
    """Its place among the queries, from 1."""
    hard: bool
    """Shown because few are harder, not because it was its turn."""
    before: Ranked
    """By the distance of the features."""
    after: Ranked | None
    """Re-ranked; None where that was not possible."""


def first_places(answers: Answers, distances: np.ndarray) -> np.ndarray:
    """The place of each query's first right image.

    Args:
        answers: to the queries.
        distances: [Q, G], smaller is nearer.
    Returns:
        [Q] int64, from 1; 0 for queries that have no right image.
    """
    places = np.zeros(len(distances), np.int64)
    for index, row in enumerate(distances):
        kept, right = answers.of(index)
        if right.any():
            values = row[kept]
            nearest = np.flatnonzero(right)[np.argmin(values[right])]  # of equal ones the lower index, as in a ranking
            places[index] = 1 + (values < values[nearest]).sum() + (values[:nearest] == values[nearest]).sum()
    return places


def choose(places: np.ndarray) -> dict[int, bool]:
    """Choose the queries to show.

    Args:
        places: [Q], from `first_places`.
    Returns:
        query -> whether it is shown because it is hard; first those that are not.
    """
    counted = np.flatnonzero(places)
    if len(counted) == 0:
        return {}
    evenly = counted[np.unique(np.linspace(0, len(counted) - 1, EVENLY).round().astype(int))]
    hardest = [index for index in counted[np.argsort(-places[counted], kind="stable")] if places[index] > 1]
    hard = [int(index) for index in hardest if index not in evenly][:HARDEST]
    return {int(index): False for index in evenly} | dict.fromkeys(hard, True)


def ranked_queries(
    query: Sequence[Record],
    gallery: Sequence[Record],
    answers: Answers,
    distances: np.ndarray,
    reranked: Mapping[int, np.ndarray],
    image_size: tuple[int, int],
) -> list[Query]:
    """The queries to show.

    Args:
        query: Q query images.
        gallery: G gallery images.
        answers: to the queries.
        distances: [Q, G], smaller is nearer.
        reranked: query -> its re-ranked distances [G], for those of `choose`; or nothing.
        image_size: (height, width) of the networks' images, pixels.
    Raises:
        UserError: an image cannot be read.
    """

    def ranked(index: int, row: np.ndarray) -> Ranked:
        kept, right = answers.of(index)
        order = np.argsort(row[kept], kind="stable")
        nearest = (
            Answer(photograph(gallery[kept[at]], image_size), gallery[kept[at]], bool(right[at])) for at in order[:TOP]
        )
        return Ranked(1 + int(np.argmax(right[order])), tuple(nearest))

    return [
        Query(
            photograph(query[index], image_size),
            query[index],
            index + 1,
            hard,
            ranked(index, distances[index]),
            ranked(index, reranked[index]) if index in reranked else None,
        )
        for index, hard in choose(first_places(answers, distances)).items()
    ]
