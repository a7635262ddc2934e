"""The swap: what a perfect exchange of clothes between two images looks like.

An image is rendered a second time with the same person, pose, camera, light, passers-by and noise, in the clothes of
another person.
"""

from dataclasses import replace

from .figure import build_figure
from .picture import Picture, Shot, World, take_picture
from .plan import identity_of


def render_swap(world: World, shot: Shot, size: tuple[int, int], *, wearer: int, owner: int) -> Picture:
    """One person in the clothes of another.

    Args:
        world: the data set's.
        shot: how the picture is taken.
        size: (height, width) in pixels.
        wearer: number of the person who is shown.
        owner: number of the person whom the clothes belong to.
    Returns:
        the picture, with the mask of the clothes that are seen.
    """
    dressed = replace(identity_of(world.seed, wearer), clothes=identity_of(world.seed, owner).clothes)
    return take_picture(world, build_figure(dressed, world.pack), shot, size)
