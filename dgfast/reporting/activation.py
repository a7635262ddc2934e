"""Where the appearance encoder looks: the energy of its last feature map, as colours over the photograph."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgfast.data.batches import denormalise

OPAQUE = 0.55  # share of the colours in the overlay


@torch.inference_mode()
def activation_maps(backbone: nn.Module, images: Tensor) -> Tensor:
    """The sum of the squares of all channels at each place of the feature map, brought to 0 .. 1 in each image.

    Args:
        backbone: images to feature maps [N, C, h, w]; in eval mode.
        images: [N, 3, H, W], normalised, on the backbone's device.
    Returns:
        [N, H, W] float32 on the CPU, interpolated between the places; 0 everywhere where the map is even.
    """
    energy = backbone(images).float().square().sum(1, keepdim=True).cpu()
    low, high = energy.amin((2, 3), keepdim=True), energy.amax((2, 3), keepdim=True)
    shares = (energy - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    return F.interpolate(shares, images.shape[2:], mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)


def overlay(images: Tensor, maps: Tensor) -> np.ndarray:
    """The maps in colours over grey photographs.

    Args:
        images: [N, 3, H, W], normalised.
        maps: [N, H, W], 0 .. 1.
    Returns:
        [N, H, W, 3] uint8, RGB.
    """
    grey = denormalise(images).float().mean(1).cpu().numpy()[..., None]
    pictures = [
        (1 - OPAQUE) * below + OPAQUE * colours(shares) for below, shares in zip(grey, maps.numpy(), strict=True)
    ]
    return np.stack(pictures).round().clip(0, 255).astype(np.uint8)


def colours(shares: np.ndarray) -> np.ndarray:
    """The colours of the scale, from dark (0) to bright (1), which people who see fewer colours can follow, too.

    Args:
        shares: [H, W] float, 0 .. 1.
    Returns:
        [H, W, 3] uint8, RGB.
    """
    return cv2.applyColorMap((shares * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
