"""Synthesis: pictures of people in other people's clothes."""

from .swap import swap_matrix

__all__ = ["swap_matrix"]
