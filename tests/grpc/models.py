"""Models that are plain functions, and the inputs they take, for the tests of the gRPC entrance."""

import numpy as np
import tritonclient.grpc.aio as triton

from foretell.core.errors import ModelFailed
from foretell.core.tensor import Signature, Tensors, TensorSpec

DIGITS = Signature(
    (TensorSpec("pixels", "FP32", (-1, 4), allow_nan=False),),
    (TensorSpec("total", "FP32", (-1,)), TensorSpec("label", "INT64", (-1,))),
)
TEXT = Signature((TensorSpec("text", "BYTES", (-1,)),), (TensorSpec("loud", "BYTES", (-1,)),))
HALF = Signature((TensorSpec("x", "FP16", (-1, 2)),), (TensorSpec("y", "FP16", (-1, 2)),))


def digits(inputs: Tensors) -> Tensors:
    pixels = inputs["pixels"]
    return {"total": pixels.sum(axis=1), "label": pixels.argmax(axis=1).astype(np.int64)}


def negated(inputs: Tensors) -> Tensors:
    return {name: -array for name, array in digits(inputs).items()}


def loud(inputs: Tensors) -> Tensors:
    text = inputs["text"]
    out = np.empty(text.shape, dtype=object)
    out[:] = [item.upper() for item in text]
    return {"loud": out}


def fail(inputs: Tensors) -> Tensors:
    raise ModelFailed('model "poison" raised ValueError: bad row')


def bug(inputs: Tensors) -> Tensors:
    raise ZeroDivisionError("secret detail")


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    built = triton.InferInput(name, list(array.shape), datatype)
    built.set_data_from_numpy(array)
    return built


def pixels(*rows: list[float]) -> list[triton.InferInput]:
    return [tensor("pixels", np.array(rows or [[1, 2, 3, 4]], dtype=np.float32), "FP32")]
