"""Tiny ONNX models for the examples: X [n, 2] FP32 → y [n] FP32, weighted sums of each row."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def weighted_sum(path: Path, first: float, second: float) -> Path:
    """Write a model that answers `first` · x0 + `second` · x1."""
    weights = numpy_helper.from_array(np.array([first, second], np.float32), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "weights"], ["y"])],
        "sum",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path
