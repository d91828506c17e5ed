"""What converters' graphs need before they are packages. Works on the protobuf; imports no converter."""

from typing import Any

from foretell.core.tensor import Signature


def name_outputs(graph: Any, signature: Signature) -> None:
    """Give a converted graph's outputs the signature's names and a symbolic row axis, which converters may fix."""
    for value, spec in zip(graph.output, signature.outputs, strict=True):
        old = value.name
        for node in graph.node:
            node.input[:] = [spec.name if name == old else name for name in node.input]
            node.output[:] = [spec.name if name == old else name for name in node.output]
        value.name = spec.name
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "rows"
