"""EfficientNet-Lite0 as an ONNX graph, written from a PyTorch checkpoint without PyTorch.

The network: a stem, seven stages of inverted residual blocks, a head; ReLU6 throughout, "same" padding as in
TensorFlow, batch normalisation folded into the convolutions. Input `image` [n, 3, 224, 224] FP32 as
(rgb - 127) / 128, output `logits` [n, 1000] FP32.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 224
STAGES = (
    # blocks, kernel, stride, expansion, channels out
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
EPSILON = 1e-3

Weights = dict[str, np.ndarray]


class _Storage:
    """Stands for a storage class while the checkpoint is read; the bytes come behind the pickled objects."""

    def __init__(self, dtype: type) -> None:
        self.dtype = np.dtype(dtype)


class _Reader(pickle.Unpickler):
    """Unpickles a checkpoint of tensors and nothing else: any other class is refused, so no code can run."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: (
                storage,
                offset,
                size,
                stride,
            ),
            ("torch", "FloatStorage"): _Storage(np.float32),
            ("torch", "LongStorage"): _Storage(np.int64),
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"the checkpoint holds a {module}.{name}, expected tensors only")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        _, storage, key, _, _, _ = pid
        return key, storage.dtype


def read_checkpoint(path: Path) -> Weights:
    """The tensors of a state dict saved by PyTorch before 1.6 (pickles, then raw storages), by name."""
    with path.open("rb") as file:
        for _ in range(3):  # magic number, protocol version, system information
            _Reader(file).load()
        tensors = _Reader(file).load()
        keys = _Reader(file).load()
        dtypes = {key: dtype for (key, dtype), *_ in tensors.values()}
        storages = {key: _read_storage(file, dtypes[key]) for key in keys}
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[key][offset:], size, [step * dtype.itemsize for step in stride]
        ).copy()
        for name, ((key, dtype), offset, size, stride) in tensors.items()
    }


def _read_storage(file: BinaryIO, dtype: np.dtype) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


class _Graph:
    """Nodes and initializers in the making; `add` returns the name of the node's output."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [_constant("zero", np.float32(0)), _constant("six", np.float32(6))]

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def conv(self, x: str, conv: str, norm: str, size: int, stride: int = 1, relu: bool = True) -> str:
        """Convolution, folded batch normalisation and ReLU6 over a `size` × `size` input."""
        kernel, w = self.weights[f"{conv}.weight"], self.weights
        scale = w[f"{norm}.weight"] / np.sqrt(w[f"{norm}.running_var"] + EPSILON)
        bias = w[f"{norm}.bias"] - w[f"{norm}.running_mean"] * scale
        self.constants += [
            _constant(f"{conv}.weight", kernel * scale[:, None, None, None]),
            _constant(f"{conv}.bias", bias),
        ]
        pads = max((-(-size // stride) - 1) * stride + kernel.shape[-1] - size, 0)
        before, after = pads // 2, pads - pads // 2
        x = self.add(
            "Conv",
            x,
            f"{conv}.weight",
            f"{conv}.bias",
            strides=[stride, stride],
            pads=[before, before, after, after],
            # A depthwise kernel has one input channel; only the stem and pointwise kernels have more.
            group=kernel.shape[0] if kernel.shape[1] == 1 else 1,
        )
        return self.add("Clip", x, "zero", "six") if relu else x


def _constant(name: str, array: np.ndarray | np.floating) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array, np.float32), name)


def build(weights: Weights) -> onnx.ModelProto:
    """The whole network as an ONNX model (opset 17) with a symbolic row axis."""
    graph = _Graph(weights)
    size = SIZE
    x = graph.conv("image", "_conv_stem", "_bn0", size, stride=2)
    size, channels, number = -(-size // 2), 32, 0
    for blocks, _, first_stride, expansion, out in STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            name, entry = f"_blocks.{number}", x
            if expansion > 1:
                x = graph.conv(x, f"{name}._expand_conv", f"{name}._bn0", size)
            x = graph.conv(x, f"{name}._depthwise_conv", f"{name}._bn1", size, stride)
            size = -(-size // stride)
            x = graph.conv(x, f"{name}._project_conv", f"{name}._bn2", size, relu=False)
            if stride == 1 and channels == out:
                x = graph.add("Add", x, entry)
            channels, number = out, number + 1
    x = graph.conv(x, "_conv_head", "_bn1", size)
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    graph.constants += [_constant("fc.weight", weights["_fc.weight"]), _constant("fc.bias", weights["_fc.bias"])]
    graph.nodes.append(helper.make_node("Gemm", [x, "fc.weight", "fc.bias"], ["logits"], transB=1))
    pixels = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1000])
    made = helper.make_graph(graph.nodes, "efficientnet_lite0", [pixels], [logits], graph.constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model
