"""Tensors as a column of Arrow: each with its name, datatype, shape and raw bytes. Nothing else of observations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.core.tensor import Tensors, datatype_of, to_wire
from foretell.tables.arrays import blobs, lists, numbers, texts

if TYPE_CHECKING:
    import pyarrow


def tensor_type() -> "pyarrow.StructType":
    """A tensor: name, datatype, shape, and its raw bytes as on the wire of the Open Inference Protocol."""
    pa = _pyarrow()
    return pa.struct(
        [
            ("name", pa.string()),
            ("datatype", pa.string()),
            ("shape", pa.list_(pa.int64())),
            ("data", pa.large_binary()),
        ]
    )


def tensors(rows: Sequence[Tensors | None]) -> "pyarrow.Array":
    """A column that holds a list of tensors in each row, or null."""
    pa = _pyarrow()
    if rows.count(None) == len(rows):
        return pa.nulls(len(rows), pa.list_(tensor_type()))
    each = [(name, array) for row in rows if row for name, array in row.items()]
    shapes = np.array([size for _, array in each for size in array.shape])
    fields = [
        texts([name for name, _ in each]),
        texts([datatype_of(array) for _, array in each]),
        lists([array.ndim for _, array in each], numbers(shapes, pa.int64(), np.int64)),
        blobs([bytes(to_wire(array)) for _, array in each], pa.large_binary()),
    ]
    child = pa.Array.from_buffers(tensor_type(), len(each), [None], children=fields)
    there = np.packbits(np.array([row is not None for row in rows]), bitorder="little")
    return lists([len(row or ()) for row in rows], child, there)


def _pyarrow() -> Any:
    # pyarrow costs about 30 MB; a gateway that writes no files never loads it.
    import pyarrow

    return pyarrow
