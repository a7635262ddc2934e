"""Structure jitter: E_s sees people in other tones, so that it cannot tell G how dark the clothes are.

The grey picture gives the tone of the clothes away. While it does, reconstruction never asks the appearance code for
it, and a swap keeps the brightness of the body's own clothes. With another smooth random tone for every part of the
grey picture, edges and folds stay and the tone has to come from the code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, COLUMNS = 5, 2  # of the grid of random gains and offsets, which is interpolated to the picture
GAIN = 1.5  # gains are drawn from -1.5 .. 1.5: below 0, dark and bright change places
OFFSET = 1.0  # offsets are drawn from -1 .. 1, in the deviations of ImageNet's colours


def jitter_structure(grey: Tensor, probability: float) -> Tensor:
    """Give grey pictures other tones.

    The draws come from torch's generator of the pictures' device, as dropout's do.

    Args:
        grey: [N, 1, H, W], normalised.
        probability: 0 .. 1, of each picture; the others stay as they are.
    Returns:
        [N, 1, H, W].
    """
    if probability == 0:
        return grey
    n = len(grey)
    grids = torch.rand(n, 2, ROWS, COLUMNS, device=grey.device).mul(2).sub(1)
    fields = F.interpolate(grids, size=grey.shape[2:], mode="bilinear", align_corners=True)
    changed = grey * (GAIN * fields[:, :1]) + OFFSET * fields[:, 1:]
    chosen = torch.rand(n, 1, 1, 1, device=grey.device) < probability
    return torch.where(chosen, changed, grey).to(memory_format=torch.channels_last)
