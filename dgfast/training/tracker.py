"""What the loop says to whatever shows the numbers and pictures of a run to people; trackers.py has who listens."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

Scores = Mapping[str, Mapping[str, float]]


class Tracker(Protocol):
    """What is told to a tracker; iterations are counted from 0 within a stage."""

    def stage(self, stage: str, start: int) -> None:
        """A stage begins, or goes on.

        Args:
            stage: its name.
            start: first iteration; what was told of it and of later ones is told again.
        """

    def scalars(self, stage: str, iteration: int, values: Mapping[str, float]) -> None:
        """Numbers of an iteration.

        Args:
            stage: its name.
            iteration: that they belong to.
            values: losses and the like by name.
        """

    def picture(self, stage: str, iteration: int, name: str, image: Tensor) -> None:
        """A picture.

        Args:
            stage: its name.
            iteration: that it belongs to.
            name: of the picture.
            image: [H, W, 3] uint8.
        """

    def scores(self, scores: Scores) -> None:
        """The scores of the finished run.

        Args:
            scores: kind of feature -> name of the score -> value.
        """

    def close(self, finished: bool) -> None:
        """Send what has not been sent; the last call.

        Args:
            finished: whether the run has come to its end.
        """
