"""The test protocol on a whole data set: features of query and gallery, one row of scores per kind of feature."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgfast.data.loaders import LoaderName
from dgfast.data.records import Record, ReidData
from dgfast.errors import UserError
from dgfast.models import DGNet, Teacher

from .features import combine, dgnet_halves, extract, teacher_halves
from .histogram import histogram_features
from .metrics import RankedHits, cmc_map, cosine_distances, multi_query
from .reranking import Reranking, rerank_blocks
from .visualise import ranking_figure


@dataclass(frozen=True)
class Protocol:
    """How features are made: image size (H, W) in pixels, alpha, images a pass, reading threads, device, loader."""

    image_size: tuple[int, int]
    alpha: float
    batch: int
    workers: int
    device: torch.device
    loader: LoaderName = "auto"


Split = dict[str, Tensor]  # name of the feature -> [N, D]


def features_of(records: Sequence[Record], networks: DGNet | None, teacher: Teacher | None, how: Protocol) -> Split:
    """All rows of the table that these networks give: baseline (teacher), prim, fine and both (DG-Net), [N, D] each."""
    rows: Split = {}

    def run(halves: Callable, title: str) -> list[Tensor]:
        return extract(
            halves,
            records,
            how.image_size,
            how.device,
            batch=how.batch,
            workers=how.workers,
            loader=how.loader,
            progress=title,
        )

    if teacher is not None:
        (rows["baseline"],) = run(teacher_halves(teacher), "baseline")
    if networks is not None:
        prim, fine = run(dgnet_halves(networks), "dgnet")
        rows |= {"prim": prim, "fine": fine, "both": combine(prim, fine, how.alpha)}
    return rows


@dataclass(frozen=True)
class Evaluation:
    """Scores in percent by row (histogram, baseline, prim, fine, both) and name, and the distances [Q, G] of the last
    feature.

    Names: rank1, rank5, rank10, mAP, mAP_trapezoid; rank1_multi and mAP_multi with multi-query: all further images of
    the query's identity in its camera (the data set's own, or the gallery's). Rows NAME_reranked have the single-query
    scores.
    """

    scores: dict[str, dict[str, float]]
    distances: Tensor


def evaluate(
    data: ReidData, networks: DGNet | None, teacher: Teacher | None, how: Protocol, reranking: Reranking | None = None
) -> Evaluation:
    """Score every kind of feature that the networks give, and the colour histogram.

    Args:
        data: with query and gallery; networks, teacher: in eval mode, None leaves their rows out.
        reranking: adds a row for each feature, re-ranked.
    Raises:
        UserError: query or gallery is empty, no query has a match, or re-ranking does not fit them.
    """
    if not data.query or not data.gallery:
        raise UserError(
            f"{data.root} has {len(data.query)} query and {len(data.gallery)} gallery images; expected some of each"
        )
    if reranking is not None:  # before the features are made, which takes longest
        reranking.check(len(data.query), len(data.gallery))
    pairs = {(r.person, r.camera) for r in data.query}
    extra = [r for r in (data.multi_query or data.gallery) if (r.person, r.camera) in pairs]
    query, gallery = (_rows(records, networks, teacher, how) for records in (data.query, data.gallery))
    if data.multi_query:
        more = _rows(extra, networks, teacher, how)
    else:
        places = {r: i for i, r in enumerate(data.gallery)}
        chosen = torch.tensor([places[r] for r in extra], dtype=torch.int64)
        more = {name: rows[chosen] for name, rows in gallery.items()}
    scores = {}
    for name in query:
        distances = cosine_distances(query[name], gallery[name])
        scores[name] = _scores(distances, query[name], gallery[name], more[name], data, extra)
        if reranking is not None:
            scores[f"{name}_reranked"] = _reranked_scores(
                query[name].to(how.device), gallery[name].to(how.device), data, reranking
            )
    return Evaluation(scores, distances)


def picture_rankings(data: ReidData, distances: Tensor, path: Path) -> None:
    """A picture of some queries with their nearest gallery images, right ones framed green; distances: [Q, G]."""
    (q_ids, q_cameras), (g_ids, g_cameras) = _labels(data.query), _labels(data.gallery)
    ranking_figure(
        [r.path for r in data.query],
        [r.path for r in data.gallery],
        distances.numpy(),
        q_ids,
        q_cameras,
        g_ids,
        g_cameras,
        path,
    )


def _rows(records: Sequence[Record], networks: DGNet | None, teacher: Teacher | None, how: Protocol) -> Split:
    """Every row of the table as features [N, D]: the colour histogram, which any learned feature has to beat, and the
    networks'."""
    histogram = torch.from_numpy(histogram_features(records, how.image_size))
    return {"histogram": histogram} | features_of(records, networks, teacher, how)


def _labels(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Identities [N] and cameras [N]."""
    return np.array([r.person for r in records], int), np.array([r.camera for r in records], int)


def _scores(
    distances: Tensor, query: Tensor, gallery: Tensor, extra: Tensor, data: ReidData, extra_records: list[Record]
) -> dict[str, float]:
    (q_ids, q_cams), (g_ids, g_cams), (e_ids, e_cams) = map(_labels, (data.query, data.gallery, extra_records))
    hits = RankedHits(q_ids, q_cams, g_ids, g_cams)
    hits.add(0, distances)
    pooled, p_ids, p_cams = multi_query(
        torch.cat([query, extra]), np.concatenate([q_ids, e_ids]), np.concatenate([q_cams, e_cams])
    )
    multi = cmc_map(cosine_distances(pooled, gallery), p_ids, p_cams, g_ids, g_cams)
    return _single_query(hits) | {"rank1_multi": _percent(multi.rank1), "mAP_multi": _percent(multi.mAP)}


def _reranked_scores(query: Tensor, gallery: Tensor, data: ReidData, reranking: Reranking) -> dict[str, float]:
    hits = RankedHits(*_labels(data.query), *_labels(data.gallery))
    for first, distances in rerank_blocks(query, gallery, **vars(reranking), progress="re-ranking"):
        hits.add(first, distances)
    return _single_query(hits)


def _single_query(hits: RankedHits) -> dict[str, float]:
    mean, trapezoid = hits.scores(), hits.scores(ap="trapezoid")
    values = {
        "rank1": mean.rank1,
        "rank5": mean.rank5,
        "rank10": mean.rank10,
        "mAP": mean.mAP,
        "mAP_trapezoid": trapezoid.mAP,
    }
    return {name: _percent(value) for name, value in values.items()}


def _percent(share: float) -> float:
    return round(100 * float(share), 3)


TITLES = {
    "histogram": "colour histogram",
    "baseline": "baseline (teacher)",
    "prim": "DG-Net, primary",
    "fine": "DG-Net, fine-grained",
    "both": "DG-Net, both",
}


COLUMNS = {  # score -> title, width
    "rank1": ("Rank-1", 8),
    "rank5": ("Rank-5", 8),
    "rank10": ("Rank-10", 8),
    "mAP": ("mAP", 8),
    "mAP_trapezoid": ("mAP trap.", 11),
    "rank1_multi": ("multi R-1", 11),
    "mAP_multi": ("multi mAP", 11),
}


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The scores as text, one line a feature."""
    lines = [f"{'':<22}" + "".join(f"{title:>{width}}" for title, width in COLUMNS.values())]
    for name, row in rows.items():
        cells = ((f"{row[score]:.1f}" if score in row else "-", width) for score, (_, width) in COLUMNS.items())
        lines.append(f"{TITLES.get(name, '  re-ranked'):<22}" + "".join(f"{text:>{width}}" for text, width in cells))
    return "\n".join(lines)
