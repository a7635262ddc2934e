"""The sample grid of a training run: originals, reconstructions and both swaps, side by side."""

import torch
from torch import Tensor

from dgfast.data.batches import denormalise
from dgfast.models import DGNet
from dgfast.models.structure import grey

from .frozen import evaluating


@torch.no_grad()
def sample_grid(networks: DGNet, a: Tensor, b: Tensor) -> Tensor:
    """Six rows: a, its reconstruction, a in b's clothes; b, its reconstruction, b in a's clothes.

    Args:
        networks: DG-Net; its mode is as before afterwards.
        a: images [N, 3, H, W], normalised, on the networks' device.
        b: other images, of the same shape.
    Returns:
        [6 (H + 2) + 2, N (W + 2) + 2, 3] uint8 on the CPU.
    """
    from torchvision.utils import make_grid  # not above: it loads torch's compiler, a second and a half

    with evaluating(networks, batch_statistics=False):
        s_a, s_b = networks.structure(grey(torch.cat([a, b]))).chunk(2)
        f_a, f_b = networks.look(torch.cat([a, b])).chunk(2)
        images = networks.dress(
            torch.cat([s_a, s_a, s_b, s_b]), torch.cat([f_a, f_b, f_b, f_a]), torch.cat([a, a, b, b])
        ).float()
    a_rec, a_in_b, b_rec, b_in_a = images.chunk(4)
    rows = torch.cat([a, a_rec, a_in_b, b, b_rec, b_in_a])
    return make_grid(denormalise(rows).cpu(), nrow=len(a), padding=2, pad_value=255).permute(1, 2, 0).contiguous()
