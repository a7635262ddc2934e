"""Retrieval: features of images, rankings, re-rankings, their scores and pictures."""

from .metrics import RankedHits, RetrievalScores, cmc_map
from .neighbours import Neighbours, gather_neighbours
from .reranking import Reranking, nearest, rerank, rerank_blocks, rerank_topk

__all__ = [
    "Neighbours",
    "RankedHits",
    "Reranking",
    "RetrievalScores",
    "cmc_map",
    "gather_neighbours",
    "nearest",
    "rerank",
    "rerank_blocks",
    "rerank_topk",
]
