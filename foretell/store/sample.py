"""sample.json: a package's own example rows, as columns of JSON values. Knows the signature, not the model."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from foretell.core.errors import InvalidInput, PackageError, did_you_mean
from foretell.core.tensor import DTYPES, Signature, Tensor, Tensors, TensorSpec


def _bytes_of(value: Any, name: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as error:
            raise InvalidInput(f'column "{name}": b64 is not base64 ({error})') from None
    raise InvalidInput(f'column "{name}" is BYTES: write a string or {{"b64": "…"}}, got {type(value).__name__}')


def _bytes_column(values: Any, spec: TensorSpec) -> Tensor:
    flat: list[bytes] = []

    def walk(value: Any, depth: int) -> tuple[int, ...]:
        if depth == len(spec.shape):
            flat.append(_bytes_of(value, spec.name))
            return ()
        if not isinstance(value, list):
            raise InvalidInput(f'column "{spec.name}": expected a list at depth {depth}, got {value!r:.80}')
        shapes = {walk(item, depth + 1) for item in value}
        if len(shapes) > 1:
            raise InvalidInput(f'column "{spec.name}" is ragged: rows have different lengths')
        return (len(value), *(shapes.pop() if shapes else ()))

    shape = walk(values, 0)
    array = np.empty(len(flat), dtype=object)
    array[:] = flat
    return array.reshape(shape)


def decode_column(values: Any, spec: TensorSpec) -> Tensor:
    """One column of JSON values as the array that `spec` describes (null is NaN in floats).

    Raises `InvalidInput` that names the column when values are ragged, out of range or of another kind.
    """
    if spec.datatype == "BYTES":
        return _bytes_column(values, spec)
    try:
        return np.array(values, dtype=DTYPES[spec.datatype], order="C")
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f'column "{spec.name}" cannot be read as {spec.datatype}: {error}') from None


def decode_columns(columns: Mapping[str, Any], specs: tuple[TensorSpec, ...]) -> Tensors:
    """Columns of JSON values as the tensors that `specs` name. Raises `InvalidInput` for a wrong column."""
    known = [spec.name for spec in specs]
    for name in columns:
        if name not in known:
            raise InvalidInput(f'unknown column "{name}". {did_you_mean(name, known)}')
    for name in known:
        if name not in columns:
            raise InvalidInput(f'column "{name}" is missing')
    return {spec.name: decode_column(columns[spec.name], spec) for spec in specs}


def _json_of(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_of(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    return value


def encode_columns(tensors: Tensors) -> dict[str, Any]:
    """The inverse of `decode_columns`: nested lists; BYTES that are not UTF-8 become {"b64": "…"}."""
    return {name: _json_of(array.tolist()) for name, array in tensors.items()}


def read_sample(text: bytes, specs: tuple[TensorSpec, ...], where: str) -> Tensors:
    """Decode the text of a sample.json. Raises `PackageError` that names the file and the column that disagrees."""
    try:
        columns = msgspec.json.decode(text, type=dict[str, Any])
        tensors = decode_columns(columns, specs)
        Signature(specs, ()).check(tensors)
    except (msgspec.DecodeError, InvalidInput) as error:
        raise PackageError(f"{where}: {error}") from None
    return tensors


def write_sample(tensors: Tensors) -> bytes:
    """The text of a sample.json that holds `tensors`."""
    return msgspec.json.encode(encode_columns(tensors))
