"""The file: a graph with what `about` says inside it, and the same beside it as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgfast.files import replacing, write_json

if TYPE_CHECKING:
    import onnx


def write_onnx(model: "onnx.ModelProto", values: Mapping[str, Any], path: Path) -> None:
    """Write the graph to one file, weights and all, and `values` into it and to a .json beside it.

    Args:
        model: a graph; its metadata are replaced.
        values: what `about` says.
        path: a file that ends in .onnx.
    Raises:
        CannotWrite: the system does not let it.
    """
    import onnx

    model.producer_name, model.producer_version = str(values["made_by"]).split(" ", 1)
    del model.metadata_props[:]
    for name, value in values.items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    onnx.checker.check_model(model)
    with replacing(path) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))
    write_json(dict(values), path.with_suffix(".json"))
