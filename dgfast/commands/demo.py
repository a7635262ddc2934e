"""Built-in pedestrians for the commands' `--demo`: people whom no preset trains on, drawn in seconds."""

import numpy as np

from dgfast.pedestrians import Parameters, first_photographs

_SEED = 77  # no preset trains on these people
# Numbers of people who are seen well, and whose clothes differ.
BODIES = (3, 23, 17, 5)
CLOTHES = (8, 1, 13, 20)


def demo_people(people: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """Photographs of built-in pedestrians.

    Args:
        people: their numbers, such as `BODIES`.
        size: height and width, pixels.
    Returns:
        [N, H, W, 3] uint8 RGB, one of each.
    """
    parameters = Parameters(identities=24, test_identities=12, seed=_SEED, difficulty=0.5, size=size)
    return first_photographs(parameters, people)
