"""Synthesis: pictures of people in other people's clothes, and how good they are."""

from .interpolate import between_bodies, between_clothes
from .swap import dress, matrix_picture, swap_all, swap_matrix

__all__ = ["between_bodies", "between_clothes", "dress", "matrix_picture", "swap_all", "swap_matrix"]
