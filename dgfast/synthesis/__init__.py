"""Synthesis: pictures of people in other people's clothes, and how good they are."""

from .swap import dress, swap_matrix

__all__ = ["dress", "swap_matrix"]
