"""Scores from each camera to each other one: between which views does the model find people again, and where not?"""

from dataclasses import dataclass

import numpy as np
import torch

from dgfast.data.records import DISTRACTOR, JUNK

from .metrics import Labels, RankedHits


@dataclass(frozen=True)
class CameraPairs:
    """Scores where the queries are of one camera and the gallery is of one other."""

    query_cameras: list[int]
    """A cameras, ascending."""
    gallery_cameras: list[int]
    """B cameras, ascending."""
    rank1: np.ndarray
    """[A, B] share of counted queries whose first image is correct, 0 .. 1; NaN where no query counts."""
    mAP: np.ndarray
    """[A, B] mean average precision, 0 .. 1; NaN where no query counts."""
    queries: np.ndarray
    """[A, B] int: queries with a correct match, which are those that count."""

    def to_json(self) -> dict[str, object]:
        """All of it, in percent; null where no query counts."""

        def percent(shares: np.ndarray) -> list[list[float | None]]:
            return [[None if np.isnan(x) else round(100 * float(x), 3) for x in row] for row in shares]

        return {
            "query_cameras": self.query_cameras,
            "gallery_cameras": self.gallery_cameras,
            "rank1": percent(self.rank1),
            "mAP": percent(self.mAP),
            "queries": self.queries.tolist(),
        }

    def text(self) -> str:
        """Three matrices with a line for each camera of queries."""

        def matrix(title: str, cells: list[list[str]]) -> str:
            lines = [f"{title:<22}" + "".join(f"{f'c{camera}':>7}" for camera in self.gallery_cameras)]
            for camera, row in zip(self.query_cameras, cells, strict=True):
                lines.append(f"{f'  c{camera}':<22}" + "".join(f"{cell:>7}" for cell in row))
            return "\n".join(lines)

        def percent(shares: np.ndarray) -> list[list[str]]:
            return [["-" if np.isnan(x) else f"{100 * x:.1f}" for x in row] for row in shares]

        counts = [[str(count) for count in row] for row in self.queries]
        titles = (("Rank-1, %", percent(self.rank1)), ("mAP, %", percent(self.mAP)), ("queries that count", counts))
        return "\n".join(matrix(title, cells) for title, cells in titles)


def camera_pairs(
    distances: torch.Tensor, query_ids: Labels, query_cameras: Labels, gallery_ids: Labels, gallery_cameras: Labels
) -> CameraPairs:
    """Score the queries of each camera in the images of each camera, distractors among them.

    Protocol, ties and labels are those of `cmc_map`, so there is nothing to find in a query's own camera.

    Args:
        distances: [Q, G] on the CPU, smaller is nearer.
        query_ids: [Q] integers, identities.
        query_cameras: [Q] integers.
        gallery_ids: [G] integers, identities.
        gallery_cameras: [G] integers.
    """
    q_ids, q_cams, g_ids, g_cams = map(np.asarray, (query_ids, query_cameras, gallery_ids, gallery_cameras))
    of_query, of_gallery = np.unique(q_cams), np.unique(g_cams)
    shape = len(of_query), len(of_gallery)
    rank1, precision, queries = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, int)
    for a, query_camera in enumerate(of_query):
        (rows,) = np.nonzero((q_cams == query_camera) & (q_ids != JUNK) & (q_ids != DISTRACTOR))
        for b, gallery_camera in enumerate(of_gallery):
            (columns,) = np.nonzero(g_cams == gallery_camera)
            counted = rows[np.isin(q_ids[rows], g_ids[columns])]
            if query_camera == gallery_camera or not len(counted):
                continue
            hits = RankedHits(q_ids[counted], q_cams[counted], g_ids[columns], g_cams[columns])
            hits.add(0, distances[torch.from_numpy(counted)[:, None], torch.from_numpy(columns)])
            scores = hits.scores()
            rank1[a, b], precision[a, b], queries[a, b] = scores.rank1, scores.mAP, scores.queries
    return CameraPairs(of_query.tolist(), of_gallery.tolist(), rank1, precision, queries)
