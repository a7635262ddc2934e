"""Swaps: people in other people's clothes, pair by pair or everybody in everybody's."""

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import make_grid

from dgfast.data.batches import denormalise, normalise
from dgfast.models import DGNet
from dgfast.models.structure import grey


@torch.inference_mode()
def swap_matrix(networks: DGNet, structures: Tensor, appearances: Tensor) -> Tensor:
    """Every body in everybody's clothes: G(s_column, f_row).

    The first row shows the images that give the bodies, the first column those that give the clothes.

    Args:
        networks: in eval mode.
        structures: [S, 3, H, W], normalised, on the networks' device; they give the bodies.
        appearances: [A, 3, H, W], likewise; they give the clothes.
    Returns:
        picture [(A + 1) (H + 2) + 2, (S + 1) (W + 2) + 2, 3] uint8 on the CPU.
    Source:
        paper, figure 5.
    """
    s = networks.structure(grey(structures))
    f = networks.appearance(appearances).code
    cells = [torch.cat([torch.full_like(structures[:1], 3.0), structures])]
    for own, code in zip(appearances, f, strict=True):
        cells.append(torch.cat([own[None], networks.dress(s, code.expand(len(s), -1), structures).float()]))
    grid = make_grid(denormalise(torch.cat(cells)).cpu(), nrow=len(s) + 1, padding=2, pad_value=255)
    return grid.permute(1, 2, 0).contiguous()


@torch.inference_mode()
def dress(networks: DGNet, bodies: np.ndarray, clothes: np.ndarray, batch: int = 32) -> np.ndarray:
    """Each body in the clothes of its partner: G(s_body, f_clothes).

    Args:
        networks: in eval mode.
        bodies: [N, H, W, 3] uint8 RGB; they give the bodies.
        clothes: [N, H, W, 3] uint8 RGB; they give the clothes.
        batch: pictures per forward pass.
    Returns:
        [N, H, W, 3] uint8 RGB.
    """
    device = next(networks.parameters()).device
    made = []
    for pair in zip(torch.from_numpy(bodies).split(batch), torch.from_numpy(clothes).split(batch), strict=True):
        body, other = (normalise(images.to(device)) for images in pair)
        pictures = networks.dress(networks.structure(grey(body)), networks.appearance(other).code, body)
        made.append(denormalise(pictures).permute(0, 2, 3, 1).cpu())
    return torch.cat(made).numpy()
