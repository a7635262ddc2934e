"""What several networks share: activated borders, the residual block, recomputation, initialisation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dgfast.kernels import adain, reflect

SLOPE = 0.2  # LeakyReLU of every generative network


def reflect_activated(x: Tensor) -> Tensor:
    """Return LeakyReLU of x with a reflected border of one pixel.

    The activation works in place on the bordered tensor. So of both steps only the tensor that the next convolution
    keeps is kept.

    Args:
        x: [N, C, H, W], a convolution's output.

    Returns:
        [N, C, H + 2, W + 2].
    """
    return F.leaky_relu_(reflect(x, 1), SLOPE)


class _Inside(torch.autograd.Function):
    """The slice without the border, with a backward pass that keeps the memory format.

    PyTorch's own backward of a slice fills a contiguous tensor, whatever the format of the gradient.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor) -> Tensor:
        return padded[..., 1:-1, 1:-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return F.pad(grad, (1,) * 4)


def inside(padded: Tensor) -> Tensor:
    """Return the view without the border of one pixel; its gradient keeps the memory format, too.

    Args:
        padded: [N, C, H + 2, W + 2].

    Returns:
        [N, C, H, W].
    """
    return _Inside.apply(padded)


class InstanceNormBlock(nn.Module):
    """[3x3 IN LeakyReLU, 3x3 IN] + x, the residual block of E_s (docs/method.md, section 1).

    It reads and returns bordered tensors, so that nothing pads between two blocks.

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.conv2 = nn.Conv2d(channels, channels, 3)

    def forward(self, padded: Tensor, out_pad: int) -> Tensor:
        """Return the block's output.

        Args:
            padded: [N, C, H + 2, W + 2], with a reflected border of one pixel.
            out_pad: width of the output's reflected border, pixels.

        Returns:
            [N, C, H + 2 out_pad, W + 2 out_pad].
        """
        y = adain(self.conv1(padded), slope=SLOPE, pad=1)
        return adain(self.conv2(y), residual=inside(padded), pad=out_pad)


def places(height: int, width: int, like: Tensor) -> Tensor:
    """Where each place of a map is.

    Args:
        height: h, places.
        width: w, places.
        like: its device and number format are taken.

    Returns:
        [2, h, w]: how far down and how far to the right, -1 .. 1.
    """
    row, column = (torch.linspace(-1, 1, size, dtype=like.dtype, device=like.device) for size in (height, width))
    return torch.stack(torch.meshgrid(row, column, indexing="ij"))


def through(block: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """Return the block's output.

    Args:
        block: called with the inputs.
        inputs: of the block.
        recompute: do not keep the block's activations, but compute them again in the backward pass.
    """
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False) if recompute else block(*inputs)


def kaiming_fan_in(module: nn.Module) -> None:
    """Draw the start of E_s and G: Kaiming's normal distribution by fan-in, biases 0 (docs/method.md, section 1).

    Args:
        module: whose convolutions and linear layers, all with biases, are filled.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, a=0, mode="fan_in")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # they all have one


@torch.no_grad()
def gaussian(module: nn.Module) -> None:
    """Draw the start of D: normal with deviation 0.02, biases 0 (docs/method.md, section 1).

    Args:
        module: whose convolutions, all with biases, are filled.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.normal_(0, 0.02)
            if layer.bias is not None:
                layer.bias.zero_()


def surroundings(images: Tensor, around: int) -> Tensor:
    """The mean of each pixel's surroundings, as far as they lie within the picture.

    Args:
        images: [N, C, H, W].
        around: pixels to each side.
    Returns:
        [N, C, H, W].
    """
    height, width = images.shape[2:]
    place = torch.arange(max(height, width), device=images.device)
    near = ((place[:, None] - place).abs() <= around).to(images.dtype)
    # The mean over a square is a mean over columns of means over rows. As two products of matrices it takes an eighth
    # of the time of avg_pool2d on a CPU.
    down, across = (reach / reach.sum(1, keepdim=True) for reach in (near[:height, :height], near[:width, :width]))
    return down @ (images @ across.T)
