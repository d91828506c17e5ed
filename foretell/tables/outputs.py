"""A model's outputs → columns of a table: one value a row, or real list columns for vectors."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foretell.core.tensor import DTYPES, Tensor, TensorSpec
from foretell.tables.arrays import blobs, booleans, lists, numbers


def column_type(spec: TensorSpec) -> pa.DataType:
    """The type of the column that holds an output: lists as deep as a row has axes. BYTES are strings."""
    kind = pa.string() if spec.datatype == "BYTES" else pa.from_numpy_dtype(DTYPES[spec.datatype])
    for _ in spec.shape[1:]:
        kind = pa.list_(kind)
    return kind


def to_column(values: Tensor, spec: TensorSpec) -> pa.Array:
    """`values` [rows, …] as a column of `column_type`. BYTES must be UTF-8 (see `text_faults`)."""
    array = _flat(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        count = len(array) // size if size else int(np.prod(values.shape[: values.ndim - 1]))
        array = lists(np.full(count, size), array)
    return array


def text_faults(values: Tensor) -> NDArray[np.bool_]:
    """Rows of a BYTES output that are no text: a table holds text."""
    wrong = np.zeros(len(values), dtype=bool)
    try:
        b"\n".join(values.ravel().tolist()).decode()
    except UnicodeDecodeError:
        for row, items in enumerate(values.reshape(len(values), -1)):
            wrong[row] = any(item.decode("utf-8", "ignore").encode() != item for item in items)
    return wrong


def _flat(values: Tensor) -> pa.Array:
    if values.dtype.kind == "O":
        return blobs(values.tolist(), pa.string())
    if values.dtype.kind == "b":
        return booleans(values)
    return numbers(values, pa.from_numpy_dtype(values.dtype), values.dtype)
