"""The networks of DG-Net: E_a, E_s, G, D and the teacher."""

from .appearance import AppearanceEncoder, AppearanceOutput
from .decoder import Decoder
from .dgnet import DGNet
from .discriminator import Discriminator
from .structure import StructureEncoder
from .teacher import Teacher

__all__ = [
    "AppearanceEncoder",
    "AppearanceOutput",
    "DGNet",
    "Decoder",
    "Discriminator",
    "StructureEncoder",
    "Teacher",
]
