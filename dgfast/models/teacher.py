"""The teacher: the baseline re-ID network whose soft labels guide the primary feature (CVPR 2019, section 3.2)."""

from typing import NamedTuple

from torch import Tensor, nn

from .appearance import IdentityHead
from .backbones import make_backbone


class TeacherOutput(NamedTuple):
    """What the teacher returns for N images of K identities.

    feature: [N, embedding], the re-ID feature, after BatchNorm.
    logits: [N, K].
    """

    feature: Tensor
    logits: Tensor


class Teacher(nn.Module):
    """Backbone, global average pool, one identity head; trained with cross-entropy alone.

    Args:
        num_classes: K, identities of the training set.
        backbone: one of `backbones.BACKBONES`.
        embedding: length of the re-ID feature.
        dropout: probability of the head's Dropout, 0 to 1.
    """

    def __init__(self, num_classes: int, backbone: str = "resnet50", embedding: int = 512, dropout: float = 0.5):
        super().__init__()
        self.backbone = make_backbone(backbone)
        self.head = IdentityHead(self.backbone.channels, embedding, num_classes, dropout)

    def forward(self, images: Tensor) -> TeacherOutput:
        """Return feature and logits.

        Args:
            images: [N, 3, H, W], RGB, normalised.

        Returns:
            See `TeacherOutput`.
        """
        return TeacherOutput(*self.head(self.backbone(images).mean((2, 3))))
