"""The Inception network of FID and KID, where the user has its weights."""

from pathlib import Path

from torch import nn

from dgfast.errors import UserError, how_to_install
from dgfast.models.backbones import read_tensors

FEATURE = "2048"  # the layer that the figures are defined by
FIRST = "Conv2d_1a_3x3.conv.weight"  # of its weights


def open_inception(file: Path) -> nn.Module:
    """The network as torch-fidelity builds it, which gives the figures that papers print.

    Args:
        file: torch-fidelity's weights-inception-2015-12-05-6726825d.pth, or a file of the same names.
    Returns:
        a module from [N, 3, H, W] uint8 RGB to a tuple that holds the features, [N, 2048].
    Raises:
        UserError: torch-fidelity is not installed, or the file cannot be read or is of another network.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError(
            "--inception needs torch-fidelity, which is not installed; expected the extra `quality`:"
            f" {how_to_install('quality')}"
        ) from error
    state = read_tensors(file)  # refuses files with code in them; the library would run it
    try:
        if FIRST not in state:  # before the network is built, which takes seconds
            raise KeyError(FIRST)
        return FeatureExtractorInceptionV3("inception-v3-compat", [FEATURE], feature_extractor_weights_path=str(file))
    except Exception as error:
        raise UserError(
            f"--inception {file} holds the weights of another network; expected those of FID as torch-fidelity has"
            " them, weights-inception-2015-12-05-6726825d.pth; pass that file, or leave the flag out"
        ) from error
