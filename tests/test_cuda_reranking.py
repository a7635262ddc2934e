"""The CUDA path of re-ranking, run on the CPU (tests/cuda_on_cpu), against a dense oracle, the goldens and the CPU
path. tests/gpu/test_reranking.py has the tests that need a GPU.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dgfast import _rerank
from dgfast.retrieval import backends, neighbours, rerank, rerank_blocks, rerank_topk, reranking
from tests.cuda_on_cpu.extension import Extension
from tests.cuda_on_cpu.machine import SOURCES, Machine, Reach, Sparse, build, poisoned
from tests.cuda_on_cpu.oracle import Setting, dense, distances, random_case, symmetric_products, weights

ROOT = Path(__file__).parents[1]
GOLDENS = Path(__file__).parent / "goldens" / "rerank.npz"
TOLERANCE = 2e-6  # of a few hundred float32 terms against float64
SCHEDULES = [0, 1, 7]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return Machine(build(tmp_path_factory.mktemp("cuda_on_cpu") / "cuda.so"))


def clustered(n: int, dims: int, identities: int, seed: int = 0) -> np.ndarray:
    r = np.random.default_rng(seed)
    centres = r.standard_normal((identities, dims))
    return (centres[r.integers(0, identities, n)] + 0.4 * r.standard_normal((n, dims))).astype(np.float32)


def on_a_grid(n: int, dims: int, identities: int, seed: int = 0) -> np.ndarray:
    """Clustered features whose inner products are exact in float32: equal on every device, and full of ties."""
    return (np.round(clustered(n, dims, identities, seed) * 8) / 8).astype(np.float32)


def expected_lists(d: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of each row by (distance, index); (infinity, the largest int32) where there are not as many."""
    order = np.argsort(d, axis=1, kind="stable")[:, :k].astype(np.int32)
    free = ((0, 0), (0, k - order.shape[1]))
    return (
        np.pad(np.take_along_axis(d, order, 1), free, constant_values=np.inf),
        np.pad(order, free, constant_values=np.iinfo(np.int32).max),
    )


@pytest.mark.parametrize("seed", range(15))
def test_result_equals_dense_oracle(machine, seed):
    case = random_case(seed)
    machine.schedule(SCHEDULES[seed % 3])
    result = machine.rerank(case.features, case.products, case.queries, case.setting, block=case.block, rows=case.rows)
    expected = dense(case.products, case.queries, case.setting)
    np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(("zhong_k1=20_k2=1_lambda=0.3", Setting(20, 1, 0.3)), id="k2=1"),
        pytest.param(("zhong_k1=20_k2=6_lambda=0.0", Setting(20, 6, 0.0)), id="lambda=0"),
        pytest.param(("zhong_k1=23_k2=6_lambda=0.3", Setting(23, 6, 0.3)), id="k1=23"),
        pytest.param(("zhong_k1=26_k2=7_lambda=0.3", Setting(26, 7, 0.3)), id="k1=26"),
        pytest.param(("squared_k1=20_k2=6_lambda=0.3", Setting(20, 6, 0.3, True)), id="squared"),
    ],
)
def test_result_equals_goldens(machine, setting):
    name, setting = setting
    recorded = np.load(GOLDENS)
    features = np.concatenate([recorded["query"], recorded["gallery"]])
    machine.schedule(3)
    result = machine.rerank(features, symmetric_products(features), 96, setting, block=(201, 333), rows=500)
    np.testing.assert_allclose(result, recorded[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("n", "k", "block"),
    [(700, 7, (230, 701)), (97, 33, (13, 40)), (97, 97, (64, 31)), (5, 9, (1, 1)), (1, 1, (1, 1))],
)
def test_lists_hold_the_nearest_and_the_lower_index_wins(machine, n, k, block, schedule):
    products = symmetric_products(on_a_grid(n, 5, 9))
    norms = products.diagonal() * np.float32(
        1.01
    )  # so that an image is at distance 0 from itself only because it is itself
    machine.schedule(schedule)
    made = machine.nearest(products, norms, k, block=block, seed=schedule, padding=schedule)
    d = distances(products, norms)
    expected = expected_lists(d, k)
    np.testing.assert_array_equal(made.distances, expected[0])
    np.testing.assert_array_equal(made.indices, expected[1])
    np.testing.assert_array_equal(made.farthest, d.max(axis=1))


def test_lists_of_some_rows_from_whole_rows(machine):
    products = symmetric_products(on_a_grid(90, 4, 6))
    norms = products.diagonal() * np.float32(1.01)
    made = machine.nearest(products, norms, 11, block=(8, 17), symmetric=False, seed=1, first=31, rows=40)
    d = distances(products, norms)[31:71]
    np.testing.assert_array_equal(made.indices, expected_lists(d, 11)[1])
    np.testing.assert_array_equal(made.farthest, d.max(axis=1))


@pytest.mark.parametrize("symmetric", [True, False], ids=["columns", "rows"])
def test_ever_nearer_images_with_far_ones_between(machine, symmetric):
    """Buffers fill unevenly and to the brim: nearly every image beats all before it."""
    n = 1000
    place = np.arange(n) if symmetric else np.arange(n, 0, -1)
    place = np.where(np.random.default_rng(3).random(n) < 0.4, 4000, place)
    place[0 if not symmetric else -1] = 0 if not symmetric else n
    features = place[:, None].astype(np.float32)
    products, norms = features @ features.T, features[:, 0] ** 2
    machine.schedule(1)
    made = machine.nearest(
        products, norms, 100, block=(n if symmetric else 2, n), symmetric=symmetric, rows=n if symmetric else 2
    )
    expected = expected_lists(distances(products, norms)[: len(made.indices)], 100)
    np.testing.assert_array_equal(made.distances, expected[0])
    np.testing.assert_array_equal(made.indices, expected[1])


def test_more_queries_than_are_at_work_at_a_time(machine):
    queries, gallery = 1100, 6
    n = queries + gallery
    columns = np.stack([np.random.default_rng(i).permutation(8)[:3] for i in range(n)]).astype(np.int32)
    values = np.random.default_rng(0).random((n, 3), np.float32) / 3
    sparse = Sparse(np.arange(0, 3 * n + 1, 3), columns.ravel(), values.ravel())
    v = np.zeros((n, 8))
    np.put_along_axis(v, columns, values, 1)
    common = np.minimum(v[:queries, None], v[queries:]).sum(axis=2)
    assert machine.size("jaccard_workspace", queries, gallery) < queries * gallery * 4
    farthest, block = np.full(n, 2, np.float32), np.ones((queries, gallery), np.float32)
    machine.schedule(5)
    result = machine.jaccard(sparse, machine.invert(sparse, queries), farthest, 0, block, Setting(lambda_=0.5))
    np.testing.assert_allclose(result, 0.5 * (1 - common / (2 - common)) + 0.25, rtol=0, atol=1e-6)


def test_longest_list_fits_and_a_longer_one_is_refused(machine):
    products = symmetric_products(clustered(70, 4, 3))
    norms = products.diagonal().copy()
    made = machine.nearest(products, norms, machine.longest_list, block=(50, 40))
    np.testing.assert_array_equal(made.indices, expected_lists(distances(products, norms), machine.longest_list)[1])
    with pytest.raises(AssertionError, match="nearest_block"):
        machine.nearest(products, norms, machine.longest_list + 1, block=(50, 40))


def test_large_sets_are_built_in_the_workspace(machine):
    features = on_a_grid(170, 6, 2)
    products = symmetric_products(features)
    setting = Setting(k1=159)
    nearest = machine.nearest(products, products.diagonal().copy(), setting.near, block=(170, 170))
    assert machine.size("expand_workspace", Reach(setting.near, setting.half), 40) > 0
    back = machine.reciprocal(nearest, setting.near)
    machine.schedule(5)
    made = machine.expand(nearest, back, setting.half, features, False, 130, 40)
    expected = weights(products, setting)[130:]
    row, column = np.nonzero(expected)
    np.testing.assert_array_equal(np.repeat(np.arange(40), np.diff(made.offsets)), row)
    np.testing.assert_array_equal(made.columns, column)
    np.testing.assert_allclose(made.values, expected[row, column], rtol=1e-5)


@pytest.mark.parametrize(
    "features",
    [np.zeros((70, 3)), np.ones((70, 3)) * 7.3, clustered(70, 8, 1)],
    ids=["zero", "equal", "one identity"],
)
@pytest.mark.parametrize("queries", [1, 69])
def test_degenerate_features(machine, features, queries):
    products = symmetric_products(features.astype(np.float32))
    setting = Setting(k1=19, k2=6)
    result = machine.rerank(features.astype(np.float32), products, queries, setting)
    np.testing.assert_allclose(result, dense(products, queries, setting), rtol=0, atol=TOLERANCE)


def test_same_bits_for_every_partition_and_order_of_threads(machine):
    features = clustered(120, 16, 12)
    products, setting = symmetric_products(features), Setting(k1=14, k2=5)
    results = []
    for schedule, block, rows in [(0, (120, 120), 120), (1, (17, 29), 33), (2, (5, 120), 1), (9, (64, 33), 119)]:
        machine.schedule(schedule)
        results.append(machine.rerank(features, products, 50, setting, block=block, rows=rows, seed=schedule))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("seed", range(4))
def test_every_step_equals_the_cpu(machine, seed):
    cpu = _rerank.cpu
    case = random_case(100 + seed)
    n, setting = len(case.features), case.setting
    norms = case.products.diagonal().copy()
    machine.schedule(SCHEDULES[seed % 3])

    nearest = machine.nearest(case.products, norms, setting.near, block=case.block)
    theirs = [np.empty_like(array) for array in (nearest.distances, nearest.indices, nearest.farthest)]
    lists = cpu.NeighbourLists(*theirs, 0)
    cpu.nearest_start(lists)
    cpu.nearest_block(np.array(case.products), 0, 0, norms, lists, True, "")
    for mine, other in zip((nearest.distances, nearest.indices, nearest.farthest), theirs, strict=True):
        np.testing.assert_array_equal(mine, other)

    back, their_back = machine.reciprocal(nearest, setting.near), poisoned((n, setting.near), "int32")
    cpu.reciprocal(lists, their_back)
    np.testing.assert_array_equal(back, their_back)

    weights = machine.expand(nearest, back, setting.half, case.features, setting.squared, 0, n)
    counts = poisoned(n, "int64")
    cpu.expand_count(lists, back, setting.half, 0, counts)
    np.testing.assert_array_equal(np.diff(weights.offsets), counts)
    same = _with_room_of(weights)
    cpu.expand_fill(lists, back, setting.half, case.features, setting.squared, 0, _bound(same), "")
    _assert_equal_rows(weights, same)

    averaged = machine.average(nearest, setting.k2, weights, 0, n)
    cpu.average_count(lists, setting.k2, _bound(weights), 0, counts)
    np.testing.assert_array_equal(np.diff(averaged.offsets), counts)
    same = _with_room_of(averaged)
    cpu.average_fill(lists, setting.k2, _bound(weights), 0, _bound(same))
    _assert_equal_rows(averaged, same)

    inverted = machine.invert(averaged, case.queries)
    counts = poisoned(n, "int64")
    cpu.invert_count(_bound(averaged), case.queries, counts)
    np.testing.assert_array_equal(np.diff(inverted.offsets), counts)
    same = _with_room_of(inverted)
    cpu.invert_fill(_bound(averaged), case.queries, _bound(same))
    np.testing.assert_array_equal(inverted.columns, same.columns)
    np.testing.assert_array_equal(inverted.values, same.values)

    block = distances(case.products[: case.queries, case.queries :], norms, 0, case.queries)
    result = machine.jaccard(averaged, inverted, nearest.farthest, 0, block, setting)
    farthest = theirs[2]
    cpu.jaccard(_bound(averaged), _bound(same), farthest, 0, setting.lambda_, setting.squared, block)
    np.testing.assert_allclose(result, block, rtol=0, atol=1e-6)


def _bound(rows: Sparse) -> object:
    return _rerank.cpu.SparseRows(rows.offsets, rows.columns, rows.values)


def _with_room_of(rows: Sparse) -> Sparse:
    return Sparse(rows.offsets, np.empty_like(rows.columns), np.empty_like(rows.values))


@pytest.fixture
def extension(machine, monkeypatch):
    """`backend_for` gives a CudaBackend whose kernels run in the emulator, once `use` has been called."""
    extension = Extension(machine)

    def use():
        monkeypatch.setattr(backends, "_rerank", SimpleNamespace(cuda=extension, on_threads=_rerank.on_threads))
        monkeypatch.setattr(
            backends.CudaBackend, "_run", lambda self, step, *arguments: getattr(extension, step)(*arguments, 0)
        )
        monkeypatch.setattr(reranking, "backend_for", backends.CudaBackend)

    extension.use = use
    return extension


@pytest.mark.parametrize(
    ("n", "queries", "k1", "k2", "variant"),
    [(150, 20, 20, 6, "zhong"), (77, 76, 13, 1, "squared"), (33, 1, 31, 4, "zhong")],
)
def test_cuda_backend(extension, monkeypatch, n, queries, k1, k2, variant):
    """`rerank` as it runs on a GPU, but for the device: blocks, chunks and workspaces as CudaBackend makes them."""
    features = torch.from_numpy(on_a_grid(n, 24, n // 11))
    setting = {"k1": k1, "k2": k2, "variant": variant}
    expected = rerank(features[:queries], features[queries:], **setting)
    extension.use()
    monkeypatch.setattr(backends, "_ROWS_A_CALL", 37)
    monkeypatch.setattr(backends.CudaBackend, "tile", (40, 64))
    result = rerank(features[:queries], features[queries:], **setting)
    assert {"nearest_block", "expand_fill", "invert_fill", "jaccard"} <= extension.called
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tile", [None, (256, 96)], ids=["a GPU's tile", "low bands of queries, high ones of others"])
@pytest.mark.parametrize("queries", [1, 100, 700])
def test_every_height_of_bands_gives_the_same(extension, monkeypatch, tile, queries):
    """The tile of a GPU, and bands as a gallery of millions has them; the k best are chosen a few rows at a time."""
    features = torch.from_numpy(on_a_grid(720, 24, 60))
    sides = features[:queries], features[queries:]
    best = rerank_topk(*sides, 9, k1=7, k2=3)
    expected = rerank(*sides, k1=7, k2=3)
    extension.use()
    if tile:
        monkeypatch.setattr(backends.CudaBackend, "tile", tile)
        monkeypatch.setattr(neighbours, "_BLOCK_BYTES", 4 * 64 * 720)
        monkeypatch.setattr(backends, "_SELECTED", 1500)
    torch.testing.assert_close(rerank(*sides, k1=7, k2=3), expected, rtol=0, atol=1e-6)
    blocks = torch.cat([block for _, block in rerank_blocks(*sides, k1=7, k2=3)])
    torch.testing.assert_close(blocks, expected, rtol=0, atol=1e-6)
    distances, indices = rerank_topk(*sides, 9, k1=7, k2=3)
    torch.testing.assert_close(distances, best[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(blocks.gather(1, indices), distances, rtol=0, atol=0)


def _assert_equal_rows(mine: Sparse, other: Sparse) -> None:
    mine, other = mine.sorted(), other.sorted()
    np.testing.assert_array_equal(mine.columns, other.columns)
    np.testing.assert_allclose(mine.values, other.values, rtol=0, atol=1e-6)


@needs_compiler
@pytest.mark.slow
def test_nothing_is_out_of_bounds(tmp_path):
    runtime = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("needs AddressSanitizer's runtime")
    library = build(tmp_path / "cuda.so", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    # Leaks are not looked for: the interpreter itself leaves memory behind.
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-m", "tests.cuda_on_cpu.machine", str(library)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-3000:]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "90"])
def test_no_kernel_spills_registers(tmp_path, architecture):
    kernels = 0
    for source in SOURCES:
        if source.suffix != ".cu":
            continue
        flags = [
            "-std=c++20",
            "-O3",
            f"-arch=sm_{architecture}",
            "-cubin",
            "-Xptxas",
            "-v",
            "-Wno-deprecated-gpu-targets",
        ]
        done = subprocess.run(
            ["nvcc", *flags, str(source), "-o", str(tmp_path / "out")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
        assert set(spills) <= {("0", "0", "0")}, f"{source.name}: {done.stderr}"
        kernels += len(spills)
    assert kernels >= 12
