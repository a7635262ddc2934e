"""`dgfast rerank`, `dgfast eval --rerank`, and a run over two processes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dgfast.commands import cli, evaluate
from dgfast.config import to_json
from dgfast.errors import UserError
from dgfast.models.dgnet import make_teacher, save_model
from dgfast.retrieval import rerank, rerank_topk
from dgfast.retrieval.backends import CpuBackend
from tests import tiny
from tests.test_reranking import people


@pytest.fixture
def files(tmp_path):
    q, g = people(0, 20, 150, 16)
    np.save(tmp_path / "q.npy", q)
    np.save(tmp_path / "g.npy", g)
    return tmp_path, q, g


def call(folder: Path, *words: str, out: str = "d.npy") -> None:
    files = {"--query": "q.npy", "--gallery": "g.npy", "--out": out}
    cli.dispatch(["rerank", *(word for flag, name in files.items() for word in (flag, str(folder / name))), *words])


def test_writes_distances(files, capsys):
    folder, q, g = files
    call(folder, "--k1", "9", "--lambda", "0.5", "--variant", "squared", "--metric", "cosine")
    expected = rerank(q, g, 9, lambda_=0.5, variant="squared", metric="cosine")
    assert (np.load(folder / "d.npy") == expected).all()
    shown = capsys.readouterr()
    assert "d.npy  distances [20, 150]" in shown.out and "re-ranking: nearest" in shown.err


def test_writes_the_best_into_a_new_folder(files):
    folder, q, g = files
    call(folder, "--topk", "7", out="new/best.npz")
    distances, indices = rerank_topk(q, g, 7)
    with np.load(folder / "new" / "best.npz") as best:
        assert (best["distances"] == distances).all() and (best["indices"] == indices).all()


@pytest.mark.parametrize(
    ("words", "out", "message"),
    [
        (["--topk", "3"], "d.npy", "expected a name that ends in .npz"),
        ([], "d.npz", "expected a name that ends in .npy"),
        (["--k1", "170"], "d.npy", "k1 is 170 for 170 images"),
        (["--topk", "151"], "d.npz", "k is 151 for 150 gallery images"),
        (["--query", "absent.npy"], "d.npy", "cannot read absent.npy"),
        (["--query", __file__], "d.npy", "expected a NumPy file"),
        (["--device", "tpu"], "d.npy", "--device is 'tpu'; expected auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "d.npy", "--device is cuda:99; found"),
        ([], "q.npy/d.npy", "q.npy cannot be written to"),
        ([], "q.npy", "which is also --query"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(files, words, out, message):
    before = {p: p.read_bytes() for p in files[0].iterdir()}
    with pytest.raises(UserError, match=message):
        call(files[0], *words, out=out)
    assert {p: p.read_bytes() for p in files[0].iterdir()} == before


def test_wrong_files_are_named(files):
    folder, q, _ = files
    for array, message in (
        (np.empty((0, 16), np.float32), "query has no images"),
        (np.ones(16, np.float32), r"query has shape \[16\]"),
        (np.ones((3, 16), int), "query holds int64"),
        (np.array([["text"]]), "query holds <U4"),
        (np.full((3, 16), np.nan, np.float32), "query row 0 holds NaN"),
    ):
        np.save(folder / "q.npy", array)
        with pytest.raises(UserError, match=message):
            call(folder)
        assert sorted(p.name for p in folder.iterdir()) == ["g.npy", "q.npy"]
    np.savez(folder / "q.npz", q)
    (folder / "q.npz").replace(folder / "q.npy")
    with pytest.raises(UserError, match="holds several arrays"):
        call(folder)


def test_interrupt_leaves_nothing(files, monkeypatch):
    monkeypatch.setattr(CpuBackend, "jaccard", lambda *arguments: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        call(files[0])
    assert sorted(p.name for p in files[0].iterdir()) == ["g.npy", "q.npy"]


RANKS = """
import os
import numpy as np
import torch.distributed as dist
from dgfast.retrieval import gather_neighbours, nearest, rerank_blocks

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
q, g = np.load("q.npy"), np.load("g.npy")


def share(n):
    return range(n * rank // ranks, n * (rank + 1) // ranks)


own = nearest(q, g, 21, rows=share(len(q) + len(g)))
everyone = gather_neighbours(own)
mine = [block for _, block in rerank_blocks(q, g, neighbours=everyone, queries=share(len(q)))]
np.save(f"rank{rank}.npy", np.concatenate(mine))
dist.destroy_process_group()
"""


def test_two_ranks_give_the_result_of_one(tmp_path):
    q, g = people(1, 45, 300, 24)
    for name, array in (("q", q), ("g", g)):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "ranks.py").write_text(RANKS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "ranks.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [np.load(tmp_path / f"rank{rank}.npy") for rank in (0, 1)]
    assert [len(part) for part in found] == [22, 23]
    np.testing.assert_allclose(np.concatenate(found), rerank(q, g), rtol=0, atol=1e-6)


def test_eval_adds_reranked_rows(tmp_path, capsys):
    market = tiny.market(tmp_path / "market", identities=4, images=3)
    config = tiny.config(market, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    save_model(make_teacher(config.model, 2), config.model, 2, tmp_path / "teacher.safetensors")
    words = ["--run", str(tmp_path), "--data-root", str(market), "--loader-workers", "0", "--rerank"]
    with pytest.raises(UserError, match="k1 is 20 for"):
        evaluate.main(words)
    evaluate.main([*words, "--k1", "4", "--k2", "2"])
    scores = json.loads((tmp_path / "eval-market1501.json").read_text())["scores"]
    assert list(scores) == ["histogram", "histogram_reranked", "baseline", "baseline_reranked"]
    assert set(scores["baseline"]) - set(scores["baseline_reranked"]) == {"rank1_multi", "mAP_multi"}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  re-ranked")]
    assert len(lines) == 2 and all(line.split()[-1] == "-" and len(line.split()) == 9 for line in lines)
