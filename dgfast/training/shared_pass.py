"""One pass of E_a's backbone where two readers need the same features of the same images, and learn apart from each
other.

E_a meets each generated image twice: as a judge whose weights rest while the gradient reaches the image, and as a
learner whose weights take a gradient while the image is data. What the backbone computes is the same both times, to
the bit. Here it is computed once and kept once. The backward pass runs through it twice, since the two gradients part:
one is wanted at the images alone, the other at the weights alone.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from dgfast.models.appearance import AppearanceEncoder

from .stand_ins import parts_of


class Features(NamedTuple):
    """The same feature map [N, channels, h, w] for two readers.

    judged: passes its gradient on to the images, none to the weights.
    learned: passes its gradient on to the weights, none to the images.
    """

    judged: Tensor
    learned: Tensor


def shareable(network: AppearanceEncoder, batch_statistics: bool) -> bool:
    """Whether a frozen view of E_a computes the same features as E_a itself.

    Not where E_a has been compiled: what is compiled is the whole network, and its graph is gone after one backward
    pass.

    Args:
        network: E_a, in the mode in which it learns. Its backbone draws nothing at random.
        batch_statistics: whether BatchNorm of the frozen view normalises by the batch.
    """
    same = all(norm.training == batch_statistics for norm in parts_of(network).norms)
    return same and network._compiled_call_impl is None


def shared_pass(network: AppearanceEncoder, images: Tensor) -> Features:
    """Pass images through the backbone, for both readers.

    Args:
        network: E_a; BatchNorm normalises and counts as it is set.
        images: [N, 3, H, W].
    """
    return Features(*_Shared.apply(network.backbone, images, *parts_of(network).present))


class _Shared(Function):
    """Images [N, 3, H, W] and all of E_a's weights, as they stand in the network, to the feature map, twice."""

    @staticmethod
    def forward(ctx: Any, backbone: nn.Module, images: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        # A graph of its own, in which this pass's backward passes run.
        with torch.enable_grad():
            ctx.images = images.detach().requires_grad_(images.requires_grad)
            ctx.features = backbone(ctx.images)
        ctx.weights = [weight for weight in weights if weight.requires_grad]
        ctx.wanted = [weight.requires_grad for weight in weights]
        return ctx.features.detach(), ctx.features.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, judged: Tensor | None, learned: Tensor | None) -> tuple[Tensor | None, ...]:
        of_images: Tensor | None = None
        of_weights: tuple[Tensor | None, ...] = (None,) * len(ctx.weights)
        if judged is not None and ctx.needs_input_grad[1]:
            (of_images,) = torch.autograd.grad(ctx.features, ctx.images, judged, retain_graph=True)
        if learned is not None and ctx.weights:
            # The heads' weights are among them, and have no part in this.
            of_weights = torch.autograd.grad(ctx.features, ctx.weights, learned, allow_unused=True)
        found = iter(of_weights)
        return None, of_images, *(next(found) if wanted else None for wanted in ctx.wanted)
