"""The network that is exported: of E_a only what the test feature needs."""

import torch
from torch import Tensor, nn

from dgfast.inference import Model
from dgfast.models.appearance import IdentityHead
from dgfast.retrieval.features import combine


class Embedder(nn.Module):
    """Pictures of people to test features: backbone, and of either head what comes before the classifier.

    Args:
        model: trained; its modules are shared, not copied.
        mirror: each picture's mirror image counts as well, as in `Model.embed` (docs/method.md, section 3); twice the
            work.
    """

    def __init__(self, model: Model, mirror: bool):
        super().__init__()
        encoder = model.appearance
        self.backbone = encoder.backbone
        self.prim, self.fine = (_without_classifier(head) for head in (encoder.prim, encoder.fine))
        self.alpha, self.mirror = model.alpha, mirror
        self.length = 2 * model.config.embedding
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """The vectors, such that the dot product of two, divided by 1 + alpha, is their score.

        Args:
            images: [N, 3, H, W] float32, RGB, ImageNet-normalised.
        Returns:
            [N, 2 * embedding]: the primary half of length 1, and the fine-grained one of length sqrt(alpha).
        """
        # Both images go through the backbone as one batch: each weight then has one user, so that exporters fold
        # BatchNorm into it.
        pooled = self.backbone(torch.cat([images, images.flip(3)]) if self.mirror else images).amax((2, 3))
        halves = [_unit(head(pooled)) for head in (self.prim, self.fine)]
        if self.mirror:
            halves = [_unit(half.unflatten(0, (2, -1)).sum(0)) for half in halves]
        return combine(halves[0], halves[1], self.alpha)


def _without_classifier(head: IdentityHead) -> nn.Sequential:
    return nn.Sequential(head.reduce, head.norm)


def _unit(x: Tensor) -> Tensor:
    """What torch's `normalize` computes, in three operations of ONNX instead of six."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
