"""Tables and classes: what tabular models share. Inputs become one matrix, answers become declared outputs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from foretell.core.errors import ModelFailed
from foretell.core.tensor import DTYPES, Signature, Tensor, Tensors, TensorSpec
from foretell.core.text import encode_text

CLASS_NAMES = frozenset({"label", "labels", "class", "output_label"})
PROBABILITY_NAMES = frozenset({"probability", "probabilities", "output_probability"})
"""Output names that say what they hold; any other name is the model's plain prediction."""


def matrix(inputs: Tensors, signature: Signature) -> Tensor:
    """One [n, k] array from the inputs in the signature's order; inputs of shape [n] are single columns.

    A single [n, k] input is passed on as it is, no copy.
    """
    columns = [inputs[spec.name] for spec in signature.inputs]
    columns = [c if c.ndim > 1 else c.reshape(-1, 1) for c in columns]
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def fit_output(value: Any, spec: TensorSpec) -> Tensor:
    """`value` as `spec` declares it: dtype cast, text encoded, a trailing axis of one added or dropped."""
    array = np.asarray(value)
    if spec.datatype == "BYTES":
        array = encode_text(array)
    elif array.dtype != DTYPES[spec.datatype]:
        if array.dtype.kind not in "biuf":
            raise ModelFailed(
                f'the model answers with {array.dtype} ({array.ravel()[:1].tolist()}…), which output "{spec.name}"'
                f" cannot hold as {spec.datatype}; declare it as BYTES in model.toml"
            )
        array = array.astype(DTYPES[spec.datatype])
    if array.ndim == len(spec.shape) + 1 and array.shape[-1] == 1:
        return array[..., 0]
    if array.ndim + 1 == len(spec.shape):
        return array[..., None]
    return array


def classify(scores: Tensor, classes: list[Any] | None) -> Mapping[str, Tensor]:
    """`label` [n] and `probabilities` [n, c] from a booster's scores: [n] of the second of two classes, or [n, c].

    Labels are entries of `classes`, or class numbers without them.
    """
    both = np.stack([1.0 - scores, scores], axis=1) if scores.ndim == 1 else scores
    numbers = both.argmax(axis=1)
    return {"label": numbers if classes is None else np.asarray(classes)[numbers], "probabilities": both}
