"""The same person or not? Error rates over pairs of images, and the score from which on two images are called the same.

Every pair of a query and a gallery image counts that the protocol of `cmc_map` ranks: not those of one identity in one
camera, and not identity -1. Pairs of one identity are positive, all others negative, distractors among them. A pair is
called the same person if its score is at least the threshold. The score is the features' dot product divided by their
squared length, -1 .. 1: the cosine, or of DG-Net's test feature the weighted mean of its two cosines.

Thresholds are multiples of 2**-20, about 1e-6, which is little more than the rounding of a product of features. So two
histograms with bins of that width hold all there is to know: nothing is sorted, no pair is kept, and the rates at a
threshold are exact.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from dgfast.errors import UserError

from .metrics import Array, LabelledPairs, Labels

WANTED = (1e-2, 1e-3, 1e-4)  # false-positive rates
_STEPS = 1 << 20  # thresholds in an interval of length 1
_BINS = 2 * _STEPS + 1  # scores from -1 to 1; the last bin is that of 1 alone
_PAIRS_A_CALL = 1 << 22  # whose scores and bins are held at a time


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold does."""

    threshold: float
    """The lowest score of the same person."""
    tpr: float
    """True-positive rate: share of the positive pairs that it calls the same person, 0 .. 1."""
    fpr: float
    """False-positive rate: share of the negative pairs that it calls the same person, 0 .. 1."""


@dataclass(frozen=True)
class Verification:
    """Thresholds and their error rates. Of thresholds with equal rates, the one in the middle stands for all."""

    positives: int
    """Pairs of one identity."""
    negatives: int
    """Pairs of two identities."""
    equal: OperatingPoint
    """Where the shares of wrong answers to positive and to negative pairs differ least."""
    at: dict[float, OperatingPoint | None]
    """Wanted false-positive rate, descending -> the lowest threshold that keeps it. None where the rate is less than
    one of the negative pairs: they say nothing of it."""

    @property
    def eer(self) -> float:
        """Equal error rate: the mean of both shares of wrong answers at `equal`, 0 .. 1."""
        return (self.equal.fpr + 1 - self.equal.tpr) / 2

    def to_json(self) -> dict[str, object]:
        """All of it, without rates that the pairs say nothing of; wanted rates as text, such as "0.001"."""
        return {
            "eer": self.eer,
            "threshold_eer": self.equal.threshold,
            "thresholds": {
                f"{fpr:g}": {"threshold": point.threshold, "tpr": point.tpr}
                for fpr, point in self.at.items()
                if point is not None
            },
            "pairs": [self.positives, self.negatives],
        }


class PairScores:
    """Counts scores whose distances come in blocks of queries, so that [Q, G] need not be held.

        pairs = PairScores(query_ids, query_cameras, gallery_ids, gallery_cameras)
        for first, distances in blocks:
            pairs.add(first, distances)
        pairs.verification()

    What is kept is how many pairs have which score.
    """

    def __init__(
        self,
        query_ids: Labels,
        query_cameras: Labels,
        gallery_ids: Labels,
        gallery_cameras: Labels,
        *,
        squared_length: float = 1,
    ):
        """The labels of the images.

        Args:
            query_ids: [Q] integers, identities; queries of -1 and 0 are nobody in particular and make no pair.
            query_cameras: [Q] integers.
            gallery_ids: [G] integers, identities.
            gallery_cameras: [G] integers.
            squared_length: of every feature: 1, or of DG-Net's test feature 1 + alpha.
        Raises:
            UserError: the numbers of identities and cameras differ.
        """
        self._squared_length = squared_length
        self._labels = LabelledPairs(query_ids, query_cameras, gallery_ids, gallery_cameras)
        self._seen = np.zeros(self._labels.queries, bool)
        self._positive = torch.zeros(_BINS, dtype=torch.int64)
        self._negative = torch.zeros(_BINS, dtype=torch.int64)

    def add(self, first: int, distances: Array) -> None:
        """Count the scores of some queries; each query once, in any order.

        Args:
            first: the first of the queries.
            distances: [queries, G], as from `cosine_distances`: 1 - the dot product.
        Raises:
            UserError: the shape does not fit, a query came before, or a distance is NaN.
        """
        distances, labels = torch.as_tensor(distances), self._labels
        stop = first + len(distances)
        if (
            distances.ndim != 2
            or distances.shape[1] != labels.gallery
            or first < 0
            or stop > labels.queries
            or self._seen[first:stop].any()
        ):
            raise UserError(
                f"PairScores.add: distances of shape {list(distances.shape)} from query {first} on, of "
                f"{labels.queries} queries and {labels.gallery} gallery images; expected [queries, gallery], and each "
                "query once"
            )
        self._seen[first:stop] = True
        rows = max(1, _PAIRS_A_CALL // max(1, labels.gallery))
        for start in range(0, len(distances), rows):
            self._add(first + start, distances[start : start + rows].cpu())

    def _add(self, first: int, distances: torch.Tensor) -> None:
        if distances.isnan().any():
            bad = first + int(distances.isnan().any(1).nonzero()[0])
            raise UserError(
                f"PairScores.add: the distances of query {bad} hold NaN; expected numbers; look for NaN in the features"
            )
        scores = (1 - distances).div_(self._squared_length).clamp_(-1, 1)  # what rounding puts beyond 1 counts as 1
        # Times a power of two: exact. So a score is in bin b or above exactly if it is at least b / 2**20 - 1.
        bins = scores.mul_(_STEPS).floor_().to(torch.int64).add_(_STEPS)
        stop = first + len(bins)
        known = torch.from_numpy(self._labels.known(np.arange(first, stop)))
        ranked = bins if known.all() else bins[known]
        correct, ignored = (
            _counts(bins[torch.from_numpy(queries - first), torch.from_numpy(gallery)])
            for gallery, queries in self._labels.of(first, stop)
        )
        self._positive += correct
        self._negative += _counts(ranked) - _counts(ranked[:, torch.from_numpy(self._labels.junk)]) - correct - ignored

    def verification(self, wanted: Iterable[float] = WANTED) -> Verification | None:
        """Thresholds and their error rates, over the queries counted so far.

        Args:
            wanted: false-positive rates, above 0, at most 1.
        Returns:
            None where there are no positive or no negative pairs.
        """
        positives, negatives = int(self._positive.sum()), int(self._negative.sum())
        if not positives or not negatives:
            return None
        # Thresholds between the same two occupied bins have the same rates: candidate i is all from low[i] to high[i],
        # and the last lies above every score.
        occupied = (self._positive + self._negative).nonzero()[:, 0].numpy()
        low = np.concatenate([[0], occupied + 1])
        high = np.concatenate([occupied, occupied[-1:] + 1])
        accepted_positive, accepted_negative = (
            np.concatenate([np.cumsum(counts.numpy()[occupied][::-1])[::-1], [0]])
            for counts in (self._positive, self._negative)
        )
        tpr, fpr = accepted_positive / positives, accepted_negative / negatives

        def point(i: int) -> OperatingPoint:
            return OperatingPoint(float((low[i] + high[i]) // 2 / _STEPS - 1), float(tpr[i]), float(fpr[i]))

        at: dict[float, OperatingPoint | None] = {}
        for rate in sorted(map(float, wanted), reverse=True):
            allowed = int(Fraction(str(rate)) * negatives)  # 0.29 of 100 are 29, which floats do not know
            at[rate] = point(int(np.argmax(accepted_negative <= allowed))) if allowed else None
        return Verification(positives, negatives, point(int(np.argmin(np.abs(fpr - (1 - tpr))))), at)


def _counts(bins: torch.Tensor) -> torch.Tensor:
    return torch.bincount(bins.reshape(-1), minlength=_BINS)
