"""The terms of the objective, named as in the paper (CVPR 2019, section 3; numbers: docs/method.md, section 2).

Reconstructions and the divergence from the label are not here: `dgfast.kernels.l1_kl_loss` sums them in one pass.
"""

from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor

from dgfast.config import LabelStyle


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Identity loss: the mean negative log-likelihood of the right identity.

    Args:
        logits: [N, K], of any float format.
        labels: [N] int64, classes.
    Returns:
        scalar, fp32.
    Source:
        paper, equations 3, 6 and 9.
    """
    return F.cross_entropy(logits.float(), labels)


def real(maps: list[Tensor]) -> Tensor:
    """D's least-squares term for real images: sum over scales of mean((D(x) - 1)^2).

    Args:
        maps: D's answer at each scale, [N, 1, h, w].
    Returns:
        scalar, fp32.
    Source:
        paper, equation 7, in the least-squares form (Mao et al., ICCV 2017).
    """
    return reduce(add, [(m.float() - 1).square().mean() for m in maps])


def fake(maps: list[Tensor]) -> Tensor:
    """D's least-squares term for generated images: sum over scales of mean(D(x)^2).

    Args:
        maps: D's answer at each scale, [N, 1, h, w].
    Returns:
        scalar, fp32.
    Source:
        paper, equation 7, in the least-squares form.
    """
    return reduce(add, [m.float().square().mean() for m in maps])


def gradient_penalty(maps: list[Tensor], images: Tensor) -> Tensor:
    """R1: sum over scales of mean_n ||grad_x sum(D(x_n))||^2.

    Args:
        maps: D's answers to real images at each scale, [N, 1, h, w].
        images: those images, [N, 3, H, W], with requires_grad.
    Returns:
        scalar, fp32, which can be differentiated once more.
    Source:
        Mescheder et al., ICML 2018, equation 9.
    """
    penalty = images.new_zeros(())
    for m in maps:
        (gradient,) = torch.autograd.grad(m.sum(), images, create_graph=True)
        penalty = penalty + gradient.float().square().sum((1, 2, 3)).mean()
    return penalty


KNOWN_LABELS = ("appearance", "uniform")  # styles whose labels are known without asking the teacher


def label(
    style: LabelStyle, teacher_logits: Tensor | None, appearance: Tensor, structure: Tensor, num_classes: int
) -> Tensor:
    """The label of generated images for the primary head.

    Args:
        style: soft: mean of the softmaxes of the views; hard: its best class; appearance: the identity whose clothes
            the image wears; uniform: all classes alike (LSRO); two-label: the soft label restricted to the two
            identities.
        teacher_logits: [V, N, K], the teacher on V views (image and mirror); None will do for `KNOWN_LABELS`.
        appearance: [N] int64, identities whose clothes the images wear.
        structure: [N] int64, identities whose bodies the images show.
        num_classes: K, identities of the training set.
    Returns:
        probabilities [N, K], fp32, detached.
    Raises:
        ValueError: there is no such style, or it has to ask the teacher and has no answer.
    Source:
        paper, section 3.2, the q of equation 8; the alternatives are those of its ablation.
    """
    # Comparing builds a one-hot row without looking at its values on the host, as F.one_hot does on a CPU.
    classes = torch.arange(num_classes, device=appearance.device)
    if style == "appearance":
        return (appearance[:, None] == classes).float()
    if style == "uniform":
        return torch.full((len(appearance), num_classes), 1 / num_classes, device=appearance.device)
    if teacher_logits is None:
        raise ValueError(f"label style {style!r} asks the teacher, and has no answer")
    probabilities = teacher_logits.detach().float().softmax(-1).mean(0)
    if style == "soft":
        return probabilities
    if style == "hard":
        return (probabilities.argmax(1, keepdim=True) == classes).float()
    if style == "two-label":
        either = (appearance[:, None] == classes) | (structure[:, None] == classes)
        kept = probabilities.clamp_min(torch.finfo(torch.float32).tiny) * either
        return kept / kept.sum(1, keepdim=True)
    raise ValueError(f"label style {style!r} is unknown")


def confident(teacher_logits: Tensor, least: float) -> Tensor:
    """Which generated images the teacher is sure of.

    Args:
        teacher_logits: [V, N, K], the teacher on V views (image and mirror).
        least: probability, 0 .. 1, that the best class must have in the mean of the views.
    Returns:
        [N, 1] fp32: 1 for those images, 0 for all others.
    """
    probabilities = teacher_logits.detach().float().softmax(-1).mean(0)
    return (probabilities.amax(1, keepdim=True) >= least).float()
