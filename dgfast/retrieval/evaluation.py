"""The test protocol on a whole data set: features of query and gallery, and scores for each kind of feature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgfast.data.records import Record, ReidData
from dgfast.errors import UserError
from dgfast.models import DGNet, Teacher

from .cameras import CameraPairs, camera_pairs
from .features import FeatureSettings, combine, dgnet_halves, extract, teacher_halves
from .histogram import histogram_features
from .metrics import RankedHits, cmc_map, cosine_distances, multi_query
from .reranking import Reranking, rerank_blocks
from .verification import WANTED, OperatingPoint, PairScores, Verification

_RERANKED = "_reranked"  # behind the kind of feature, in the names of scores
FeatureRows = dict[str, Tensor]  # kind of feature -> [N, D]


def features_of(
    records: Sequence[Record], networks: DGNet | None, teacher: Teacher | None, settings: FeatureSettings
) -> FeatureRows:
    """The features that the networks give: "baseline" of the teacher, "prim", "fine" and "both" of DG-Net.

    Args:
        records: N images.
        networks: in eval mode; None leaves its features out.
        teacher: in eval mode; None leaves its feature out.
        settings: how features are made.
    Returns:
        for each kind [N, D] float32 on the CPU.
    """
    rows: FeatureRows = {}
    if teacher is not None:
        (rows["baseline"],) = extract(teacher_halves(teacher), records, settings, "baseline")
    if networks is not None:
        prim, fine = extract(dgnet_halves(networks), records, settings, "dgnet")
        rows |= {"prim": prim, "fine": fine, "both": combine(prim, fine, settings.alpha)}
    return rows


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `evaluate`."""

    scores: dict[str, dict[str, float]]
    """Kind of feature -> name of the score -> percent.

    Kinds: histogram, baseline, prim, fine, both; and KIND_reranked, with the single-query scores only. Scores: rank1,
    rank5, rank10, mAP, mAP_trapezoid, mINP, and with multi-query rank1_multi and mAP_multi. A multi-query takes all
    further images of the query's identity in its camera: the data set's own, or the gallery's.
    """
    distances: Tensor
    """[Q, G]: those of the last kind of feature, not re-ranked."""
    query: Tensor
    """[Q, D]: the last kind of feature."""
    gallery: Tensor
    """[G, D]: the same of the gallery."""
    verification: dict[str, Verification]
    """Kind of feature -> thresholds of the score and their error rates; empty where all images show one person."""
    cameras: CameraPairs
    """Scores from camera to camera, of the last kind of feature."""
    alphas: dict[float, dict[str, float]]
    """Alpha -> single-query scores of "both" with it, percent, for each alpha asked for."""

    @property
    def kind(self) -> str:
        """The last kind of feature: "both" where there is DG-Net, else "baseline", which `distances` are of."""
        return [kind for kind in self.scores if not kind.endswith(_RERANKED)][-1]

    def to_json(self) -> dict[str, Any]:
        """All of it but the distances, for a report."""
        values: dict[str, Any] = {
            "scores": self.scores,
            "verification": {kind: found.to_json() for kind, found in self.verification.items()},
            "camera_pairs": {"kind": self.kind} | self.cameras.to_json(),
        }
        if self.alphas:
            values["alphas"] = [{"alpha": alpha} | row for alpha, row in self.alphas.items()]
        return values

    def calibration(self, data: str, alpha: float) -> dict[str, Any] | None:
        """What `run_directory.write_verification` takes.

        Args:
            data: name of the data set.
            alpha: weight of the fine-grained cosine that the features were made with.
        Returns:
            None where there is no feature "both", or nothing to tell apart.
        """
        if "both" not in self.verification:
            return None
        return {"kind": "both", "alpha": alpha} | self.verification["both"].to_json() | {"data": data}

    def text(self) -> str:
        """Tables of the scores, of the pairs, and of alpha where it was asked for."""
        parts = [table(self.scores)]
        if self.verification:
            parts.append(pairs_table(self.verification))
        if self.alphas:
            rows = {f"alpha {alpha:g}": row for alpha, row in self.alphas.items()}
            parts.append(_table(rows, {name: COLUMNS[name] for name in next(iter(rows.values()))}))
        return "\n\n".join(parts)

    def details(self) -> str:
        """What is too long for a terminal: thresholds and scores from camera to camera, of the last kind of feature."""
        name = TITLES[self.kind]
        parts = [f"{name}, from camera (lines) to camera (columns)\n{self.cameras.text()}"]
        if found := self.verification.get(self.kind):
            lines = [f"{name}: the same person from this score on", _point_line("EER", found.equal)]
            for fpr, point in found.at.items():
                unknown = f"  FPR {fpr:g}: {found.negatives} pairs of two people say nothing of it"
                lines.append(_point_line(f"FPR {fpr:g}", point) if point else unknown)
            parts.insert(0, "\n".join(lines))
        return "\n\n".join(parts)

    def transfer_row(self, data: ReidData) -> dict[str, Any]:
        """A data set's row of `transfer_table`, for a report.

        Args:
            data: what was evaluated.
        """
        row: dict[str, Any] = {"data": data.name, "root": str(data.root), "queries": len(data.query)}
        row |= {"gallery": len(data.gallery), "kind": self.kind, "scores": self.scores[self.kind]}
        if self.kind + _RERANKED in self.scores:
            row["reranked"] = self.scores[self.kind + _RERANKED]
        if self.kind in self.verification:
            row["verification"] = self.verification[self.kind].to_json()
        return row


def check_scorable(data: ReidData, reranking: Reranking | None = None) -> None:
    """Refuse a data set that cannot be scored, before the features are made, which takes longest.

    Args:
        data: a data set.
        reranking: settings that must fit it, if any.
    Raises:
        UserError: query or gallery is empty, no query has a match, or the re-ranking settings do not fit them.
    """
    if reason := data.why_no_scores():
        raise UserError(f"{data.root} cannot be scored: {reason}")
    if reranking is not None:
        reranking.check(len(data.query), len(data.gallery))


def evaluate(
    data: ReidData,
    networks: DGNet | None,
    teacher: Teacher | None,
    settings: FeatureSettings,
    reranking: Reranking | None = None,
    *,
    alphas: Sequence[float] = (),
    fprs: Sequence[float] = WANTED,
) -> Evaluation:
    """Score every kind of feature that the networks give, and the colour histogram.

    Args:
        data: a data set with query and gallery.
        networks: in eval mode; None leaves its features out.
        teacher: in eval mode; None leaves its feature out.
        settings: how features are made.
        reranking: scores each kind a second time, re-ranked; None does not.
        alphas: further weights of the fine-grained cosine to score "both" with; the features are made once.
        fprs: false-positive rates to find thresholds for, above 0, at most 1.
    Raises:
        UserError: see `check_scorable`; or alphas are given without DG-Net.
    """
    check_scorable(data, reranking)
    if alphas and networks is None:
        raise UserError(
            "--alphas weighs the two features of DG-Net; expected a run with a trained DG-Net: leave it away"
        )
    pairs = {(r.person, r.camera) for r in data.query}
    extra = [r for r in (data.multi_query or data.gallery) if (r.person, r.camera) in pairs]
    query, gallery = (_rows(records, networks, teacher, settings) for records in (data.query, data.gallery))
    if data.multi_query:
        more = _rows(extra, networks, teacher, settings)
    else:
        places = {r: i for i, r in enumerate(data.gallery)}
        chosen = torch.tensor([places[r] for r in extra], dtype=torch.int64)
        more = {name: rows[chosen] for name, rows in gallery.items()}
    labels = *_labels(data.query), *_labels(data.gallery)
    scores, verification = {}, {}
    for name in query:
        distances = cosine_distances(query[name], gallery[name])
        scores[name] = _scores(distances, query[name], gallery[name], more[name], data, extra)
        # Of "both" the halves have length 1 and the root of alpha.
        pair_scores = PairScores(*labels, squared_length=1 + settings.alpha if name == "both" else 1)
        pair_scores.add(0, distances)
        if found := pair_scores.verification(fprs):
            verification[name] = found
        if reranking is not None:
            scores[name + _RERANKED] = _reranked_scores(
                query[name].to(settings.device), gallery[name].to(settings.device), data, reranking
            )
    sweep = {}
    for alpha in alphas:
        hits = RankedHits(*labels)
        hits.add(0, cosine_distances(*(combine(rows["prim"], rows["fine"], alpha) for rows in (query, gallery))))
        sweep[alpha] = _single_query(hits)
    return Evaluation(
        scores, distances, query[name], gallery[name], verification, camera_pairs(distances, *labels), sweep
    )


def _rows(
    records: Sequence[Record], networks: DGNet | None, teacher: Teacher | None, settings: FeatureSettings
) -> FeatureRows:
    """All kinds of features: the colour histogram, which a learned feature has to beat, and the networks'."""
    histogram = torch.from_numpy(histogram_features(records, settings.image_size))
    return {"histogram": histogram} | features_of(records, networks, teacher, settings)


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
        "mINP": mean.mINP,
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


COLUMNS = {  # score -> title, width in characters
    "rank1": ("Rank-1", 8),
    "rank5": ("Rank-5", 8),
    "rank10": ("Rank-10", 8),
    "mAP": ("mAP", 8),
    "mAP_trapezoid": ("mAP trap.", 11),
    "mINP": ("mINP", 8),
    "rank1_multi": ("multi R-1", 11),
    "mAP_multi": ("multi mAP", 11),
}


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """The scores as text, one line for each kind of feature.

    Args:
        scores: as in `Evaluation`.
    """
    return _table(scores, COLUMNS)


def pairs_table(verification: Mapping[str, Verification]) -> str:
    """Error rates and thresholds as text, one line for each kind of feature.

    Args:
        verification: as in `Evaluation`; at least one.
    """
    *_, one = verification.values()
    columns = {"eer": ("EER", 8), "threshold": ("threshold", 11)} | {f"{f:g}": (f"TPR@{f:g}", 12) for f in one.at}
    rows: dict[str, dict[str, float | str]] = {}
    for kind, found in verification.items():
        rows[kind] = {"eer": _percent(found.eer), "threshold": f"{found.equal.threshold:.3f}"}
        rows[kind] |= {f"{fpr:g}": _percent(point.tpr) for fpr, point in found.at.items() if point}
    text = _table(rows, columns, "the same person?")
    return f"{text}\npairs of one person: {one.positives}, of two: {one.negatives}"


def transfer_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Several data sets as text, one line for each, and one more where it was re-ranked; then their folders.

    Args:
        rows: name -> what `Evaluation.transfer_row` gives.
    """
    counts = {"queries": ("queries", 9), "gallery": ("gallery", 9)}
    scores = {name: COLUMNS[name] for name in ("rank1", "rank5", "rank10", "mAP", "mINP")}
    cells: dict[str, dict[str, float | str]] = {}
    for name, row in rows.items():
        cells[name] = {"queries": str(row["queries"]), "gallery": str(row["gallery"])} | row["scores"]
        if "verification" in row:
            cells[name]["eer"] = _percent(row["verification"]["eer"])
        if "reranked" in row:
            cells[name + _RERANKED] = row["reranked"]
    (kind,) = {row["kind"] for row in rows.values()}  # one model makes the same features of all
    text = _table(cells, counts | scores | {"eer": ("EER", 8)}, TITLES[kind])
    return "\n".join([text, "", *(f"{name:<22}  {row['root']}" for name, row in rows.items())])


def _table(
    rows: Mapping[str, Mapping[str, float | str]], columns: Mapping[str, tuple[str, int]], corner: str = ""
) -> str:
    """Text with a line for each row; a score that a row lacks is a dash."""
    lines = [f"{corner:<22}" + "".join(f"{title:>{width}}" for title, width in columns.values())]
    for name, row in rows.items():
        title = TITLES.get(name, "  re-ranked" if name.endswith(_RERANKED) else name)
        cells = ((row.get(score, "-"), width) for score, (_, width) in columns.items())
        texts = ((cell if isinstance(cell, str) else f"{cell:.1f}", width) for cell, width in cells)
        lines.append(f"{title:<22}" + "".join(f"{text:>{width}}" for text, width in texts))
    return "\n".join(lines)


def _point_line(name: str, point: OperatingPoint) -> str:
    return f"  {name}: {point.threshold:.4f} (TPR {point.tpr:.2%}, FPR {point.fpr:.3%})"
