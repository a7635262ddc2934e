"""CMC, mAP and mINP: the reference's golden values, a naive loop as oracle, the protocol's corner cases."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgfast.errors import UserError
from dgfast.retrieval.metrics import RankedHits, cmc_map, cosine_distances, multi_query

GOLDEN = Path(__file__).parent / "goldens" / "rerank.npz"


def naive(distances, query_ids, query_cameras, gallery_ids, gallery_cameras, ap):
    """The protocol written as loops: (first-hit ranks, average precisions, inverse negative penalties) of the queries
    with a match."""
    first, precisions, penalties = [], [], []
    for i in range(len(distances)):
        ranked = []
        for j in sorted(range(len(gallery_ids)), key=lambda j: (distances[i][j], j)):
            same_id = query_ids[i] == gallery_ids[j]
            if gallery_ids[j] == -1 or (same_id and query_cameras[i] == gallery_cameras[j]):
                continue
            ranked.append(same_id and query_ids[i] != 0)
        if not any(ranked):
            continue
        first.append(ranked.index(True))
        while not ranked[-1]:  # nobody looks behind the last match
            ranked.pop()
        penalties.append(sum(ranked) / len(ranked))
        total, found = 0.0, 0
        for rank, correct in enumerate(ranked):
            if correct:
                precision = (found + 1) / (rank + 1)
                before = found / rank if rank else 1.0
                total += precision if ap == "mean" else (before + precision) / 2
                found += 1
        precisions.append(total / found)
    return first, precisions, penalties


def golden():
    with np.load(GOLDEN) as data:
        query, gallery = torch.from_numpy(data["query"]), torch.from_numpy(data["gallery"])
        # The golden identities count from 0, which the protocol keeps for distractors.
        labels = data["query_pid"] + 1, data["query_cam"], data["gallery_pid"] + 1, data["gallery_cam"]
        return cosine_distances(query, gallery), labels, dict(data)


def test_mean_precision_equals_golden():
    distances, labels, data = golden()
    scores = cmc_map(distances, *labels)
    np.testing.assert_allclose([scores.rank1, scores.mAP], data["metrics_plain_rank1_mAP"], rtol=0, atol=1e-6)


def test_trapezoid_equals_golden():
    distances, labels, data = golden()
    s = cmc_map(distances, *labels, ap="trapezoid")
    expected = data["metrics_trapezoid_rank1_5_10_mAP"]
    np.testing.assert_allclose([s.rank1, s.rank5, s.rank10, s.mAP], expected, rtol=0, atol=1e-6)
    assert (s.queries, s.skipped) == (96, 0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 7),
    gallery=st.integers(1, 30),
    levels=st.sampled_from([1, 2, 5, 1000]),
    ap=st.sampled_from(["mean", "trapezoid"]),
    block=st.sampled_from([1, 3, 7]),
)
def test_equals_naive_loop(seed, queries, gallery, levels, ap, block):
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, levels, (queries, gallery)).astype(np.float32)  # few levels: many ties
    distances[rng.random(distances.shape) < 0.1] = np.inf
    labels = (
        rng.integers(-1, 4, queries),
        rng.integers(0, 3, queries),
        rng.integers(-1, 4, gallery),
        rng.integers(0, 3, gallery),
    )
    first, precisions, penalties = naive(distances, *labels, ap)
    if not first:
        with pytest.raises(UserError, match="correct match"):
            cmc_map(distances, *labels, ap=ap)
        return
    hits = RankedHits(*labels)
    for start in rng.permutation(np.arange(0, queries, block)):
        hits.add(int(start), distances[start : start + block])
    scores = hits.scores(ap=ap, ranks=12)
    whole = cmc_map(distances, *labels, ap=ap, ranks=12)
    assert (whole.mAP, whole.cmc.tolist()) == (scores.mAP, scores.cmc.tolist())
    assert (scores.queries, scores.skipped) == (len(first), queries - len(first))
    assert scores.mAP == pytest.approx(np.mean(precisions), abs=1e-12)
    assert scores.mINP == pytest.approx(np.mean(penalties), abs=1e-12)
    np.testing.assert_allclose(scores.cmc, [np.mean([f <= k for f in first]) for k in range(12)], atol=1e-12)
    assert (scores.rank1, scores.rank5, scores.rank10) == pytest.approx(tuple(scores.cmc[[0, 4, 9]]))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_only_the_order_counts(seed):
    rng = np.random.default_rng(seed)
    distances = rng.permutation(240).reshape(8, 30).astype(np.float64)
    labels = rng.integers(1, 4, 8), rng.integers(0, 2, 8), rng.integers(1, 4, 30), rng.integers(2, 4, 30)
    a, b = cmc_map(distances, *labels), cmc_map(distances**3 * 2.0 + 7.0, *labels)
    assert (a.mAP, a.rank1) == (b.mAP, b.rank1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_hits_of_one_identity(dtype):
    rng = np.random.default_rng(0)
    distances = rng.integers(0, 50, (3, 700)).astype(
        dtype
    )  # more hits than are counted one by one, and ties among them
    labels = np.ones(3, int), np.zeros(3, int), rng.choice([-1, 1, 1, 2], 700), rng.integers(0, 3, 700)
    first, precisions, penalties = naive(distances, *labels, "mean")
    scores = cmc_map(distances, *labels)
    assert scores.mAP == pytest.approx(np.mean(precisions), abs=1e-12)
    assert scores.mINP == pytest.approx(np.mean(penalties), abs=1e-12)
    assert scores.rank1 == np.mean([f == 0 for f in first])


def test_blocks_fit_their_labels():
    hits = RankedHits([1, 2], [1, 1], [1, 2], [2, 2])
    hits.add(1, [[0.5, 0.25]])
    assert (hits.scores().queries, hits.scores().mAP) == (1, 1.0)
    for first, block in ((1, [[0.0, 0.0]]), (2, [[0.0, 0.0]]), (0, [[0.0]]), (0, [0.0, 0.0])):
        with pytest.raises(UserError, match="each query once"):
            hits.add(first, block)


def test_protocol_by_hand():
    # Ranked: own camera (ignored), junk (ignored), distractor, wrong person, hit, wrong, hit.
    distances = torch.arange(7.0)[None]
    gallery_ids, gallery_cameras = [5, -1, 0, 6, 5, 6, 5], [1, 2, 2, 2, 2, 2, 3]
    scores = cmc_map(distances, [5], [1], gallery_ids, gallery_cameras, ranks=6)
    assert scores.cmc.tolist() == [0, 0, 1, 1, 1, 1]
    assert scores.mAP == pytest.approx((1 / 3 + 2 / 5) / 2)
    assert scores.mINP == pytest.approx(2 / 5)
    trapezoid = cmc_map(distances, [5], [1], gallery_ids, gallery_cameras, ap="trapezoid")
    assert trapezoid.mAP == pytest.approx(((0 / 2 + 1 / 3) / 2 + (1 / 4 + 2 / 5) / 2) / 2)


def test_ties_go_to_the_lower_index():
    assert cmc_map([[1.0, 1.0]], [1], [1], [1, 2], [2, 2]).rank1 == 1
    assert cmc_map([[1.0, 1.0]], [1], [1], [2, 1], [2, 2]).rank1 == 0


def test_half_precision_tensor_is_accepted():
    distances = torch.tensor([[0.5, 0.25]], dtype=torch.bfloat16)
    assert cmc_map(distances, [1], [1], [2, 1], [2, 2]).rank1 == 1


@pytest.mark.parametrize(
    ("distances", "labels", "options", "message"),
    [
        (np.zeros((2, 3)), ([1, 1], [1, 1], [1, 1], [2, 2]), {}, r"\[2, 3\] for 2 query and 2 gallery"),
        (np.zeros((1, 2)), ([1], [1, 2], [1, 1], [2, 2]), {}, "1 query identities and 2 query cameras"),
        (np.array([[0, 1], [0, np.nan]]), ([1, 1], [1, 1], [1, 1], [2, 2]), {}, "query 1 hold NaN"),
        (np.zeros((1, 1)), ([1], [1], [1], [1]), {}, "none of the 1 queries"),
        (np.zeros((1, 1)), ([1], [1], [1], [2]), {"ranks": 0}, "ranks is 0"),
        (np.zeros((1, 1)), ([1], [1], [1], [2]), {"ap": "max"}, "ap is 'max'"),
    ],
)
def test_mistakes_are_named(distances, labels, options, message):
    with pytest.raises(UserError, match=message):
        cmc_map(distances, *labels, **options)


def test_cosine_distances_of_unit_vectors():
    angles = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    expected = 1 - torch.cos(angles[:, None] - angles)
    torch.testing.assert_close(cosine_distances(vectors, vectors), expected, rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="same model"):
        cosine_distances(vectors, torch.zeros(4, 3))


def test_multi_query_averages_each_person_in_each_camera():
    features = torch.tensor([[1.0, 0], [3, 0], [0, 1], [9, 9], [7, 7], [5, 5]])
    means, persons, cameras = multi_query(features, [4, 4, 4, 0, -1, 2], [1, 1, 2, 1, 1, 3])
    assert persons.tolist() == [2, 4, 4] and cameras.tolist() == [3, 1, 2]
    assert means.tolist() == [[5, 5], [2, 0], [0, 1]]
    with pytest.raises(UserError, match="6 features, 5 persons"):
        multi_query(features, [1] * 5, [1] * 6)
