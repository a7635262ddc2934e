"""How good a ranking is: CMC and mAP under the Market-1501 protocol, and the distances they are computed from.

Protocol (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015): for each query the gallery images
of the same identity in the same camera are ignored, and so is identity -1; identity 0 marks distractors, which are
ranked and never correct.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from dgfast.data.records import DISTRACTOR, JUNK
from dgfast.errors import UserError

_BLOCK_VALUES = 1 << 22  # distances sorted at a time: 16 MiB of float32, within reach of the caches

Array = np.ndarray | torch.Tensor
Labels = np.ndarray | torch.Tensor | Sequence[int]


@dataclass(frozen=True)
class RetrievalScores:
    """Scores of a ranking, as fractions 0..1 averaged over the counted queries."""

    rank1: float
    rank5: float
    rank10: float
    mAP: float
    cmc: np.ndarray  # [ranks]: share of queries with a correct match among the first 1, 2, ... images
    queries: int  # counted
    skipped: int  # queries without any correct match in the gallery: left out of every average


def cosine_distances(query: Array, gallery: Array) -> torch.Tensor:
    """1 - q.g for each query and gallery image.

    The features are taken as they are, not normalised: unit vectors give the cosine distance, and the test feature of
    DG-Net keeps the weight between its prim and fine halves (docs/method).

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

    Source: docs/method, test protocol. The mean is not normalised again: scaling a query changes no ranking.
    Identities -1 and 0 make no query.

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


def cmc_map(
    distances: Array,
    query_ids: Labels,
    query_cameras: Labels,
    gallery_ids: Labels,
    gallery_cameras: Labels,
    *,
    ap: Literal["mean", "trapezoid"] = "mean",
    ranks: int = 50,
) -> RetrievalScores:
    """CMC and mAP of a distance matrix under the Market-1501 protocol (this file's first lines).

    Equal distances are ranked by gallery index, the lower first. Queries with no correct match in the gallery are
    skipped and counted as such.

    Args:
        distances: [Q, G], smaller is nearer; infinity ranks last, NaN is refused.
        query_ids, query_cameras: [Q] integers.
        gallery_ids, gallery_cameras: [G] integers; identity -1 is ignored, identity 0 is never correct.
        ap: "mean" is the mean of the precision at each hit (most toolkits); "trapezoid" is the area under the
            precision-recall curve by trapezoids (the published numbers of DG-Net; docs/method).
        ranks: length of the CMC curve, at least 1.

    Raises:
        UserError: shapes do not fit, a distance is NaN, `ranks` < 1, or no query has a correct match.
    """
    if ap not in ("mean", "trapezoid"):
        raise UserError(f'cmc_map: ap is {ap!r}; expected "mean" or "trapezoid"')
    if ranks < 1:
        raise UserError(f"cmc_map: ranks is {ranks}; expected 1 or more")
    matrix = _host_array(distances)
    query = _Labelled("query", query_ids, query_cameras)
    gallery = _Labelled("gallery", gallery_ids, gallery_cameras)
    if matrix.shape != (len(query.ids), len(gallery.ids)):
        raise UserError(
            f"cmc_map: distances of shape {list(matrix.shape)} for {len(query.ids)} query and {len(gallery.ids)} "
            "gallery labels; expected [queries, gallery]"
        )

    first_ranks, average_precisions = [], []
    for rows, hit_queries, hit_ranks in _ranked_hits(matrix, query, gallery):
        hits = np.bincount(hit_queries, minlength=rows)
        starts = np.cumsum(hits) - hits
        place = np.arange(len(hit_ranks)) - starts[hit_queries]  # 0 for a query's best hit, 1 for the next, ...
        precision = (place + 1) / (hit_ranks + 1)
        if ap == "trapezoid":
            before = np.divide(place, hit_ranks, out=np.ones(len(place)), where=hit_ranks > 0)
            precision = (before + precision) / 2
        counted = hits > 0
        sums = np.bincount(hit_queries, weights=precision, minlength=rows)
        average_precisions.append(sums[counted] / hits[counted])
        first_ranks.append(hit_ranks[starts[counted]])

    first = np.concatenate(first_ranks) if first_ranks else np.empty(0, np.int64)
    if len(first) == 0:
        raise UserError(
            f"cmc_map: none of the {len(query.ids)} queries has a correct match among {len(gallery.ids)} gallery "
            "images; expected the same identity in another camera; check identities and cameras"
        )
    cmc = np.cumsum(np.bincount(first[first < ranks], minlength=ranks)) / len(first)
    return RetrievalScores(
        *(float(np.mean(first < k)) for k in (1, 5, 10)),
        mAP=float(np.mean(np.concatenate(average_precisions))),
        cmc=cmc,
        queries=len(first),
        skipped=len(query.ids) - len(first),
    )


class _Labelled:
    """Identities and cameras of one side, of equal length."""

    def __init__(self, side: str, ids: Labels, cameras: Labels):
        self.ids, self.cameras = _labels(ids), _labels(cameras)
        if len(self.ids) != len(self.cameras):
            raise UserError(
                f"cmc_map: {len(self.ids)} {side} identities and {len(self.cameras)} {side} cameras; "
                "expected one of each an image"
            )


def _ranked_hits(
    matrix: np.ndarray, query: _Labelled, gallery: _Labelled
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Blocks of queries: how many, and for each correct match its query within the block and its 0-based rank.

    The hits come sorted by query, then rank. Only hits need a rank, so the distances are sorted without their indices
    (several times faster than argsort) and each hit is looked up in its query's sorted row.
    """
    block = max(1, _BLOCK_VALUES // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), block):
        distances = matrix[start : start + block]
        bad = np.isnan(distances).any(axis=1)
        if bad.any():
            raise UserError(
                f"cmc_map: the distances of query {start + int(bad.argmax())} hold NaN; expected numbers; "
                "look for NaN in the features"
            )
        ids, cameras = query.ids[start : start + block, None], query.cameras[start : start + block, None]
        same_id = ids == gallery.ids
        same_camera = cameras == gallery.cameras
        ignored = (same_id & same_camera) | (gallery.ids == JUNK)
        hit_rows, hit_columns = np.nonzero(same_id & ~ignored & (ids != DISTRACTOR))
        ranked = np.where(ignored, np.array(np.inf, distances.dtype), distances)
        ranked.sort(axis=1)
        hit_values = distances[hit_rows, hit_columns]
        hit_ranks = np.empty(len(hit_rows), np.int64)
        edges = np.searchsorted(hit_rows, np.arange(len(distances) + 1))
        for row in range(len(distances)):
            mine = slice(edges[row], edges[row + 1])
            nearer = np.searchsorted(ranked[row], hit_values[mine], side="left")
            hit_ranks[mine] = nearer
            tied = np.searchsorted(ranked[row], hit_values[mine], side="right") - nearer > 1
            for hit in np.flatnonzero(tied) + edges[row]:
                column = hit_columns[hit]
                equal = (distances[row, :column] == hit_values[hit]) & ~ignored[row, :column]
                hit_ranks[hit] += np.count_nonzero(equal)
        order = np.lexsort((hit_ranks, hit_rows))
        yield len(distances), hit_rows[order], hit_ranks[order]


def _labels(values: Labels) -> np.ndarray:
    return _host_array(values).ravel()


def _host_array(values: Array | Sequence[int]) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16, and float16 sorts slowly.
        values = (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    return np.asarray(values)
