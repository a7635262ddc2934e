"""The owners of clothes: does a re-identification feature find whose clothes a generated picture shows?"""

from collections.abc import Mapping

import numpy as np
import torch

from dgfast.data.batches import normalise
from dgfast.models import DGNet

from .features import combine, dgnet_halves, mirrored
from .metrics import cmc_map, cosine_distances


def owner_scores(
    networks: DGNet, pictures: Mapping[str, np.ndarray], clothes: np.ndarray, owners: np.ndarray, alpha: float
) -> dict[str, dict[str, float]]:
    """Rank for each picture one image of every owner by E_a's test feature, both halves.

    Args:
        networks: in eval mode.
        pictures: kind -> [N, H, W, 3] uint8 RGB: people in the clothes of those whom `clothes` shows.
        clothes: [N, H, W, 3] uint8 RGB; of each owner the first image is ranked.
        owners: [N] int: number of the person whom each of `clothes` shows, above 0.
        alpha: weight of the fine-grained cosine, >= 0.
    Returns:
        kind -> "rank1" and "mAP" of the right owner, percent.
    """
    people, first = np.unique(owners, return_index=True)
    gallery = _features(networks, clothes[first], alpha)
    scores = {}
    for kind, images in pictures.items():
        # Another camera than the query's for the whole gallery, so that nothing is ignored.
        distances = cosine_distances(_features(networks, images, alpha), gallery)
        found = cmc_map(distances, owners, np.zeros_like(owners), people, np.ones_like(people))
        scores[kind] = {"rank1": round(100 * found.rank1, 3), "mAP": round(100 * found.mAP, 3)}
    return scores


@torch.inference_mode()
def _features(networks: DGNet, images: np.ndarray, alpha: float) -> torch.Tensor:
    """[N, 2 D]: the test feature of [N, H, W, 3] uint8 images."""
    device = next(networks.parameters()).device
    halves = [
        mirrored(dgnet_halves(networks), normalise(some.to(device))) for some in torch.from_numpy(images).split(32)
    ]
    prim, fine = (torch.cat(column) for column in zip(*halves, strict=True))
    return combine(prim, fine, alpha).cpu()
