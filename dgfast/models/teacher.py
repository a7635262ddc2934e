"""The teacher: the paper's baseline re-ID network, whose soft labels guide the primary feature (paper, section 3.2)."""

from typing import NamedTuple

from torch import Tensor, nn

from .appearance import IdentityHead
from .backbones import make_backbone


class TeacherOutput(NamedTuple):
    """What the teacher says of N images: re-ID feature [N, embedding], logits [N, K]."""

    feature: Tensor
    logits: Tensor


class Teacher(nn.Module):
    """Backbone, global average pool, one identity head; trained with cross-entropy alone.

    Args:
        num_classes: K; backbone, embedding: as in AppearanceEncoder; dropout: of the head (0.5).
    """

    def __init__(self, num_classes: int, backbone: str = "resnet50", embedding: int = 512, dropout: float = 0.5):
        super().__init__()
        self.backbone = make_backbone(backbone)
        self.head = IdentityHead(self.backbone.channels, embedding, num_classes, dropout)

    def forward(self, images: Tensor) -> TeacherOutput:
        """[N, 3, H, W], normalised -> TeacherOutput."""
        return TeacherOutput(*self.head(self.backbone(images).mean((2, 3))))
