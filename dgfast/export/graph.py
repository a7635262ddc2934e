"""From the network to an ONNX graph with a dynamic batch, and whether the graph computes the same."""

import importlib.util
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from dgfast.errors import UserError, how_to_install

from .embedder import Embedder

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT, BATCH = "images", "features", "batch"
OPSET = 18  # of 2022: older runtimes take it, too
NEEDED = ("onnx", "onnxruntime", "onnxscript")


def require_packages() -> None:
    """Find out before anything else whether what an export needs is installed.

    Raises:
        UserError: a package is missing.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"dgfast export needs {', '.join(missing)}; expected the extra `onnx`: {how_to_install('onnx')}"
        )


def onnx_graph(network: Embedder, image_size: tuple[int, int]) -> "onnx.ModelProto":
    """The network as an ONNX graph: images [batch, 3, H, W] -> features [batch, D], float32.

    BatchNorm is folded into what is before it, and nothing in the file tells where it was made.

    Args:
        network: on the CPU.
        image_size: height and width, pixels.
    Raises:
        UserError: a package is missing.
    """
    require_packages()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about itself
        quiet = logging.getLogger("torch.onnx")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 3, *image_size),),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"images": {0: torch.export.Dim(BATCH)}},
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        finally:
            quiet.setLevel(level)
    assert program is not None
    graph = program.model_proto
    _forget_where(graph)
    return graph


def least_cosine(network: Embedder, model: bytes, images: np.ndarray) -> float:
    """How much a graph's vectors point the same way as the network's.

    Args:
        network: on the CPU.
        model: a serialised ONNX graph.
        images: [N, 3, H, W] float32, ImageNet-normalised, N at least 1.
    Returns:
        the least cosine of a picture's two vectors.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(session.run([OUTPUT], {INPUT: images})[0])
    with torch.inference_mode():
        ours = network(torch.from_numpy(images))
    return torch.cosine_similarity(ours.double(), theirs.double()).min().item()


def _forget_where(model: "onnx.ModelProto") -> None:
    """Remove the notes that torch makes for debugging: names of Python files, line by line."""
    del model.metadata_props[:]
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
