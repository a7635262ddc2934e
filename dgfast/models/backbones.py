"""The re-ID backbones: images to a feature map, without the last stage's stride (docs/method.md, section 1)."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dgfast import checksums
from dgfast.errors import UserError


class Block(nn.Module):
    """Two convolutions beside a shortcut: [N, inputs, H, W] -> [N, outputs, H/stride, W/stride].

    torchvision has the same block. It is written here because torchvision loads torch's compiler, for which every
    command would wait a second and a half.

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the first convolution and the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        # Made even where it is not used: it draws random numbers, and a seed's weights shall stay what they were.
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output.

        Args:
            x: [N, inputs, H, W].
        """
        straight = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + straight)


class SmallResNet(nn.Sequential):
    """A residual network of four blocks: [N, 3, H, W] -> [N, 8 width, H/8, W/8].

    It is not of the paper. With it the whole method runs in minutes without a GPU.

    Args:
        width: channels of the first convolution.

    Attributes:
        channels: depth of the feature map, 8 width.
    """

    channels: int

    def __init__(self, width: int):
        super().__init__(
            nn.Conv2d(3, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            Block(width, width, 1),
            Block(width, 2 * width, 2),
            Block(2 * width, 4 * width, 2),
            Block(4 * width, 8 * width, 1),
        )
        self.channels = 8 * width
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class ResNet50(nn.Module):
    """torchvision's ResNet-50 without its head, the last stage at stride 1.

    Attributes:
        channels: depth of the feature map.
    """

    channels = 2048

    def __init__(self) -> None:
        from torchvision.models import resnet50  # not above: see Block

        super().__init__()
        net = resnet50(weights=None)
        net.layer4[0].conv2.stride = (1, 1)
        net.layer4[0].downsample[0].stride = (1, 1)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map.

        Args:
            images: [N, 3, H, W], RGB, normalised.

        Returns:
            [N, 2048, H/16, W/16].
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


BACKBONES: dict[str, Callable[[], SmallResNet | ResNet50]] = {
    "resnet50": ResNet50,
    "small16": lambda: SmallResNet(16),
    "small32": lambda: SmallResNet(32),
}


def make_backbone(name: str) -> SmallResNet | ResNet50:
    """Make a backbone with fresh weights.

    Args:
        name: one of `BACKBONES`.

    Returns:
        Images [N, 3, H, W] to a feature map; its attribute `channels` is the map's depth.

    Raises:
        UserError: no backbone of that name.
    """
    if name not in BACKBONES:
        raise UserError(f"backbone {name!r} is unknown; expected one of {', '.join(BACKBONES)}: mend --backbone")
    return BACKBONES[name]()


def imagenet_file(cache: Path) -> Path:
    """Return the file in which torchvision keeps the ImageNet weights of ResNet-50.

    Args:
        cache: torch's hub folder, `torch.hub.get_dir()`.
    """
    from torchvision.models import ResNet50_Weights  # not above: see Block

    return cache / "checkpoints" / Path(ResNet50_Weights.IMAGENET1K_V1.url).name


def load_backbone_weights(backbone: nn.Module, source: str, cache: Path) -> None:
    """Fill a backbone with weights.

    Args:
        backbone: as `make_backbone` made it.
        source: "none" leaves it as it is; "imagenet" needs a ResNet-50, and the network or the file in `cache`; else a
            file of torchvision's names, .pth or .safetensors.
        cache: torch's hub folder, `torch.hub.get_dir()`.

    Raises:
        UserError: the weights are not there, cannot be read, or belong to another network.
    """
    if source == "none":
        return
    if source == "imagenet":
        state = _imagenet(backbone, cache)
    else:
        state = read_tensors(Path(source))
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}  # the classifier's
    wanted = backbone.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    wrong = [name for name in wanted if name in state and getattr(state[name], "shape", None) != wanted[name].shape]
    if missing or wrong:
        raise UserError(
            f"backbone weights {source}: {len(missing)} of {len(wanted)} entries are missing and {len(wrong)} have"
            f" another shape (first: {(missing + wrong)[0]}); expected a state dict of torchvision's names for this"
            " backbone"
        )
    backbone.load_state_dict(state, strict=False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict; no code in the file is run.

    Args:
        path: a .safetensors file, or a pickle of tensors alone.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        UserError: the file is missing, is no such file, or holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(
            f"weights file {path} does not exist; expected a .pth, .pt or .safetensors file: check the path"
        )
    try:
        checksums.verify(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise TypeError(f"it holds a {type(state).__name__} without names")
        return state
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"weights file {path} cannot be read ({reason[:160]}); expected tensors alone") from error


def _imagenet(backbone: nn.Module, cache: Path) -> dict[str, Tensor]:
    if not isinstance(backbone, ResNet50):
        raise UserError("--backbone-weights imagenet exists for resnet50 alone; use --backbone-weights none or a file")
    file = imagenet_file(cache)
    if not file.is_file():
        from torchvision.models import ResNet50_Weights  # not above: see Block

        try:
            ResNet50_Weights.IMAGENET1K_V1.get_state_dict(progress=True)
        except Exception as error:
            raise UserError(
                f"ImageNet weights cannot be downloaded here ({type(error).__name__}); expected the network or the"
                f" file: fetch {file.name} from PyTorch's model pages on another machine, put it at {file},"
                " or pass --backbone-weights FILE or none"
            ) from error
    return read_tensors(file)
