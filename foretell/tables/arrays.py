"""Arrow arrays straight from numpy buffers. `pyarrow.array` would do, but it imports pandas where that is installed,
which costs a gateway 58 MB; and this is quicker. Knows Arrow's memory layout, nothing of what is in the arrays.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    import pyarrow


def numbers(values: Sequence[float] | NDArray, kind: "pyarrow.DataType", dtype: DTypeLike) -> "pyarrow.Array":
    """A column of `kind`, whose memory layout is numpy's `dtype`."""
    return _made(kind, len(values), np.ascontiguousarray(values, dtype=dtype))


def booleans(values: Sequence[bool] | NDArray) -> "pyarrow.Array":
    """A column of booleans."""
    # Through bytes(): six times as quick as np.array(values).
    flags = values.astype(bool) if isinstance(values, np.ndarray) else np.frombuffer(bytes(values), bool)
    return _made(_pyarrow().bool_(), len(values), np.packbits(flags, bitorder="little"))


def texts(values: Sequence[str]) -> "pyarrow.Array":
    """A column of strings. A lone surrogate (possible in a name that a client sent) becomes a question mark."""
    kind = _pyarrow().string()
    if values and values.count(values[0]) == len(values):
        # Most columns of most batches: one model, one outcome, no error.
        raw = values[0].encode(errors="replace")
        return _made(
            kind, len(values), np.arange(len(values) + 1, dtype=np.int32) * np.int32(len(raw)), raw * len(values)
        )
    together = "".join(values)
    if together.isascii():
        # One encode for all: a character is a byte.
        return _made(kind, len(values), _offsets(list(map(len, values)), np.int32), together.encode())
    return blobs([value.encode(errors="replace") for value in values], kind)


def blobs(values: Sequence[bytes], kind: "pyarrow.DataType") -> "pyarrow.Array":
    """A column of `kind`: string (values are UTF-8) or large_binary (may exceed 2 GiB in all)."""
    pa = _pyarrow()
    width = np.int64 if kind == pa.large_binary() else np.int32
    return _made(kind, len(values), _offsets([len(value) for value in values], width), b"".join(values))


def lists(
    counts: Sequence[int] | NDArray, child: "pyarrow.Array", there: NDArray[np.uint8] | None = None
) -> "pyarrow.Array":
    """A column of lists of `counts` elements of `child`; `there` is its validity bitmap."""
    pa = _pyarrow()
    valid = None if there is None else pa.py_buffer(there)
    buffers = [valid, pa.py_buffer(_offsets(counts, np.int32))]
    return pa.Array.from_buffers(pa.list_(child.type), len(counts), buffers, children=[child])


def _offsets(counts: Sequence[int] | NDArray, dtype: DTypeLike) -> NDArray:
    offsets = np.zeros(len(counts) + 1, dtype=dtype)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _made(kind: "pyarrow.DataType", length: int, *buffers: Any) -> "pyarrow.Array":
    pa = _pyarrow()
    return pa.Array.from_buffers(kind, length, [None, *(pa.py_buffer(buffer) for buffer in buffers)])


def _pyarrow() -> Any:
    # pyarrow costs about 30 MB; a gateway that writes no files never loads it.
    import pyarrow

    return pyarrow
