"""Drawing an ONNX graph node by node: names, constants, and a data file beside the model. Knows no decoders.

Equal calls give equal bytes: nothing of the time, the machine or the library's version is written.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

_DATATYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}
_INLINE_BYTES = 1024
"""Smaller constants stay in the model file, where ONNX Runtime's shape inference and constant folding see them."""

_PAGE = 4096
"""Constants begin on a page, so that they can be mapped into memory where they lie."""

_OPSET = 21
_IR = 10


class Drawing:
    """A graph in the making. Constants go to the data file at once, so memory holds one weight at a time.

    A context manager: the data file is closed on leaving. Call `save` before.
    """

    def __init__(self, model: Path) -> None:
        self._model = model
        self._location = model.name + ".data"
        self._data = (model.parent / self._location).open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._notes: dict[str, str] = {}
        self._scope = ""
        self._count = 0

    def __enter__(self) -> "Drawing":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._data.close()

    def scope(self, name: str) -> None:
        """Name the nodes that follow after `name` (for profiles and error messages)."""
        self._scope = name

    def note(self, key: str, text: str) -> None:
        """Write `text` into the model file's metadata."""
        self._notes[key] = text

    def input(self, name: str, datatype: str, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, _DATATYPES[datatype], shape))
        return name

    def output(self, name: str, datatype: str, shape: Sequence[int | str]) -> str:
        """Declare that the value `name`, which some node makes, leaves the graph."""
        self._outputs.append(helper.make_tensor_value_info(name, _DATATYPES[datatype], shape))
        return name

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Store `value` under `name`, once: a second call with the same name only gives the name back."""
        if name not in self._constants:
            tensor = TensorProto(name=name, data_type=_DATATYPES[value.dtype.name], dims=value.shape)
            array = np.ascontiguousarray(value)
            if array.nbytes < _INLINE_BYTES:
                tensor.raw_data = array.tobytes()
            else:
                self._append(tensor, array)
            self._constants[name] = tensor
        return name

    def has(self, name: str) -> bool:
        """Is there a constant of that name already?"""
        return name in self._constants

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant("integers." + ".".join(map(str, values)), np.array(values, np.int64))

    def node(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node with one output and give the output's name. Inputs named "" are left out."""
        return self.nodes(operator, inputs, (output,), **attributes)[0]

    def nodes(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """Add a node; outputs named "" are named here, "-" are not wanted. "com.microsoft:X" names a domain."""
        domain, _, kind = operator.rpartition(":")
        self._count += 1
        name = f"{self._scope}/{kind}.{self._count}"
        names = ["" if o == "-" else o or f"{name}:{i}" for i, o in enumerate(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=name, domain=domain, **attributes))
        return names

    def save(self) -> None:
        """Write the model file."""
        graph = helper.make_graph(self._nodes, "decoder", self._inputs, self._outputs, [*self._constants.values()])
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="foretell")
        helper.set_model_props(model, self._notes)
        self._model.write_bytes(model.SerializeToString(deterministic=True))

    def _append(self, tensor: onnx.TensorProto, array: NDArray[Any]) -> None:
        start = -(-self._data.tell() // _PAGE) * _PAGE
        self._data.write(b"\0" * (start - self._data.tell()))
        self._data.write(array.reshape(-1).view(np.uint8).data)
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", self._location), ("offset", start), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(text))
