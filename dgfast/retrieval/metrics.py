"""How good a ranking is: CMC, mAP and mINP under the Market-1501 protocol, and the distances they are computed from.

Protocol (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015): for each query the gallery images
of the same identity in the same camera are ignored, and so is identity -1; identity 0 marks distractors, which are
ranked and never correct.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from dgfast import _rerank
from dgfast.data.records import DISTRACTOR, JUNK
from dgfast.errors import UserError

Array = np.ndarray | torch.Tensor
Labels = np.ndarray | torch.Tensor | Sequence[int]


@dataclass(frozen=True)
class RetrievalScores:
    """Scores of a ranking, averaged over the counted queries."""

    rank1: float
    """Share of queries whose first image is correct, 0 .. 1."""
    rank5: float
    """Share of queries with a correct match among the first 5 images, 0 .. 1."""
    rank10: float
    """Share of queries with a correct match among the first 10 images, 0 .. 1."""
    mAP: float
    """Mean average precision, 0 .. 1."""
    mINP: float
    """Mean inverse negative penalty, 0 .. 1: a query's correct matches by the rank, from 1, of the last of them.

    Source: Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", TPAMI 2022.
    """
    cmc: np.ndarray
    """[ranks]: share of queries with a correct match among the first 1, 2, ... images."""
    queries: int
    """Counted queries."""
    skipped: int
    """Queries without any correct match in the gallery, which are left out of every average."""


def cosine_distances(query: Array, gallery: Array) -> torch.Tensor:
    """1 - q.g for each query and gallery image.

    The features are taken as they are, not normalised: unit vectors give the cosine distance, and the test feature of
    DG-Net keeps the weight between its primary and fine-grained halves (docs/method.md, section 3).

    Args:
        query: [Q, D], float.
        gallery: [G, D], float, on the same device.
    Returns:
        [Q, G], of the features' type; smaller is nearer.
    Raises:
        UserError: the shapes do not fit.
    """
    query, gallery = torch.as_tensor(query), torch.as_tensor(gallery)
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"cosine_distances: features of shapes {list(query.shape)} and {list(gallery.shape)}; "
            "expected [Q, D] and [G, D]; extract both with the same model"
        )
    return torch.mm(query, gallery.t()).neg_().add_(1)


def multi_query(features: Array, persons: Labels, cameras: Labels) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """One query for each identity in each camera: the mean feature of all its images there.

    The mean is not normalised again, because scaling a query changes no ranking. Identities -1 and 0 make no query
    (docs/method.md, section 3).

    Args:
        features: [N, D], float.
        persons: [N] identities.
        cameras: [N] cameras.
    Returns:
        features [M, D], persons [M], cameras [M], sorted by identity, then camera.
    Raises:
        UserError: the lengths differ.
    """
    features, persons, cameras = torch.as_tensor(features), _labels(persons), _labels(cameras)
    if not len(features) == len(persons) == len(cameras):
        raise UserError(
            f"multi_query: {len(features)} features, {len(persons)} persons and {len(cameras)} cameras; "
            "expected one of each an image"
        )
    (kept,) = np.nonzero((persons != JUNK) & (persons != DISTRACTOR))
    groups, group_of = np.unique(np.stack([persons[kept], cameras[kept]], axis=1), axis=0, return_inverse=True)
    counts = np.bincount(group_of.ravel(), minlength=len(groups))
    sums = features.new_zeros((len(groups), features.shape[1]))
    index = torch.from_numpy(group_of.ravel()).to(features.device)
    sums.index_add_(0, index, features[torch.from_numpy(kept).to(features.device)])
    return sums / torch.from_numpy(counts).to(sums)[:, None], groups[:, 0], groups[:, 1]


AveragePrecision = Literal["mean", "trapezoid"]


def cmc_map(
    distances: Array,
    query_ids: Labels,
    query_cameras: Labels,
    gallery_ids: Labels,
    gallery_cameras: Labels,
    *,
    ap: AveragePrecision = "mean",
    ranks: int = 50,
) -> RetrievalScores:
    """CMC, mAP and mINP of a distance matrix under the Market-1501 protocol, which this file's first lines describe.

    Equal distances are ranked by gallery index, the lower first. Queries with no correct match in the gallery are
    skipped and counted as such.

    Args:
        distances: [Q, G], smaller is nearer; infinity ranks last, NaN is refused.
        query_ids: [Q] integers, identities.
        query_cameras: [Q] integers.
        gallery_ids: [G] integers, identities; -1 is ignored, 0 is never correct.
        gallery_cameras: [G] integers.
        ap: "mean" is the mean of the precision at each hit, as in most toolkits; "trapezoid" is the area under the
            precision-recall curve by trapezoids, as in the published numbers of DG-Net (docs/method.md, section 3).
        ranks: length of the CMC curve, at least 1.
    Raises:
        UserError: shapes do not fit, a distance is NaN, `ranks` < 1, or no query has a correct match.
    """
    _check_choice(ap, ranks)
    hits = RankedHits(query_ids, query_cameras, gallery_ids, gallery_cameras)
    matrix = _host_array(distances)
    if matrix.shape != (hits.queries, hits.gallery):
        raise UserError(
            f"cmc_map: distances of shape {list(matrix.shape)} for {hits.queries} query and {hits.gallery} "
            "gallery labels; expected [queries, gallery]"
        )
    hits.add(0, matrix)
    return hits.scores(ap=ap, ranks=ranks)


Pairs = tuple[np.ndarray, np.ndarray]  # gallery images, int32, and the query of each; sorted by query


class LabelledPairs:
    """What the protocol says of each query and gallery image: correct, ignored, or, which are most, wrong."""

    queries: int
    """Q."""
    gallery: int
    """G."""
    junk: np.ndarray
    """int32: gallery images that are ignored with every query."""

    def __init__(self, query_ids: Labels, query_cameras: Labels, gallery_ids: Labels, gallery_cameras: Labels):
        """The labels of the images.

        Args:
            query_ids: [Q] integers, identities.
            query_cameras: [Q] integers.
            gallery_ids: [G] integers, identities.
            gallery_cameras: [G] integers.
        Raises:
            UserError: the numbers of identities and cameras differ.
        """
        self._query = _Labelled("query", query_ids, query_cameras)
        self._gallery = _Labelled("gallery", gallery_ids, gallery_cameras)
        self.queries, self.gallery = len(self._query.ids), len(self._gallery.ids)
        # The gallery by identity: a query's own identity is one stretch of it.
        self._by_id = np.argsort(self._gallery.ids, kind="stable")
        sorted_ids = self._gallery.ids[self._by_id]
        self._begin = np.searchsorted(sorted_ids, self._query.ids, side="left")
        self._end = np.searchsorted(sorted_ids, self._query.ids, side="right")
        self.junk = np.flatnonzero(self._gallery.ids == JUNK).astype(np.int32)

    def of(self, first: int, stop: int) -> tuple[Pairs, Pairs]:
        """The pairs of some queries that are correct, and those that are ignored; none of queries that are not `known`.

        Args:
            first: the first of the queries.
            stop: the query behind the last.
        Returns:
            correct pairs; pairs of one camera that are ignored, without those of `junk`.
        """
        begin, count = self._begin[first:stop], (self._end - self._begin)[first:stop]
        queries = np.repeat(np.arange(first, stop), count)
        within = np.arange(len(queries)) - np.repeat(np.cumsum(count) - count, count)
        same = self._by_id[np.repeat(begin, count) + within].astype(np.int32)
        own_camera = self._gallery.cameras[same] == self._query.cameras[queries]
        known = self.known(queries)
        correct, ignored = known & ~own_camera, known & own_camera
        return (same[correct], queries[correct]), (same[ignored], queries[ignored])

    def known(self, queries: np.ndarray) -> np.ndarray:
        """Whether queries show somebody in particular; nothing is correct for the others, identities -1 and 0.

        Args:
            queries: numbers of queries.
        """
        ids = self._query.ids[queries]
        return (ids != JUNK) & (ids != DISTRACTOR)


class RankedHits:
    """Scores of distances that come in blocks of queries, as from `rerank_blocks`, so that [Q, G] is never held.

        hits = RankedHits(query_ids, query_cameras, gallery_ids, gallery_cameras)
        for first, distances in blocks:
            hits.add(first, distances)
        hits.scores(), hits.scores(ap="trapezoid")

    Protocol, ties and labels are those of `cmc_map`. What is kept is the rank of every correct match.
    """

    queries: int
    """Q."""
    gallery: int
    """G."""

    def __init__(self, query_ids: Labels, query_cameras: Labels, gallery_ids: Labels, gallery_cameras: Labels):
        """The labels of the images.

        Args:
            query_ids: [Q] integers, identities.
            query_cameras: [Q] integers.
            gallery_ids: [G] integers, identities.
            gallery_cameras: [G] integers.
        Raises:
            UserError: the numbers of identities and cameras differ.
        """
        self._pairs = LabelledPairs(query_ids, query_cameras, gallery_ids, gallery_cameras)
        self.queries, self.gallery = self._pairs.queries, self._pairs.gallery
        self._blocks: list[tuple[np.ndarray, np.ndarray]] = []  # the queries of hits and their ranks
        self._seen = np.zeros(self.queries, bool)

    def add(self, first: int, distances: Array) -> None:
        """Take the distances of some queries; each query once, in any order.

        Args:
            first: the first of the queries.
            distances: [queries, G], smaller is nearer.
        Raises:
            UserError: the shape does not fit, a query came before, or a distance is NaN.
        """
        matrix = _host_array(distances)
        if matrix.dtype not in (np.float32, np.float64):
            matrix = matrix.astype(np.float64)
        stop = first + len(matrix)
        if (
            matrix.ndim != 2
            or matrix.shape[1] != self.gallery
            or first < 0
            or stop > self.queries
            or self._seen[first:stop].any()
        ):
            raise UserError(
                f"RankedHits.add: distances of shape {list(matrix.shape)} from query {first} on, of {self.queries} "
                f"queries and {self.gallery} gallery images; expected [queries, gallery], and each query once"
            )
        (hits, hit_queries), (ignored, ignored_queries) = self._pairs.of(first, stop)
        ranks = np.empty(len(hits), np.int64)
        correct_rows = _offsets(hit_queries, first, stop)
        ignored_rows = _offsets(ignored_queries, first, stop)
        bad = _rerank.cpu.hit_ranks(
            np.ascontiguousarray(matrix), correct_rows, hits, ignored_rows, ignored, self._pairs.junk, ranks
        )
        if bad >= 0:
            raise UserError(
                f"cmc_map: the distances of query {first + bad} hold NaN; expected numbers; "
                "look for NaN in the features"
            )
        order = np.lexsort((ranks, hit_queries))
        self._blocks.append((hit_queries[order], ranks[order]))
        self._seen[first:stop] = True

    def scores(self, *, ap: AveragePrecision = "mean", ranks: int = 50) -> RetrievalScores:
        """The scores over the queries taken so far.

        Args:
            ap: as in `cmc_map`.
            ranks: as in `cmc_map`.
        Raises:
            UserError: `ranks` < 1, or no query has a correct match.
        """
        _check_choice(ap, ranks)
        queries, hit_ranks = (np.concatenate([b[i] for b in self._blocks] or [np.empty(0, np.int64)]) for i in (0, 1))
        hits = np.bincount(queries, minlength=self.queries)
        counted = hits > 0
        seen = int(self._seen.sum())
        if not counted.any():
            raise UserError(
                f"cmc_map: none of the {seen} queries has a correct match among {self.gallery} gallery "
                "images; expected the same identity in another camera; check identities and cameras"
            )
        starts = np.flatnonzero(np.diff(queries, prepend=-1))  # each query's hits stand together
        found = hits[queries[starts]]
        # 0 for a query's best hit, 1 for the next, ...
        place = np.arange(len(queries)) - np.repeat(starts, found)
        precision = (place + 1) / (hit_ranks + 1)
        if ap == "trapezoid":
            before = np.divide(place, hit_ranks, out=np.ones(len(place)), where=hit_ranks > 0)
            precision = (before + precision) / 2
        sums = np.bincount(queries, weights=precision, minlength=self.queries)
        first, last = hit_ranks[starts], hit_ranks[starts + found - 1]
        return RetrievalScores(
            rank1=float(np.mean(first < 1)),
            rank5=float(np.mean(first < 5)),
            rank10=float(np.mean(first < 10)),
            mAP=float(np.mean(sums[counted] / hits[counted])),
            mINP=float(np.mean(found / (last + 1))),
            cmc=np.cumsum(np.bincount(first[first < ranks], minlength=ranks)) / len(first),
            queries=len(first),
            skipped=seen - len(first),
        )


def _check_choice(ap: str, ranks: int) -> None:
    if ap not in ("mean", "trapezoid"):
        raise UserError(f'cmc_map: ap is {ap!r}; expected "mean" or "trapezoid"')
    if ranks < 1:
        raise UserError(f"cmc_map: ranks is {ranks}; expected 1 or more")


def _offsets(queries: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Where each query's entries begin in a list that is sorted by query."""
    return np.searchsorted(queries, np.arange(first, stop + 1))


class _Labelled:
    """Identities and cameras of one side, of equal length."""

    def __init__(self, side: str, ids: Labels, cameras: Labels):
        self.ids, self.cameras = _labels(ids), _labels(cameras)
        if len(self.ids) != len(self.cameras):
            raise UserError(
                f"cmc_map: {len(self.ids)} {side} identities and {len(self.cameras)} {side} cameras; "
                "expected one of each an image"
            )


def _labels(values: Labels) -> np.ndarray:
    return _host_array(values).ravel()


def _host_array(values: Array | Sequence[int]) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16, and float16 sorts slowly.
        values = (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    return np.asarray(values)
