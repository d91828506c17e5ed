"""What converters' graphs need before they are packages. Works on the protobuf; imports no converter."""

from typing import Any

from onnx import helper

from foretell.core.errors import PackageError
from foretell.core.tensor import Signature


def name_outputs(graph: Any, signature: Signature) -> None:
    """Make a converted graph answer as `signature` says: its names, one axis where it says one, nothing more.

    Converters name outputs their own way, append some, fix the row axis, and give every prediction a second axis.
    Raises `PackageError` if the graph makes fewer outputs.
    """
    if len(graph.output) < len(signature.outputs):
        raise PackageError(f"the graph has {len(graph.output)} outputs, the model {len(signature.outputs)}")
    del graph.output[len(signature.outputs) :]
    for value, spec in zip(graph.output, signature.outputs, strict=True):
        shape = value.type.tensor_type.shape
        if len(spec.shape) == 1 and len(shape.dim) == 2:
            raw = f"{spec.name}_with_two_axes"
            _rename(graph, value.name, raw)
            graph.initializer.append(helper.make_tensor(f"{raw}_rows", 7, [1], [-1]))
            graph.node.append(helper.make_node("Reshape", [raw, f"{raw}_rows"], [spec.name]))
            del shape.dim[1]
        else:
            _rename(graph, value.name, spec.name)
        value.name = spec.name
        if shape.dim:
            shape.dim[0].dim_param = "rows"
        for axis, size in enumerate(spec.shape[1:], start=1):
            if len(shape.dim) == len(spec.shape) and size > 0:
                shape.dim[axis].dim_value = size


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
