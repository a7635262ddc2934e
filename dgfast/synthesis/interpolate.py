"""Between two people: the appearance code, or the structure code, on the straight line from one's to the other's."""

import numpy as np
import torch
from torch import Tensor

from dgfast.data.batches import denormalise
from dgfast.models import DGNet
from dgfast.models.structure import grey

_BATCH = 32  # pictures per forward pass


@torch.inference_mode()
def between_clothes(networks: DGNet, body: Tensor, start: Tensor, end: Tensor, steps: int) -> np.ndarray:
    """One body in clothes between two people's: G(s, (1 - w) f_start + w f_end), w from 0 to 1.

    The ends are the swaps of the body with either.

    Args:
        networks: in eval mode.
        body: [1, 3, H, W], normalised, on the networks' device; it gives the structure.
        start: [1, 3, H, W], likewise; it gives the first clothes.
        end: [1, 3, H, W], likewise; it gives the last clothes.
        steps: pictures, at least 2.
    Returns:
        [steps, H, W, 3] uint8 RGB.
    Source:
        paper, figure 6.
    """
    structure = networks.structure(grey(body))
    first, last = (networks.look(images) for images in (start, end))
    made = [
        _pixels(networks.dress(structure, torch.lerp(first, last, weights[:, None]), body))
        for weights in _weights(steps, body)
    ]
    return np.concatenate(made)


@torch.inference_mode()
def between_bodies(networks: DGNet, start: Tensor, end: Tensor, clothes: Tensor, steps: int) -> np.ndarray:
    """Bodies between two people's in one person's clothes: G((1 - w) s_start + w s_end, f), w from 0 to 1.

    The ends are the swaps of either body. With `--background kept` a picture needs a photograph to lie over, and
    between two bodies there is none: the two photographs are cross-faded with the same w. That is the only choice that
    ends with both swaps and moves as evenly as the code does. So where G leaves the photograph as it is, which is what
    it foretells for the scene, the picture shows a double exposure of both scenes, and of whatever of the two people G
    does not cover.

    Args:
        networks: in eval mode.
        start: [1, 3, H, W], normalised, on the networks' device; it gives the first structure.
        end: [1, 3, H, W], likewise; it gives the last structure.
        clothes: [1, 3, H, W], likewise; it gives the appearance.
        steps: pictures, at least 2.
    Returns:
        [steps, H, W, 3] uint8 RGB.
    """
    first, last = (networks.structure(grey(images)) for images in (start, end))
    code = networks.look(clothes)
    made = []
    for weights in _weights(steps, start):
        w = weights[:, None, None, None]
        bodies = torch.lerp(start, end, w)
        made.append(_pixels(networks.dress(torch.lerp(first, last, w), code.expand(len(w), -1), bodies)))
    return np.concatenate(made)


def strip(start: np.ndarray, end: np.ndarray, between: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    """A row of pictures: from the first photograph over what was made to the last photograph.

    Args:
        start: [H, W, 3] uint8.
        end: [H, W, 3] uint8.
        between: [N, H, W, 3] uint8.
        other: [H, W, 3] uint8, the photograph of what stays the same, at the far left; None leaves it out.
    Returns:
        [H + 4, columns, 3] uint8; the photographs stand apart.
    """
    white = np.full((start.shape[0], 1, 3), 255, np.uint8)
    narrow, wide = white.repeat(2, 1), white.repeat(10, 1)
    row = [narrow] + ([other, wide] if other is not None else []) + [start, wide]
    for image in between:
        row += [image, narrow]
    row[-1] = wide
    return np.pad(np.concatenate([*row, end, narrow], 1), ((2, 2), (0, 0), (0, 0)), constant_values=255)


def there_and_back(pictures: np.ndarray) -> np.ndarray:
    """The frames of an animation without an end: forth, then back without showing either end twice.

    Args:
        pictures: [N, H, W, 3].
    Returns:
        [2 N - 2, H, W, 3], N being at least 2.
    """
    return np.concatenate([pictures, pictures[-2:0:-1]])


def _weights(steps: int, like: Tensor) -> tuple[Tensor, ...]:
    """0 .. 1 in equal steps, in batches; `torch.lerp` gives either end exactly."""
    return torch.linspace(0, 1, steps, dtype=like.dtype, device=like.device).split(_BATCH)


def _pixels(images: Tensor) -> np.ndarray:
    return denormalise(images).permute(0, 2, 3, 1).cpu().numpy()
