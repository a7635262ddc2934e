"""How sure a model is that a picture shows a certain person."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dgfast.models import DGNet

from .features import combine, dgnet_halves, mirrored


def class_probability(networks: DGNet, images: Tensor, classes: Sequence[int]) -> Tensor:
    """For people whom the model was trained on: the probability that its primary head gives them.

    Args:
        networks: in eval mode.
        images: [N, 3, H, W], normalised, on the networks' device.
        classes: class of the person whom each should show.
    Returns:
        [N], 0 .. 1.
    """
    wanted = torch.tensor(classes, device=images.device)
    return networks.appearance(images).prim_logits.float().softmax(1).gather(1, wanted[:, None])[:, 0]


def likeness(networks: DGNet, images: Tensor, means: Tensor, alpha: float) -> Tensor:
    """For anybody: the cosine between the picture's test feature and the mean one of the person's photographs.

    Args:
        networks: in eval mode.
        images: [N, 3, H, W], normalised, on the networks' device.
        means: [N, 2 D], for each picture what `mean_features` gives for the person whom it should show.
        alpha: weight of the fine-grained cosine, >= 0.
    Returns:
        [N], -1 .. 1.
    """
    prim, fine = mirrored(dgnet_halves(networks), images)
    return F.cosine_similarity(combine(prim, fine, alpha), means.to(images.device))


def mean_features(features: Tensor, persons: Sequence[int]) -> Mapping[int, Tensor]:
    """The mean test feature of each person.

    Args:
        features: [N, 2 D], of photographs.
        persons: whom each shows.
    Returns:
        person -> [2 D].
    """
    numbers = torch.tensor(persons)
    return {person: features[numbers == person].mean(0) for person in dict.fromkeys(persons)}
