"""Swaps: people in other people's clothes, pair by pair or everybody in everybody's."""

import numpy as np
import torch
from torch import Tensor

from dgfast.data.batches import denormalise, normalise
from dgfast.models import DGNet
from dgfast.models.structure import grey

BATCH = 64  # pictures per forward pass


def swap_matrix(networks: DGNet, structures: Tensor, appearances: Tensor) -> Tensor:
    """Every body in everybody's clothes, with heads: `matrix_picture` of `swap_all`.

    Args:
        networks: in eval mode.
        structures: [S, 3, H, W], normalised, on the networks' device; they give the bodies.
        appearances: [A, 3, H, W], likewise; they give the clothes.
    Returns:
        picture [(A + 1) (H + 2) + 2, (S + 1) (W + 2) + 2, 3] uint8 on the CPU.
    Source:
        paper, figure 5.
    """
    swaps = swap_all(networks, structures, appearances)
    return matrix_picture(denormalise(structures).cpu(), denormalise(appearances).cpu(), swaps)


@torch.inference_mode()
def swap_all(networks: DGNet, structures: Tensor, appearances: Tensor) -> Tensor:
    """Every body in everybody's clothes: G(s, f) for all pairs.

    Args:
        networks: in eval mode.
        structures: [S, 3, H, W], normalised, on the networks' device; they give the bodies.
        appearances: [A, 3, H, W], likewise; they give the clothes.
    Returns:
        [A, S, 3, H, W] uint8 on the CPU.
    """
    f = torch.cat([networks.look(images) for images in appearances.split(BATCH)])
    columns = []
    for bodies in structures.split(BATCH):
        s = networks.structure(grey(bodies))
        made = [denormalise(networks.dress(s, code.expand(len(s), -1), bodies)).cpu() for code in f]
        columns.append(torch.stack(made))
    return torch.cat(columns, 1)


def matrix_picture(structures: Tensor, appearances: Tensor, swaps: Tensor) -> Tensor:
    """A table of swaps: the first row shows the images of the bodies, the first column those of the clothes.

    Args:
        structures: [S, 3, H, W] uint8, the images that gave the bodies.
        appearances: [A, 3, H, W] uint8, the images that gave the clothes.
        swaps: [A, S, 3, H, W] uint8.
    Returns:
        [(A + 1) (H + 2) + 2, (S + 1) (W + 2) + 2, 3] uint8.
    """
    from torchvision.utils import make_grid  # not above: it loads torch's compiler, a second and a half

    cells = [torch.full_like(structures[:1], 255), structures]
    for own, row in zip(appearances, swaps, strict=True):
        cells += [own[None], row]
    grid = make_grid(torch.cat(cells), nrow=len(structures) + 1, padding=2, pad_value=255)
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
        pictures = networks.dress(networks.structure(grey(body)), networks.look(other), body)
        made.append(denormalise(pictures).permute(0, 2, 3, 1).cpu())
    return torch.cat(made).numpy()
