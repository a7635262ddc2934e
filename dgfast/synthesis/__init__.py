"""Synthesis: pictures of people in other people's clothes, and how good they are."""

from .interpolate import between_bodies, between_clothes
from .swap import dress, swap_matrix

__all__ = ["between_bodies", "between_clothes", "dress", "swap_matrix"]
