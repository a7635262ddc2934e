"""A trained E_a as an ONNX file: the network, its graph, number formats, and what is written beside it.

docs/export.md says how to use the file in a tracker.
"""

from .about import BUILT_IN, about, data_set_of, default_name
from .embedder import Embedder
from .graph import least_cosine, onnx_graph, require_packages
from .precision import Precision, half, quantised
from .write import write_onnx

__all__ = [
    "BUILT_IN",
    "Embedder",
    "Precision",
    "about",
    "data_set_of",
    "default_name",
    "half",
    "least_cosine",
    "onnx_graph",
    "quantised",
    "require_packages",
    "write_onnx",
]
