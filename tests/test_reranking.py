"""Re-ranking: the reference's golden distances, a naive dense oracle, ties, instruction sets, devices' paths, and
mistakes."""

import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dgfast import _rerank
from dgfast.errors import UserError
from dgfast.retrieval import (
    Neighbours,
    RankedHits,
    backends,
    nearest,
    neighbours,
    rerank,
    rerank_blocks,
    rerank_topk,
    reranking,
)
from dgfast.retrieval.backends import CpuBackend, TorchBackend

GOLDEN = Path(__file__).parent / "goldens" / "rerank.npz"


def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as data:
        return dict(data)


def dense(query, gallery, k1=20, k2=6, lambda_=0.3, variant="zhong", ordered=None):
    """docs/method.md, section 4, line by line with N x N matrices in fp64; `ordered` replaces the sort."""
    features = np.concatenate([query, gallery]).astype(np.float64)
    d = np.stack([np.square(features - x).sum(1) for x in features])
    order = np.argsort(d, axis=1, kind="stable") if ordered is None else ordered
    if variant == "squared":
        d = d**2
    largest = d.max(1, keepdims=True)
    d = np.divide(d, largest, out=np.zeros_like(d), where=largest > 0)

    def reciprocal(i, k):
        return [j for j in order[i, :k] if i in order[j, :k]]

    n, q = len(features), len(query)
    half = int(np.around(k1 / 2)) + 1
    v = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, k1 + 1)
        members = set(own)
        for c in own:
            theirs = reciprocal(c, half)
            if len(set(theirs) & set(own)) > 2 / 3 * len(theirs):
                members |= set(theirs)
        members = sorted(members)
        weights = np.exp(-d[i, members])
        v[i, members] = weights / weights.sum()
    if k2 > 1:
        v = np.stack([v[order[i, :k2]].mean(0) for i in range(n)])
    m = np.minimum(v[:q, None], v[None, q:]).sum(2)
    return (1 - lambda_) * (1 - m / (2 - m)) + lambda_ * d[:q, q:]


def people(seed, queries, gallery, dims, spread=0.6):
    """Clustered unit features without ties."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(2, (queries + gallery) // 12), dims))
    x = centres[rng.integers(0, len(centres), queries + gallery)] + spread * rng.standard_normal(
        (queries + gallery, dims)
    )
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return x[:queries], x[queries:]


def whole_numbers(seed, queries, gallery, dims, levels):
    """Features on a coarse lattice, on which every product is exact: equal distances are equal in every arithmetic."""
    x = np.random.default_rng(seed).integers(0, levels, (queries + gallery, dims)).astype(np.float32)
    return x[:queries], x[queries:]


@pytest.fixture
def small_tiles(monkeypatch):
    """Many blocks even of small cases."""
    monkeypatch.setattr(CpuBackend, "tile", (64, 96))


SETTINGS = [
    (re.match(r"(zhong|squared)_k1=(\d+)_k2=(\d+)_lambda=(.+)", name), name)
    for name in golden()
    if name[:5] in ("zhong", "squar")
]


@pytest.mark.parametrize(
    "setting", [(m[1], int(m[2]), int(m[3]), float(m[4]), name) for m, name in SETTINGS], ids=lambda s: s[-1]
)
def test_equals_golden(setting, small_tiles):
    variant, k1, k2, lambda_, name = setting
    data = golden()
    found = rerank(data["query"], data["gallery"], k1, k2, lambda_, variant)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, data[name], rtol=0, atol=1e-5)


def test_the_oracle_equals_golden():
    data = golden()
    assert len(SETTINGS) == 7
    found = dense(data["query"], data["gallery"], 26, 7)
    np.testing.assert_allclose(found, data["zhong_k1=26_k2=7_lambda=0.3"], rtol=0, atol=2e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 6),
    gallery=st.integers(1, 40),
    dims=st.sampled_from([1, 2, 7, 33]),
    levels=st.sampled_from([1, 2, 4]),
    k1=st.one_of(st.integers(1, 45), st.just(10**6)),
    k2=st.integers(1, 46),
    lambda_=st.sampled_from([0.0, 0.3, 1.0]),
    variant=st.sampled_from(["zhong", "squared"]),
    tile=st.sampled_from([(1, 1), (3, 5), (16, 8), (1024, 2048)]),
)
def test_equals_dense_oracle_with_ties(seed, queries, gallery, dims, levels, k1, k2, lambda_, variant, tile):
    q, g = whole_numbers(seed, queries, gallery, dims, levels)
    n = queries + gallery
    k1, k2 = min(k1, n - 1), min(k2, n)
    expected = dense(q, g, k1, k2, lambda_, variant)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuBackend, "tile", tile)
        found = rerank(q, g, k1, k2, lambda_, variant)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
        for first, block in rerank_blocks(q, g, k1, k2, lambda_, variant):
            assert (block == found[first : first + len(block)]).all()
        k = min(5, gallery)
        distances, indices = rerank_topk(q, g, k, k1, k2, lambda_, variant)
    order = np.argsort(found, axis=1, kind="stable")[:, :k]
    assert (indices == order).all() and (distances == np.take_along_axis(found, order, 1)).all()


@pytest.mark.parametrize("copies", [2, 9])
@pytest.mark.parametrize("dims", [3, 1024, 4096])
def test_equal_images_tie_whatever_the_product_rounds_to(copies, dims):
    x = np.tile(people(0, 0, 20, dims)[1], (copies, 1)) * 3 + 0.25
    q, g = x[:7], x[7:]
    np.testing.assert_allclose(rerank(q, g, 6, 3), dense(q, g, 6, 3), rtol=0, atol=1e-5)


def test_one_image_a_side():
    assert rerank(np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32), k1=1, k2=1).shape == (1, 1)
    assert rerank(np.ones((1, 4), np.float32), np.ones((1, 4), np.float32), k1=1, k2=2) == 0


def test_gallery_order_does_not_matter_without_ties():
    q, g = people(1, 30, 400, 48)
    order = np.random.default_rng(0).permutation(len(g))
    np.testing.assert_allclose(rerank(q, g[order]), rerank(q, g)[:, order], rtol=0, atol=1e-6)


def sets():
    best = ["scalar", "avx2", "avx512"].index(_rerank.build_info()["instruction_set"])
    return ["scalar", "avx2", "avx512"][: best + 1]


@pytest.fixture
def threads():
    """Sets how many threads torch uses; the number from before comes back at the end."""
    kept = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(kept)


def all_results(q, g, k1=9, k2=4):
    return rerank(q, g, k1, k2), *rerank_topk(q, g, 12, k1, k2), *nearest(q, g, 10).__dict__.values()


def assert_same_bits(found, expected, what):
    same = [(np.asarray(a) == np.asarray(b)).all() for a, b in zip(found, expected, strict=True)]
    assert all(same), (what, same)


@pytest.mark.parametrize("make", [people, lambda *a: whole_numbers(*a, 3)], ids=["floats", "ties"])
def test_instruction_sets_and_threads_give_the_same_bits(make, monkeypatch, small_tiles, threads):
    q, g = make(2, 70, 530, 131)
    expected = None
    for instructions in sets():
        monkeypatch.setattr(
            reranking, "backend_for", lambda device, instructions=instructions: CpuBackend(instructions)
        )
        for count in (1, 3):
            threads(count)
            found = all_results(q, g)
            expected = expected or found
            assert_same_bits(found, expected, (instructions, count))


@pytest.mark.parametrize(
    ("queries", "gallery", "dims"),
    [(7, 26, 131), (300, 1901, 96), (1, 1055, 33), (2, 24, 40000)],
    ids=["few", "several tiles", "one row left", "long features"],
)
def test_number_of_threads_does_not_matter(queries, gallery, dims, threads):
    """On some processors the BLAS below torch gives these shapes other bits with other numbers of threads."""
    q, g = people(17, queries, gallery, dims)
    expected = None
    for count in (1, 2, 3, 4, 7):
        threads(count)
        found = all_results(q + 0.7, g + 0.7)
        expected = expected or found
        assert_same_bits(found, expected, count)
        assert torch.get_num_threads() == count


def test_a_product_is_computed_on_one_thread(monkeypatch, threads, small_tiles):
    """What makes the bits independent of the number of threads, on any processor."""
    seen = []

    def watched(*arguments, plain=torch.mm, **options):
        seen.append(torch.get_num_threads())
        return plain(*arguments, **options)

    monkeypatch.setattr(torch, "mm", watched)
    threads(3)
    rerank(*people(18, 20, 150, 8))
    assert set(seen) == {1}


def test_inference_mode_changes_nothing(small_tiles):
    q, g = people(19, 20, 150, 8)
    expected = rerank(q, g)
    with torch.inference_mode():
        assert (rerank(q, g) == expected).all()


def test_threads_follow_torch(threads):
    threads(3)
    assert _rerank.build_info()["max_threads"] == 3


@pytest.mark.parametrize("make", [people, lambda *a: whole_numbers(*a, 3)], ids=["floats", "ties"])
def test_torch_backend_equals_the_extension(make, monkeypatch, small_tiles):
    """The path of a GPU without a CUDA build, on the CPU."""
    q, g = make(3, 50, 450, 40)
    expected, lists, best = rerank(q, g, 11, 5), nearest(q, g, 12), rerank_topk(q, g, 7, 11, 5)
    some = nearest(q, g, 12, rows=range(33, 180))
    monkeypatch.setattr(TorchBackend, "tile", (64, 96))
    monkeypatch.setattr(reranking, "backend_for", TorchBackend)
    assert (rerank(q, g, 11, 5) == expected).all()
    assert all((a == b).all() for a, b in zip(rerank_topk(q, g, 7, 11, 5), best, strict=True))
    for found, right in ((nearest(q, g, 12), lists), (nearest(q, g, 12, rows=range(33, 180)), some)):
        assert all((a == b).all() for a, b in zip(found.__dict__.values(), right.__dict__.values(), strict=True))


def test_nearest_of_some_rows():
    q, g = people(4, 40, 260, 24)
    everything, rows = nearest(q, g, 9), range(37, 151)
    some = nearest(q, g, 9, rows=rows)
    assert (some.indices == everything.indices[37:151]).all()
    torch.testing.assert_close(some.distances, everything.distances[37:151], rtol=0, atol=1e-6)
    torch.testing.assert_close(some.farthest, everything.farthest[37:151], rtol=0, atol=1e-6)
    x = np.concatenate([q, g]).astype(np.float64)
    d = np.square(x[:, None] - x[None]).sum(2)
    assert (everything.indices.numpy() == np.argsort(d, axis=1, kind="stable")[:, :9]).all()
    np.testing.assert_allclose(everything.farthest, d.max(1), rtol=1e-6)


@pytest.mark.parametrize("given_", ["everything", "no distances", "no farthest", "indices"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_neighbours_from_elsewhere(given_, kind, small_tiles):
    q, g = people(5, 30, 370, 64)
    x = np.concatenate([q, g]).astype(np.float64)
    d = np.square(x[:, None] - x[None]).sum(2)
    indices = np.argsort(d, axis=1, kind="stable")[:, :25]  # more than needed
    indices = np.take_along_axis(
        indices, np.random.default_rng(0).permuted(np.tile(np.arange(25), (400, 1)), axis=1), 1
    )
    distances = np.take_along_axis(d, indices, 1) if given_ in ("everything", "no farthest") else None
    farthest = d.max(1) if given_ in ("everything", "no distances") else None
    if kind == "torch":
        q, g, indices = map(torch.from_numpy, (q, g, indices))
    expected = rerank(q, g)
    if distances is None:  # then the lists are taken as they come, but for ties
        indices = nearest(q, g, 25).indices
    found = rerank(q, g, neighbours=Neighbours(indices, distances, farthest))
    assert type(found) is type(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    blocks = dict(rerank_blocks(q, g, neighbours=Neighbours(indices, distances, farthest), queries=range(3, 29)))
    assert min(blocks) == 3
    np.testing.assert_array_equal(np.concatenate([np.asarray(b) for b in blocks.values()]), found[3:29])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_their_fp32_values(dtype):
    q, g = (torch.from_numpy(x).to(dtype) for x in people(6, 20, 150, 32))
    found = rerank(q, g)
    assert found.dtype == torch.float32
    assert torch.equal(found, rerank(q.float(), g.float()))
    if dtype != torch.bfloat16:
        np.testing.assert_array_equal(rerank(q.numpy(), g.numpy()), found)


def test_strides_read_only_and_foreign_bytes():
    q, g = people(7, 20, 150, 32)
    expected = rerank(q, g)
    locked = g.copy()
    locked.flags.writeable = False
    assert (rerank(q[::-1][::-1], locked) == expected).all()
    np.testing.assert_allclose(rerank(q[::-1], g)[::-1], expected, rtol=0, atol=1e-6)
    assert (rerank(np.asfortranarray(q), g.astype(">f4")) == expected).all()
    assert (rerank(torch.from_numpy(q).requires_grad_(), torch.from_numpy(g)).numpy() == expected).all()


def test_inputs_are_left_alone():
    q, g = people(8, 20, 150, 32)
    before = q.copy(), g.copy()
    rerank(q * 1, g)
    for side, kept in zip((q, g), before, strict=True):
        np.testing.assert_array_equal(side, kept)
    lists = nearest(q, g, 21)
    x = Neighbours(lists.indices.long(), lists.distances.double(), lists.farthest.double())
    kept = [t.clone() for t in x.__dict__.values()]
    rerank(q * 64, g * 64, neighbours=x)
    assert all(torch.equal(a, b) for a, b in zip(x.__dict__.values(), kept, strict=True))


@pytest.mark.parametrize("factor", [1e-30, 1e-5, 1e18, 3e37])
def test_scale_does_not_matter(factor):
    q, g = people(9, 20, 150, 32)
    np.testing.assert_allclose(rerank(q * np.float32(factor), g * np.float32(factor)), rerank(q, g), rtol=0, atol=2e-6)


def test_a_common_offset_costs_little():
    q, g = (5 + 0.1 * x for x in people(10, 20, 150, 32))
    np.testing.assert_allclose(rerank(q, g), dense(q, g), rtol=0, atol=2e-6)


def test_cosine_is_euclidean_of_unit_vectors():
    q, g = people(11, 20, 150, 32)
    lengths = np.random.default_rng(0).uniform(0.5, 9, (170, 1)).astype(np.float32)
    found = rerank(q * lengths[:20], g * lengths[20:], metric="cosine")
    np.testing.assert_allclose(found, rerank(q, g), rtol=0, atol=2e-6)
    assert abs(found - rerank(q * lengths[:20], g * lengths[20:])).max() > 0.01


def test_precision_switches_do_not_reach_the_products():
    q, g = people(12, 20, 150, 32)
    expected, before = rerank(q, g), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (rerank(q, g) == expected).all()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_result_goes_where_it_is_told(tmp_path):
    q, g = people(13, 20, 150, 32)
    expected = rerank(q, g)
    out = np.lib.format.open_memmap(tmp_path / "d.npy", "w+", np.float32, (20, 150))
    assert rerank(q, g, out=out) is out
    out.flush()
    assert (np.load(tmp_path / "d.npy") == expected).all()
    for wrong in (
        np.empty((20, 151), np.float32),
        np.empty((20, 150)),
        torch.empty(20, 150),
        np.empty((150, 20), np.float32).T,
    ):
        with pytest.raises(UserError, match="out is a"):
            rerank(q, g, out=wrong)


def test_metrics_from_blocks_equal_those_of_the_matrix(small_tiles):
    data = golden()
    labels = data["query_pid"] + 1, data["query_cam"], data["gallery_pid"] + 1, data["gallery_cam"]
    whole, blocks = RankedHits(*labels), RankedHits(*labels)
    whole.add(0, rerank(data["query"], data["gallery"]))
    count = 0
    for first, block in rerank_blocks(data["query"], data["gallery"]):
        blocks.add(first, block)
        count += 1
    assert count == 2
    for ap in ("mean", "trapezoid"):
        assert whole.scores(ap=ap).mAP == blocks.scores(ap=ap).mAP
    assert blocks.scores().mAP > data["metrics_plain_rank1_mAP"][1] + 0.03  # re-ranking is worth its while


def features(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def with_value(value):
    x = features(30, 8)
    x[17, 3] = value
    return x


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((features(3, 8), features(30, 9)), {}, "query features have 8 values, gallery features 9"),
        ((features(3, 8), features(30)), {}, r"gallery has shape \[30\]"),
        ((features(3, 8), features(30, 0)), {}, r"gallery has shape \[30, 0\]"),
        ((features(3, 8), features(0, 8)), {}, "gallery has no images"),
        ((features(0, 8), features(30, 8)), {}, "query has no images"),
        ((features(3, 8).astype(int), features(30, 8)), {}, "query holds int64"),
        ((torch.ones(3, 8, dtype=torch.int32), torch.ones(30, 8)), {}, "query holds torch.int32"),
        (([[1.0]], features(30, 1)), {}, "query is a list"),
        ((features(3, 8), with_value(np.nan)), {}, "gallery row 17 holds NaN"),
        ((with_value(np.inf), features(30, 8)), {}, "query row 17 holds infinite"),
        ((features(3, 8), 0 * features(30, 8)), {"metric": "cosine"}, "gallery row 0 is zero"),
        ((features(3, 8), features(17, 8)), {}, r"k1 is 20 for 20 images \(3 query, 17 gallery\); expected 1 to 19"),
        ((features(3, 8), features(30, 8)), {"k1": 0}, "k1 is 0"),
        ((features(3, 8), features(30, 8)), {"k2": 34}, "k2 is 34 for 33 images"),
        ((features(3, 8), features(30, 8)), {"k2": 0}, "k2 is 0"),
        ((features(3, 8), features(30, 8)), {"lambda_": 1.5}, "lambda is 1.5"),
        ((features(3, 8), features(30, 8)), {"lambda_": float("nan")}, "lambda is nan"),
        ((features(3, 8), features(30, 8)), {"variant": "fast"}, "variant is 'fast'; expected one of zhong, squared"),
        ((features(3, 8), features(30, 8)), {"metric": "dot"}, "metric is 'dot'"),
        ((torch.ones(3, 8, device="meta"), torch.ones(30, 8)), {}, "query is on meta, gallery on cpu"),
        ((torch.ones(3, 8, device="meta"), torch.ones(30, 8, device="meta")), {}, "the features are on meta"),
    ],
)
def test_mistakes_are_named(arguments, options, message):
    with pytest.raises(UserError, match=message):
        rerank(*arguments, **options)
    with pytest.raises(UserError, match=message):
        dict(rerank_blocks(*arguments, **options))


def lists(**changes):
    q, g = features(3, 8), features(30, 8)
    return Neighbours(**(nearest(q, g, 21).__dict__ | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": np.zeros((33, 20), int)}, r"indices has shape \[33, 20\]; expected \[33, 21 or more\]"),
        ({"indices": np.zeros((33, 21), int)}, "of image 0 name an image twice"),
        ({"indices": np.tile(np.arange(20, 41), (33, 1))}, "of image 0 leave 0 .. 32"),
        ({"indices": np.tile(np.arange(-1, 20), (33, 1))}, "of image 0 leave 0 .. 32"),
        ({"indices": np.tile(np.arange(21.0), (33, 1))}, "indices holds torch.float64; expected integers"),
        ({"distances": np.ones((33, 20))}, r"distances has shape \[33, 20\]"),
        ({"distances": np.full((33, 21), np.nan)}, "distances of image 0 are not finite"),
        ({"farthest": -np.ones(33)}, "farthest of image 0 are not finite and >= 0"),
    ],
)
def test_wrong_neighbours_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        rerank(features(3, 8), features(30, 8), neighbours=lists(**changes))


def test_other_numbers_out_of_range():
    q, g = features(3, 8), features(30, 8)
    for k in (0, 31):
        with pytest.raises(UserError, match=f"k is {k} for 30 gallery images"):
            rerank_topk(q, g, k)
    for queries in (range(0, 4), range(-1, 2), range(0, 3, 2)):
        with pytest.raises(UserError, match="expected consecutive"):
            rerank_blocks(q, g, queries=queries)
    with pytest.raises(UserError, match="k is 34 for 33 images"):
        nearest(q, g, 34)
    with pytest.raises(UserError, match="rows is range"):
        nearest(q, g, 3, rows=range(30, 34))


def test_no_queries_are_wanted():
    q, g = features(3, 8), features(30, 8)
    assert list(rerank_blocks(q, g, queries=range(2, 2))) == []
    distances, indices = rerank_topk(q, g, 4, queries=range(0, 0))
    assert distances.shape == indices.shape == (0, 4)


def test_memory_is_estimated_before_the_start(monkeypatch):
    q, g = features(300, 8), features(4000, 8)
    monkeypatch.setattr(reranking, "make_ready", lambda *a: pytest.fail("started all the same"))
    monkeypatch.setattr(reranking, "available_bytes", lambda device: 2**20)
    with pytest.raises(UserError, match=r"need about 0\.\d GiB on cpu.*0\.0 GiB that are free"):
        rerank(q, g)
    with pytest.raises(UserError, match="shard it"):
        list(rerank_blocks(q, g))


def test_interrupt_is_heard(monkeypatch, small_tiles):
    q, g = people(14, 20, 400, 16)
    calls = 0

    def pressed(self, *arguments, done=CpuBackend.nearest_block):
        nonlocal calls
        calls += 1
        done(self, *arguments)
        if calls == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(CpuBackend, "nearest_block", pressed)
    with pytest.raises(KeyboardInterrupt):
        rerank(q, g)
    assert calls == 2


def test_blocks_stay_within_their_room(monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_BYTES", 4 * 1500 * 128)
    q, g = people(15, 300, 1200, 8)
    sizes = [len(block) for _, block in rerank_blocks(q, g)]
    assert sizes == [128, 128, 44]


def test_progress_is_shown(capsys):
    rerank(*people(16, 20, 150, 32), progress="title")
    assert "title: nearest" in capsys.readouterr().err
    rerank(*people(16, 20, 150, 32))
    assert capsys.readouterr().err == ""


class Questions(TorchDispatchMode):
    """Counts how often the host asks for a value of the device, and the most memory of one result."""

    def __init__(self):
        super().__init__()
        self.number = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.number += func._overloadpacket is torch.ops.aten._local_scalar_dense
        made = [t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor)]
        self.largest = max([self.largest, *(t.nbytes for t in made)])
        return out


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_features_are_made_ready_without_waiting_for_each_part(metric):
    query, gallery = (torch.from_numpy(side) for side in people(17, 300, 2000, 16))
    backend = TorchBackend(torch.device("cpu"))
    backend.chunk = 16 * 64  # 36 parts
    with Questions() as asked:
        found = neighbours.make_ready(query, gallery, metric, backend)
    assert asked.number <= 5
    expected = neighbours.make_ready(query, gallery, metric, CpuBackend())
    assert found.scale == expected.scale
    assert torch.equal(found.values, expected.values) and torch.equal(found.norms, expected.norms)


def test_a_gpu_makes_features_ready_in_few_parts():
    """Of a million images of 1024 values, the host launches 16 parts of 64 thousand images, not 3900 of 256."""
    assert 2**20 * 1024 / backends.CudaBackend.chunk == 16


@pytest.mark.parametrize(("images", "most"), [(19_000, 4), (94_000, 70), (1_000_000, 7_000)])
def test_a_gpu_gets_large_tiles_of_large_galleries(images, most):
    """Products of a million images in a few thousand tiles; only bands with queries are low."""
    backend = backends.CudaBackend(torch.device("meta"))
    values = torch.empty((images, 1024), device="meta")
    made = neighbours.Features(values, values[:, 0], 1.0, queries=10_000)
    tiles = neighbours.Tiles(made, backend)
    pieces = [
        (end - start) * block.shape[1]
        for start, end in tiles.bands(0, images)
        for _, block in tiles.products((start, end), start)
    ]
    assert len(pieces) <= most
    assert sum(pieces) == tiles.upper_triangle()
    assert [start for start, _ in tiles.bands(0, images)] == [0, *(end for _, end in tiles.bands(0, images))][:-1]
    high = [end - start for start, end in tiles.bands(0, images)]
    assert all(4 * rows * images <= 2**30 for rows, (start, _) in zip(high, tiles.bands(0, 10_000), strict=False))


@pytest.mark.parametrize("k", [3, 400])
def test_the_best_are_chosen_in_little_memory(monkeypatch, k):
    monkeypatch.setattr(backends, "_SELECTED", 2000)
    block = torch.randn(70, 400, generator=torch.Generator().manual_seed(0)).round(decimals=1).abs()
    with Questions() as seen:
        distances, columns = TorchBackend(torch.device("cpu")).smallest(block, k)
    assert seen.largest <= max(8 * 2000, 8 * 70 * k)
    right, order = block.sort(dim=1, stable=True)
    assert torch.equal(distances, right[:, :k]) and torch.equal(columns, order[:, :k])


def test_the_estimate_knows_of_the_selection(monkeypatch):
    """On a GPU torch selects the k best of each query, in memory that the estimate counts."""
    sides = [torch.from_numpy(side) for side in people(18, 30, 400, 8)]
    needed = {}
    for selected in (2**20, 2**24):
        monkeypatch.setattr(backends, "_SELECTED", selected)
        monkeypatch.setattr(reranking, "backend_for", TorchBackend)
        needed[selected] = reranking._Job(*sides, reranking.Reranking(), "")._bytes_needed()
    assert needed[2**24] - needed[2**20] == backends._SELECTION_BYTES * (2**24 - 2**20)
