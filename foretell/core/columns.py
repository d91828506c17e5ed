"""Columns as people write them (lists, text, arrays) → the tensors of a signature. Knows no model and no file."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from foretell.core.errors import InvalidInput, did_you_mean
from foretell.core.tensor import DTYPES, Signature, Tensor, Tensors, TensorSpec, datatype_of


def to_tensors(columns: Mapping[str, Any], signature: Signature) -> Tensors:
    """Every input of `signature` from `columns`. Raises `InvalidInput` that names the input and what it expects.

    Values may be arrays, nested lists, or for BYTES also a single `str` or `bytes` (one row).
    """
    known = [spec.name for spec in signature.inputs]
    for name in columns:
        if name not in known:
            raise InvalidInput(f'unknown input "{name}". {did_you_mean(name, known)}')
    for spec in signature.inputs:
        if spec.name not in columns:
            raise InvalidInput(f'input "{spec.name}" is missing; the model expects {spec}')
    tensors = {spec.name: to_tensor(columns[spec.name], spec) for spec in signature.inputs}
    signature.check(tensors)
    return tensors


def to_tensor(value: Any, spec: TensorSpec) -> Tensor:
    """One input in the datatype that `spec` declares; numbers are converted only where nothing is lost but
    floating-point precision. Raises `InvalidInput` that names the input.
    """
    if spec.datatype == "BYTES":
        return _bytes_tensor(value, spec)
    try:
        array = np.asarray(value)
        if array.dtype == object:  # null among numbers is NaN; anything else there raises
            array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f'input "{spec.name}" cannot be read as {spec.datatype}: {error}') from None
    return _convert(array, spec)


def _convert(array: Tensor, spec: TensorSpec) -> Tensor:
    wanted = DTYPES[spec.datatype]
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    if not array.size and array.dtype.kind == "f":  # an empty list has no datatype of its own
        return array.astype(wanted)
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and wanted.kind != "f") or wanted.kind == "b":
        raise InvalidInput(
            f'input "{spec.name}" has datatype {datatype_of(array)}, the model expects {spec.datatype}; convert it'
            " before you send it"
        )
    if wanted.kind in "iu" and array.size:
        limits = np.iinfo(wanted)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise InvalidInput(
                f'input "{spec.name}" holds {low if low < limits.min else high}, which {spec.datatype} cannot'
                f" ({limits.min} … {limits.max})"
            )
    return np.ascontiguousarray(array.astype(wanted))


def _bytes_tensor(value: Any, spec: TensorSpec) -> Tensor:
    if isinstance(value, str | bytes):
        value = [value]
    if isinstance(value, np.ndarray):
        shape: tuple[int, ...] = value.shape
        items = value.ravel().tolist()
    else:
        shape, items = _flatten(value, spec)
    flat = np.empty(len(items), dtype=object)
    flat[:] = [_bytes_of(item, spec) for item in items]
    return flat.reshape(shape)


def _flatten(value: Any, spec: TensorSpec) -> tuple[tuple[int, ...], list[Any]]:
    if not isinstance(value, list | tuple):
        return (), [value]
    parts = [_flatten(item, spec) for item in value]
    shapes = {shape for shape, _ in parts}
    if len(shapes) > 1:
        raise InvalidInput(f'input "{spec.name}" is ragged: its rows have different lengths')
    inner = shapes.pop() if shapes else ()
    return (len(parts), *inner), [item for _, items in parts for item in items]


def _bytes_of(item: Any, spec: TensorSpec) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes | bytearray):
        return bytes(item)
    raise InvalidInput(f'input "{spec.name}" is BYTES: give text or bytes, not {type(item).__name__}')
