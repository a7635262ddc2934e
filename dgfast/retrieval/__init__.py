"""Retrieval: features of images, rankings, their scores and pictures."""

from .metrics import RetrievalScores, cmc_map

__all__ = ["RetrievalScores", "cmc_map"]
