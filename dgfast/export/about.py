"""What a user of the file has to know: sizes, how pictures become its input, what its vectors mean, whose it is."""

import re
from typing import Any

import dgfast
from dgfast import run_directory
from dgfast.config import MAKE_THEIR_OWN
from dgfast.data.batches import IMAGENET_MEAN, IMAGENET_STD
from dgfast.data.datasets.load import BUILT_IN
from dgfast.inference import Model
from dgfast.model_card import licence_on_card

from .embedder import Embedder
from .graph import INPUT, OUTPUT
from .precision import Precision

UNKNOWN = "unknown"


def data_set_of(model: Model) -> str:
    """What the model was trained on.

    Args:
        model: trained.
    Returns:
        a data set's name, `BUILT_IN`, or `UNKNOWN` for a file without settings beside it.
    """
    if not (model.folder / run_directory.CONFIG).is_file():
        return UNKNOWN
    data = model.settings.data
    if data.data_root is None:  # imported weights of the reference name their data set by the preset
        return BUILT_IN if model.settings.preset in MAKE_THEIR_OWN else model.settings.preset
    described = run_directory.read_data(model.folder) or {}
    return described.get("name") or (data.dataset if data.dataset != "auto" else data.data_root.name)


def default_name(model: Model, precision: Precision, mirror: bool) -> str:
    """A file name that trackers understand: a network that BoxMOT knows, then the data set; lower case.

    The blocks of the small backbones are those of ResNet-18.

    Args:
        model: trained.
        precision: of the file.
        mirror: whether the mirror image counts.
    """
    network = "resnet50" if model.config.backbone == "resnet50" else "resnet18"
    data_set = re.sub(r"[^a-z0-9]+", "", data_set_of(model).lower()) or UNKNOWN
    return "_".join([network, "dgfast", data_set, *(["mirror"] if mirror else []), *_but_fp32(precision)]) + ".onnx"


def _but_fp32(precision: Precision) -> list[str]:
    return [] if precision == "fp32" else [precision]


def about(model: Model, network: Embedder, precision: Precision) -> dict[str, Any]:
    """All of it, as JSON has a form for.

    Args:
        model: trained.
        network: that is exported.
        precision: of the file.
    Raises:
        UserError: verification.json, where it is there, holds something else.
    """
    data_set = data_set_of(model)
    return {
        "made_by": f"dgfast {_version()}",
        "input": INPUT,
        "output": OUTPUT,
        "image_size": list(model.image_size),
        "colour": "RGB, 0 to 1 before normalising",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "interpolation": "bicubic, with antialiasing where pictures become smaller",
        "embedding": network.length,
        "alpha": model.alpha,
        "score": "dot product / (1 + alpha): -1 to 1; the same as the cosine of two vectors",
        "mirror": network.mirror,
        "precision": precision,
        "backbone": model.config.backbone,
        "data_set": data_set,
        "licence": _licence(model, data_set),
        **_thresholds(model),
    }


def _version() -> str:
    from importlib.metadata import version

    return version(dgfast.__name__)


def _licence(model: Model, data_set: str) -> str:
    """Of the weights: what came with them, or what their model card says; of the bundled ones that is Apache-2.0."""
    terms = model.folder / run_directory.LICENCE
    if terms.is_file():
        return terms.read_text().strip()
    licence = licence_on_card(model.folder) or "not said by who trained them"
    return f"weights: {licence}; trained on {data_set}, whose terms hold, too"


def _thresholds(model: Model) -> dict[str, Any]:
    """Scores from which on two pictures show the same person; None where nobody has measured them for these vectors."""
    values = run_directory.read_verification(model.folder)
    if values is None or values["kind"] != "both" or values["alpha"] != model.alpha:
        return {"threshold": None, "thresholds": {}}
    return {"threshold": values["threshold_eer"], "thresholds": values["thresholds"]}
