"""E_a, the appearance encoder: a re-ID backbone with two identity heads, and the code that the decoder paints with."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import make_backbone


class AppearanceOutput(NamedTuple):
    """What E_a says of N images.

    code: [N, channels * parts], channel-major; prim, fine: the re-ID features [N, embedding] after BatchNorm;
    prim_logits, fine_logits: [N, K].
    """

    code: Tensor
    prim: Tensor
    fine: Tensor
    prim_logits: Tensor
    fine_logits: Tensor


class IdentityHead(nn.Module):
    """Linear, BatchNorm, Dropout, Linear (method, section 1): the embedding after BatchNorm is the re-ID feature."""

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
        """[N, channels] -> feature [N, embedding], logits [N, K]."""
        feature = self.norm(self.reduce(x))
        return feature, self.classify(self.dropout(feature))


class AppearanceEncoder(nn.Module):
    """E_a.

    Args:
        backbone: name of the backbone.
        num_classes: K, identities of the training set.
        parts: horizontal stripes of the appearance code (4).
        embedding: length of the two re-ID features (512).
        prim_dropout, fine_dropout: of the two heads (0.5 and 0.75).
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        parts: int = 4,
        embedding: int = 512,
        prim_dropout: float = 0.5,
        fine_dropout: float = 0.75,
    ):
        super().__init__()
        self.backbone = make_backbone(backbone)
        self.parts = parts
        self.code_length = self.backbone.channels * parts
        self.prim = IdentityHead(self.backbone.channels, embedding, num_classes, prim_dropout)
        self.fine = IdentityHead(self.backbone.channels, embedding, num_classes, fine_dropout)

    def forward(self, images: Tensor) -> AppearanceOutput:
        """[N, 3, H, W], normalised -> AppearanceOutput. The code is not detached here: training/step.py says where it
        is."""
        features = self.backbone(images)
        code = F.adaptive_max_pool2d(features, (self.parts, 1)).flatten(1)
        pooled = features.amax((2, 3))
        prim, prim_logits = self.prim(pooled)
        fine, fine_logits = self.fine(pooled)
        return AppearanceOutput(code, prim, fine, prim_logits, fine_logits)
