"""Other number formats of a graph: half precision, and 8-bit integers found with the help of pictures."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from .graph import INPUT

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "fp16", "int8"]


def half(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph with weights and arithmetic in half precision; input, output and the lengths stay in single.

    Args:
        model: a graph in single precision; it is not changed.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    copy = type(model)()
    copy.CopyFrom(model)
    lengths = ["ReduceL2", "Clip", "Div"]  # their epsilon of 1e-12 is 0 in half precision
    made = convert_float_to_float16(copy, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *lengths])
    OnnxModel(made).topological_sort()  # its casts stand at the end
    return made


def quantised(model: "onnx.ModelProto", images: np.ndarray, batch: int = 32) -> "onnx.ModelProto":
    """The graph with an 8-bit backbone: QuantizeLinear and DequantizeLinear stand around each operation.

    Weights have a scale per channel; activations one, from the least and the greatest value that the pictures give.
    Both heads stay in single precision. Activations are unsigned, which onnxruntime is three times as fast at on x86
    as at signed ones.

    Args:
        model: a graph in single precision.
        images: [N, 3, H, W] float32, ImageNet-normalised, such as the graph will see, N at least 1.
        batch: pictures per forward pass, at least 1.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._starts = iter(range(0, len(images), batch))

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self._starts, None)
            return None if start is None else {INPUT: images[start : start + batch]}

    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        ready = type(model)()
        ready.CopyFrom(model)
        add_pre_process_metadata(ready)  # shapes are known and BatchNorm is folded: nothing else is to be prepared
        onnx.save(ready, given)
        quantize_static(
            given,
            made,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", "Relu", "MaxPool"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(made)
