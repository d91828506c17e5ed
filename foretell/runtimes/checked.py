"""What every predictor promises about its outputs, checked once a batch. Knows no runtime."""

import numpy as np

from foretell.core.errors import ForetellError, ModelFailed
from foretell.core.model import Predictor
from foretell.core.tensor import DTYPES, Signature, Tensor, Tensors, TensorSpec


class Checked:
    """A predictor whose answers agree with `signature`: the names, in order, the datatypes, the row count.

    Whatever the model raises becomes `ModelFailed` unless it is a `ForetellError` already (a transform that
    refuses a row raises `InvalidInput`).
    """

    def __init__(self, predictor: Predictor, signature: Signature) -> None:
        self._predictor: Predictor | None = predictor
        self._signature = signature
        self._first = signature.inputs[0].name if signature.inputs else ""

    @property
    def signature(self) -> Signature:
        return self._signature

    def predict(self, inputs: Tensors) -> Tensors:
        if self._predictor is None:
            raise ModelFailed("the model is closed")
        try:
            outputs = self._predictor.predict(inputs)
        except ForetellError:
            raise
        except Exception as error:
            raise ModelFailed(f"the model raised {type(error).__name__}: {error}") from error
        rows = len(inputs[self._first]) if self._signature.batchable else None
        return check_outputs(self._signature, outputs, rows)

    def close(self) -> None:
        """Close the model. Idempotent."""
        if self._predictor is not None:
            self._predictor.close()
            self._predictor = None


def check_outputs(signature: Signature, outputs: Tensors, rows: int | None) -> Tensors:
    """`outputs` in the signature's order, C-contiguous. Raises `ModelFailed` that says what the model returned.

    `rows` is the number of rows that each output must have, None where rows don't matter.
    """
    checked: Tensors = {}
    for spec in signature.outputs:
        array = outputs.get(spec.name)
        if array is None:
            got = ", ".join(f'"{name}"' for name in outputs) or "nothing"
            raise ModelFailed(f'the model returned {got}, but not the output "{spec.name}" of its signature')
        _check_output(spec, array, rows)
        checked[spec.name] = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    return checked


def _check_output(spec: TensorSpec, array: Tensor, rows: int | None) -> None:
    shape = array.shape
    if array.dtype != DTYPES[spec.datatype]:
        raise ModelFailed(f'the model returned dtype {array.dtype} for output "{spec.name}", not {spec.datatype}')
    if len(shape) != len(spec.shape) or any(w not in (-1, g) for w, g in zip(spec.shape, shape, strict=True)):
        raise ModelFailed(
            f'the model returned shape {list(shape)} for output "{spec.name}", its signature says'
            f" {list(spec.shape)} (-1 is any)"
        )
    if rows is not None and shape[0] != rows:
        raise ModelFailed(
            f'the model returned {shape[0]} rows for output "{spec.name}", the batch had {rows}; a model must'
            " answer each row once, in order"
        )
