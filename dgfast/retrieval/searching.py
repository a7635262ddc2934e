"""The pictures of a gallery that are most like a query: only the best of each, never all scores at once."""

import torch
from torch import Tensor

from dgfast.errors import UserError

from .backends import backend_for, exact_products

_SCORES = 1 << 26  # held at a time


def most_alike(query: Tensor, gallery: Tensor, k: int, alpha: float) -> tuple[Tensor, Tensor]:
    """The k gallery images with the highest scores for each query, best first; the lower index wins a tie.

    Args:
        query: [Q, D] float32, test features as `features.combine` makes them.
        gallery: [G, D] float32, likewise, on the same device.
        k: 1 .. G.
        alpha: weight of the fine-grained cosine in them, >= 0.
    Returns:
        scores [Q, k] float32, -1 .. 1 but for rounding, and gallery indices [Q, k] int64.
    Raises:
        UserError: a feature is NaN.
    """
    backend = backend_for(query.device)
    scores, places = [torch.empty(0, k)], [torch.empty(0, k, dtype=torch.int64)]
    for part in query.split(max(1, _SCORES // len(gallery))):
        with exact_products(query.device):
            distances = torch.mm(part, gallery.T).neg_()
        if distances.isnan().any():
            raise UserError("search: a score is NaN; expected numbers: look for NaN in the vectors")
        nearest, indices = backend.smallest(distances, k)
        scores.append(nearest.neg_().div_(1 + alpha).cpu())
        places.append(indices.cpu())
    return torch.cat(scores), torch.cat(places)


def scores_of(query: Tensor, gallery: Tensor, indices: Tensor, alpha: float) -> Tensor:
    """The scores of gallery images that something else has chosen, such as re-ranking.

    Args:
        query: [Q, D], see `most_alike`.
        gallery: [G, D].
        indices: [Q, k] int64, of gallery images.
        alpha: see `most_alike`.
    Returns:
        [Q, k] float32.
    """
    rows = [gallery[chosen] @ one for one, chosen in zip(query, indices, strict=True)]
    return torch.stack(rows) / (1 + alpha)
