"""E_a, the appearance encoder: a re-ID backbone with two identity heads, and the code that the decoder paints with."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import make_backbone


class AppearanceOutput(NamedTuple):
    """What E_a returns for N images of K identities.

    code: [N, channels * parts], the appearance code, channel-major.
    prim: [N, embedding], the primary re-ID feature, after BatchNorm.
    fine: [N, embedding], the fine-grained re-ID feature, after BatchNorm.
    prim_logits: [N, K], of the primary head.
    fine_logits: [N, K], of the fine-grained head.
    features: [N, channels, H', W'], the backbone's feature map.
    """

    code: Tensor
    prim: Tensor
    fine: Tensor
    prim_logits: Tensor
    fine_logits: Tensor
    features: Tensor


class IdentityHead(nn.Module):
    """Linear, BatchNorm, Dropout, Linear; what follows BatchNorm is the re-ID feature (docs/method.md, section 1).

    Args:
        channels: depth of the pooled feature map.
        embedding: length of the re-ID feature.
        num_classes: K, identities of the training set.
        dropout: probability of Dropout, 0 to 1.
    """

    def __init__(self, channels: int, embedding: int, num_classes: int, dropout: float):
        super().__init__()
        self.reduce = nn.Linear(channels, embedding)
        self.norm = nn.BatchNorm1d(embedding)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(embedding, num_classes)
        nn.init.kaiming_normal_(self.reduce.weight, mode="fan_out")
        nn.init.normal_(self.classify.weight, std=0.001)
        nn.init.zeros_(self.reduce.bias)
        nn.init.zeros_(self.classify.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return feature and logits.

        Args:
            x: [N, channels], the pooled feature map.

        Returns:
            The re-ID feature [N, embedding] and the logits [N, K].
        """
        feature = self.norm(self.reduce(x))
        return feature, self.classify(self.dropout(feature))


class AppearanceEncoder(nn.Module):
    """E_a: backbone, appearance code from horizontal stripes, primary and fine-grained identity head.

    Args:
        num_classes: K, identities of the training set.
        backbone: one of `backbones.BACKBONES`.
        parts: horizontal stripes of the appearance code.
        embedding: length of the two re-ID features.
        prim_dropout: probability of the primary head's Dropout, 0 to 1.
        fine_dropout: probability of the fine-grained head's Dropout, 0 to 1.
        mean_code: pool the stripes of the appearance code by their mean instead of their maximum: what a stripe looks
            like altogether, not its most telling spot.

    Attributes:
        code_length: values of the appearance code.

    Source: CVPR 2019, sections 3.1 and 3.2.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        parts: int = 4,
        embedding: int = 512,
        prim_dropout: float = 0.5,
        fine_dropout: float = 0.75,
        mean_code: bool = False,
    ):
        super().__init__()
        self.backbone = make_backbone(backbone)
        self.parts = parts
        self.pool = F.adaptive_avg_pool2d if mean_code else F.adaptive_max_pool2d
        self.code_length = self.backbone.channels * parts
        self.prim = IdentityHead(self.backbone.channels, embedding, num_classes, prim_dropout)
        self.fine = IdentityHead(self.backbone.channels, embedding, num_classes, fine_dropout)

    def forward(self, images: Tensor) -> AppearanceOutput:
        """Return code, features and logits; nothing is detached here, but where training/step.py says so.

        Args:
            images: [N, 3, H, W], RGB, normalised.

        Returns:
            See `AppearanceOutput`.
        """
        return self.describe(self.backbone(images))

    def describe(self, features: Tensor) -> AppearanceOutput:
        """Return what `forward` does, of images that have passed the backbone.

        Args:
            features: [N, channels, h, w], what the backbone returns.

        Returns:
            See `AppearanceOutput`.
        """
        code = self.pool(features, (self.parts, 1)).flatten(1)
        pooled = features.amax((2, 3))
        prim, prim_logits = self.prim(pooled)
        fine, fine_logits = self.fine(pooled)
        return AppearanceOutput(code, prim, fine, prim_logits, fine_logits, features)
