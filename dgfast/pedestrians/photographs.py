"""Photographs of synthetic pedestrians in memory, as a reader decodes them from the files of the data set."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .figure import build_figure
from .picture import World, make_world, take_picture
from .plan import Parameters, PlannedImage, check, identity_of, images_of


def first_photographs(parameters: Parameters, people: Sequence[int]) -> np.ndarray:
    """One photograph of each of some people of a data set, without the data set.

    Args:
        parameters: of the data set.
        people: numbers of N of its identities, from 1.
    Returns:
        [N, H, W, 3] uint8 RGB: the first image of each.
    Raises:
        UserError: a parameter is out of range.
    """
    check(parameters)
    world = make_world(parameters.seed, parameters.difficulty)
    return np.stack([photograph(world, parameters, images_of(world, parameters, p)[0], p) for p in people])


def photograph(world: World, parameters: Parameters, image: PlannedImage, person: int) -> np.ndarray:
    """An image of the data set, developed to JPEG and decoded again.

    Args:
        world: the data set's.
        parameters: of the data set.
        image: how it is taken.
        person: number of the person whom it shows.
    Returns:
        [H, W, 3] uint8 RGB.
    """
    figure = build_figure(identity_of(parameters.seed, person), world.pack)
    picture = take_picture(world, figure, image.shot, parameters.size)
    return np.asarray(Image.open(io.BytesIO(picture.jpeg())))
