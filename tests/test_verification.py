"""Error rates over pairs and thresholds: sorted scores as oracle, the protocol's pairs, what cannot be resolved."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgfast.errors import UserError
from dgfast.retrieval import verification
from dgfast.retrieval.verification import PairScores


def naive_pairs(scores, query_ids, query_cameras, gallery_ids, gallery_cameras):
    """Scores of the positive and of the negative pairs, by loops."""
    positive, negative = [], []
    for i, (person, camera) in enumerate(zip(query_ids, query_cameras, strict=True)):
        for j, (other, other_camera) in enumerate(zip(gallery_ids, gallery_cameras, strict=True)):
            if person in (-1, 0) or other == -1 or (person == other and camera == other_camera):
                continue
            (positive if person == other else negative).append(float(scores[i][j]))
    return positive, negative


def naive_rates(positive, negative, threshold):
    return sum(s >= threshold for s in positive) / len(positive), sum(s >= threshold for s in negative) / len(negative)


def naive_tpr(positive, negative, fpr):
    """The most true positives with at most so many false ones; None where not even one is allowed."""
    allowed = int(Fraction(str(fpr)) * len(negative))
    if not allowed:
        return None
    ranked = sorted(negative, reverse=True)
    bound = ranked[allowed] if allowed < len(ranked) else -2.0  # the first that must not be accepted
    return sum(s > bound for s in positive) / len(positive)


def naive_eer(positive, negative):
    """(difference of the two shares of errors, their mean) of every threshold that matters."""
    found = []
    for threshold in sorted({*positive, *negative, 2.0}):
        tpr, fpr = naive_rates(positive, negative, threshold)
        found.append((abs(fpr - (1 - tpr)), (fpr + 1 - tpr) / 2))
    least = min(difference for difference, _ in found)
    return [mean for difference, mean in found if difference <= least + 1e-12]


def count(scores, labels, block=3, order=None):
    pairs = PairScores(*labels)
    starts = list(range(0, len(scores), block))
    for i in order if order is not None else range(len(starts)):
        pairs.add(starts[i], 1 - scores[starts[i] : starts[i] + block])
    return pairs


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 7),
    gallery=st.integers(1, 30),
    levels=st.sampled_from([1, 2, 9, 60_000]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_equals_sorted_scores(seed, queries, gallery, levels, dtype):
    rng = np.random.default_rng(seed)
    # On a grid that is coarser than that of the thresholds, so that every best threshold can be had.
    scores = (rng.integers(-levels, levels + 1, (queries, gallery)) / 2**16).astype(dtype)
    labels = (
        rng.integers(-1, 4, queries),
        rng.integers(0, 3, queries),
        rng.integers(-1, 4, gallery),
        rng.integers(0, 3, gallery),
    )
    positive, negative = naive_pairs(scores, *labels)
    wanted = (1.0, 0.5, 0.29, 0.1, 0.01)
    blocks = -(-queries // 3)
    found = count(scores, labels, order=rng.permutation(blocks)).verification(wanted)
    if not positive or not negative:
        assert found is None
        return
    assert (found.positives, found.negatives) == (len(positive), len(negative))
    for fpr in wanted:
        assert (found.at[fpr].tpr if found.at[fpr] else None) == naive_tpr(positive, negative, fpr)
    assert min(abs(found.eer - eer) for eer in naive_eer(positive, negative)) < 1e-12
    for point in filter(None, (found.equal, *found.at.values())):
        assert (point.tpr, point.fpr) == naive_rates(positive, negative, point.threshold)
    assert all(point.fpr <= fpr for fpr, point in found.at.items() if point)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rates_are_exact_for_scores_as_they_are(dtype):
    """Scores that lie on no grid: the rates at the threshold that is returned are those of the scores themselves."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, 500, generator=generator, dtype=dtype) * 2 - 1
    scores[0, :3] = torch.tensor([1.0000002, -1.0000002, 1.0])
    scores = 1 - (1 - scores)  # what can be had from a distance
    labels = np.arange(40) % 8 + 1, np.zeros(40), np.arange(500) % 9, np.ones(500)
    positive, negative = naive_pairs(scores.tolist(), *labels)
    found = count(scores, labels, block=7).verification((0.3, 0.01, 0.001))
    for fpr, point in found.at.items():
        assert (point.tpr, point.fpr) == naive_rates(positive, negative, point.threshold)
        assert point.tpr == pytest.approx(naive_tpr(positive, negative, fpr), abs=1e-3)
        assert fpr - 2 / len(negative) < point.fpr <= fpr
    assert found.eer == pytest.approx(0.5, abs=0.05)


def test_scores_closer_than_two_thresholds_are_counted_as_they_are():
    """Between neighbouring scores there is one threshold, which is not to round any of them up."""
    rng = np.random.default_rng(0)
    scores = 1 - (1 - (rng.permutation(400).reshape(4, 100) + 0.7) / 2**20)
    labels = [1, 2, 3, 4], [0] * 4, np.arange(100) % 5, [1] * 100
    positive, negative = naive_pairs(scores, *labels)
    found = count(scores, labels).verification((0.5, 0.1))
    for point in (found.equal, *found.at.values()):
        assert (point.tpr, point.fpr) == naive_rates(positive, negative, point.threshold)


def test_a_share_is_of_the_negatives_as_it_is_written():
    """0.29 x 100 is 28.999999999999996 to a computer."""
    distances = np.arange(101.0)[None] / 100
    found = count(1 - distances, ([1], [0], [1, *[2] * 100], [1] * 101)).verification((0.29,))
    assert found.negatives == 100 and found.at[0.29].fpr == 0.29


def test_which_pairs_count_by_hand():
    #          own camera, other camera, another person, the same camera, distractor, junk
    gallery = [5, 5, 6, 6, 0, -1], [1, 2, 2, 1, 3, 3]
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.5, 0.99], [1.0] * 6, [1.0] * 6])
    found = count(scores, ([5, 0, -1], [1, 1, 1], *gallery)).verification((0.34, 0.33))
    assert (found.positives, found.negatives) == (1, 3)
    assert found.eer == 0 and found.equal.threshold == pytest.approx((0.7 + 0.8) / 2, abs=1e-5)
    assert found.at[0.33] is None and found.at[0.34].threshold == pytest.approx((0.5 + 0.7) / 2, abs=1e-5)
    assert (found.at[0.34].tpr, found.at[0.34].fpr) == (1, 1 / 3)


def test_a_rate_below_one_of_the_negatives_is_left_out():
    rng = np.random.default_rng(0)
    labels = np.arange(10) + 1, np.zeros(10), np.repeat(np.arange(10) + 1, 10), np.ones(100)
    scores = rng.uniform(-1, 1, (10, 100))
    found = count(scores, labels).verification()
    assert found.negatives == 900 and [fpr for fpr, point in found.at.items() if point] == [0.01]
    other = count(scores, labels).verification((0.0011, 0.00112)).at
    assert other[0.0011] is None and other[0.00112].fpr == 1 / 900
    assert list(found.to_json()["thresholds"]) == ["0.01"]


def test_the_score_is_the_product_by_the_squared_length():
    distances = 1 - torch.tensor([[1.5, 0.75, 0.0]])
    pairs = PairScores([1], [1], [1, 1, 2], [2, 2, 2], squared_length=1.5)
    pairs.add(0, distances)
    assert pairs.verification((1.0,)).equal.threshold == pytest.approx(0.25, abs=1e-5)


def test_where_wrong_pairs_are_most_alike_no_pair_is_accepted():
    labels = [1], [0], [1, *[2] * 100], [1] * 101
    found = count(np.array([[0.5, *[1.0] * 100]]), labels).verification((0.01,))
    assert found.at[0.01].tpr == found.at[0.01].fpr == 0 and found.at[0.01].threshold > 1


def test_blocks_of_any_size_count_the_same(monkeypatch):
    rng = np.random.default_rng(1)
    scores = rng.uniform(-1, 1, (23, 50)).astype(np.float32)
    labels = rng.integers(-1, 5, 23), rng.integers(0, 3, 23), rng.integers(-1, 5, 50), rng.integers(0, 3, 50)
    whole = count(scores, labels, block=23).verification((0.1,))
    monkeypatch.setattr(verification, "_PAIRS_A_CALL", 120)
    assert count(scores, labels, block=23).verification((0.1,)) == whole
    assert count(scores, labels, block=4).verification((0.1,)) == whole


def test_mistakes_are_named():
    pairs = PairScores([1, 2], [1, 1], [1, 2], [2, 2])
    for first, scores in ((0, [[0.0]]), (0, [0.0, 0.0]), (1, [[0.0, 0.0]] * 2), (-1, [[0.0, 0.0]])):
        with pytest.raises(UserError, match="of 2 queries and 2 gallery images; .* each query once"):
            pairs.add(first, scores)
    pairs.add(1, [[0.5, 0.5]])
    with pytest.raises(UserError, match="each query once"):
        pairs.add(1, [[0.5, 0.5]])
    pairs = PairScores([1, 2], [1, 1], [1, 2], [2, 2])
    with pytest.raises(UserError, match="query 1 hold NaN"):
        pairs.add(0, [[0.0, 0.0], [0.5, float("nan")]])
