"""Arrow arrays of values and lists → numpy, with the rows that cannot be used named. Knows no signature.

No call here takes a Python value where Arrow would make a scalar of it, and none is `Array.to_numpy`: both import
pandas (see `arrays`).
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foretell.core.errors import InvalidInput
from foretell.core.tensor import DTYPES
from foretell.tables.arrays import booleans, numbers, texts

Mask = NDArray[np.bool_]
Faults = list[tuple[Mask, str]]
"""Rows that cannot be used, and why: the first reason that names a row is the one it gets."""


def plain(array: pa.Array) -> pa.Array:
    """The array without its encoding: dictionaries, run lengths and extension types are laid out as values."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain(array.storage)
    if pa.types.is_dictionary(kind):
        return array.dictionary_decode()
    if pa.types.is_run_end_encoded(kind):
        return pc.run_end_decode(array)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return array.cast(pa.large_string() if pa.types.is_string_view(kind) else pa.large_binary())
    return array


def is_list(kind: pa.DataType) -> bool:
    """Whether rows are lists, of whatever length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether values are strings or bytes."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind)) or is_bytes(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes, which need not be text."""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def check_type(kind: pa.DataType, datatype: str, what: str) -> None:
    """Raise `InvalidInput` where no value of `kind` can ever be a `datatype`; `what` names the column and the input.

    The rule of `core.columns`: numbers are converted only where nothing is lost but floating-point precision.
    """
    wanted = DTYPES[datatype].kind
    if pa.types.is_null(kind):
        fits = True
    elif wanted == "O":
        fits = is_text(kind)
    elif wanted == "b":
        fits = pa.types.is_boolean(kind)
    else:
        fits = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        fits = fits or (wanted == "f" and (pa.types.is_floating(kind) or pa.types.is_decimal(kind)))
    if not fits:
        raise InvalidInput(f"{what} holds {kind}, the model expects {datatype}; convert the column first")


def numbers_of(array: pa.Array, datatype: str) -> tuple[NDArray[Any], Faults]:
    """Values in the numpy dtype of `datatype`, which `check_type` allowed; what cannot be one is 0 and at fault.

    Null is NaN among floating-point numbers, as it is online.
    """
    dtype = DTYPES[datatype]
    faults: Faults = []
    nulls = array.null_count
    if pa.types.is_null(array.type):
        array = pa.nulls(len(array), pa.float32() if dtype.kind == "f" else pa.int8())
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    if nulls and dtype.kind == "f":
        # Arrow hands a null among floating-point numbers over as NaN.
        array = array if pa.types.is_floating(array.type) else array.cast(pa.float64())
    elif nulls:
        faults.append((to_numpy(array.is_null()), f"null, the model expects {datatype}"))
        array = pc.coalesce(array, numbers(np.zeros(len(array)), pa.int8(), np.int8).cast(array.type))
    values = to_numpy(array)
    if values.dtype == dtype:
        return values, faults
    if dtype.kind in "iu" and values.dtype.kind in "iu" and len(values):
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            outside = (values < limits.min) | (values > limits.max)
            faults.append((outside, f"a number that {datatype} cannot hold ({limits.min} … {limits.max})"))
            values = np.where(outside, values.dtype.type(0), values)
    with np.errstate(over="ignore"):
        return values.astype(dtype), faults


def texts_of(array: pa.Array) -> tuple[NDArray[Any], Faults]:
    """Values as an object array of `bytes`; null is empty and at fault."""
    faults: Faults = []
    if array.null_count:
        faults.append((to_numpy(array.is_null()), "null, the model expects BYTES"))
        if pa.types.is_null(array.type) or pa.types.is_fixed_size_binary(array.type):
            array = array.cast(pa.binary())
        array = pc.coalesce(array, texts([""] * len(array)).cast(array.type))
    large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    array = array.cast(pa.large_binary() if large else pa.binary())
    values = np.empty(len(array), dtype=object)
    values[:] = array.to_pylist()
    return values, faults


def values_of(array: pa.Array, datatype: str) -> tuple[NDArray[Any], Faults]:
    """One value a row: numbers, or bytes for BYTES."""
    return texts_of(array) if datatype == "BYTES" else numbers_of(array, datatype)


def lengths_of(array: pa.Array) -> NDArray[np.int64]:
    """How long each list is, -1 for null."""
    lengths = to_numpy(pc.list_value_length(array))
    return np.nan_to_num(lengths, nan=-1).astype(np.int64) if array.null_count else lengths.astype(np.int64)


def lists_of(array: pa.Array, datatype: str, shape: tuple[int, ...]) -> tuple[NDArray[Any], Faults]:
    """Rows that are lists → [rows, *shape]. A list may be nested as `shape` is, or flat in row-major order.

    Rows of another length, and those with a value that cannot be used, are zero and at fault.
    """
    size = int(np.prod(shape))
    nested = len(shape) > 1 and is_list(plain(array[:0]).type.value_type)
    want = shape[0] if nested else size
    right = lengths_of(array) == want
    faults: Faults = []
    if array.null_count:
        faults.append((to_numpy(array.is_null()), f"null, the model expects a list of {want}"))
    if not right.all():
        faults.append((~right, f"a list of another length than {want}"))
        array = array.filter(booleans(right))
    flat = plain(array.flatten())
    if nested:
        inner, found = lists_of(flat, datatype, shape[1:])
    else:
        inner, found = values_of(flat, datatype)
    values = inner.reshape(-1, *shape)
    rows: Faults = [(np.any(mask.reshape(-1, want), axis=1), reason) for mask, reason in found]
    if right.all():
        return values, faults + [(mask, f"{reason} (inside the list)") for mask, reason in rows]
    spread = np.full((len(right), *shape), b"" if datatype == "BYTES" else 0, dtype=DTYPES[datatype])
    spread[right] = values
    for mask, reason in rows:
        whole = np.zeros(len(right), dtype=bool)
        whole[right] = mask
        faults.append((whole, f"{reason} (inside the list)"))
    return spread, faults


def ragged_of(array: pa.Array, datatype: str) -> tuple[NDArray[Any], NDArray[np.int64], Faults]:
    """Rows that are lists of any length → their values one after the other, the offsets of the rows, faults."""
    faults: Faults = []
    if array.null_count:
        faults.append((to_numpy(array.is_null()), "null, the model expects a list"))
    lengths = lengths_of(array)
    lengths[lengths < 0] = 0
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    values, found = values_of(plain(array.flatten()), datatype)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    for mask, reason in found:
        whole = np.zeros(len(lengths), dtype=bool)
        whole[rows[mask]] = True
        faults.append((whole, f"{reason} (inside the list)"))
    if not lengths.all():
        faults.append((lengths == 0, "an empty list"))
    return values, offsets, faults


def value_type(kind: pa.DataType) -> pa.DataType:
    """What the lists of `kind` hold in the end, encodings taken off."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif is_list(kind) or pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
            kind = pa.binary()
        else:
            return kind


def to_numpy(array: pa.Array) -> NDArray[Any]:
    """Numbers or booleans, without a copy where Arrow's layout is numpy's. Null is NaN; booleans have none."""
    kind, start, count = array.type, array.offset, len(array)
    data = array.buffers()[1]
    if pa.types.is_boolean(kind):
        bits = np.frombuffer(data, np.uint8) if count else np.zeros(0, np.uint8)
        return np.unpackbits(bits, count=start + count if count else 0, bitorder="little")[start:].view(np.bool_)
    letter = "f" if pa.types.is_floating(kind) else "i" if pa.types.is_signed_integer(kind) else "u"
    dtype = np.dtype(f"{letter}{kind.bit_width // 8}")
    values = np.frombuffer(data, dtype, count, start * dtype.itemsize) if count else np.zeros(0, dtype)
    if array.null_count:
        values = values.astype(dtype if dtype.kind == "f" else np.float64)
        values[to_numpy(array.is_null())] = np.nan
    return values
