"""Re-ranking on a GPU gives what it gives on the CPU.

The same under the toolkit's checker, for memory, races and barriers:

    compute-sanitizer --tool memcheck --leak-check full python -m pytest -q tests/gpu/test_reranking.py
    compute-sanitizer --tool racecheck python -m pytest -q tests/gpu/test_reranking.py
    compute-sanitizer --tool synccheck python -m pytest -q tests/gpu/test_reranking.py
"""

import numpy as np
import pytest
import torch

from dgfast import _rerank
from dgfast.retrieval import rerank, reranking
from dgfast.retrieval.backends import CudaBackend, TorchBackend
from tests.test_cuda_reranking import GOLDENS, on_a_grid


@pytest.mark.parametrize(
    ("n", "queries", "k1", "k2", "variant"),
    [(900, 100, 20, 6, "zhong"), (331, 330, 23, 1, "squared"), (64, 1, 40, 9, "zhong")],
)
@pytest.mark.parametrize("backend", [CudaBackend, TorchBackend])
def test_device_equals_cpu(n, queries, k1, k2, variant, backend, monkeypatch):
    if backend is CudaBackend and not _rerank.build_info()["cuda"]:
        pytest.skip("the extension was built without CUDA")
    features = torch.from_numpy(on_a_grid(n, 24, n // 12))
    setting = {"k1": k1, "k2": k2, "variant": variant}
    expected = rerank(features[:queries], features[queries:], **setting)
    monkeypatch.setattr(reranking, "backend_for", backend)
    result = rerank(features[:queries].cuda(), features[queries:].cuda(), **setting)
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=1e-6)


def test_device_equals_goldens():
    recorded = np.load(GOLDENS)
    query, gallery = (torch.from_numpy(recorded[name]).cuda() for name in ("query", "gallery"))
    result = rerank(query, gallery, k1=23, k2=6, lambda_=0.3)
    expected = torch.from_numpy(recorded["zhong_k1=23_k2=6_lambda=0.3"])
    torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=1e-5)
