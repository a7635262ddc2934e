"""The report of a run: one HTML page that needs nothing else, of what its directory holds and what its networks see."""

from .looks import Looks, look, unseen
from .page import write_report

__all__ = ["Looks", "look", "unseen", "write_report"]
