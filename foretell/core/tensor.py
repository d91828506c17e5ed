"""Named tensors: datatypes of the Open Inference Protocol, signatures, and their checks.

A tensor is a C-contiguous numpy array whose first axis is the row axis. BYTES tensors are object arrays of
`bytes`. Nothing here knows JSON, sockets or models.
"""

import struct
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from foretell.core.errors import InvalidInput, did_you_mean

Tensor = NDArray
Tensors = dict[str, Tensor]

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
"""Datatype names of the Open Inference Protocol v2 and the numpy dtype that carries each."""

_NAMES: dict[np.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

Datatype = Annotated[str, msgspec.Meta(description="An Open Inference Protocol datatype, as in `DTYPES`.")]


def datatype_of(array: Tensor) -> str:
    """The protocol's name for an array's dtype (text dtypes count as BYTES). Raises `InvalidInput` if none."""
    if array.dtype.kind in "SU":
        return "BYTES"
    try:
        return _NAMES[array.dtype]
    except KeyError:
        raise InvalidInput(f"dtype {array.dtype} has no Open Inference Protocol datatype") from None


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One named input or output. `shape` includes the row axis; -1 is variable.

    `allow_nan = false` makes a NaN or infinity in this input an error instead of the model's problem.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    allow_nan: bool = True

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}[{', '.join('?' if d < 0 else str(d) for d in self.shape)}]"


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """What goes into a model and what comes out.

    Where the first axis of every input is -1 the model takes any number of rows, and the scheduler may join
    requests along it; otherwise `batchable` is false and every request runs alone.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @cached_property
    def batchable(self) -> bool:
        specs = self.inputs + self.outputs
        return bool(self.inputs) and all(s.shape and s.shape[0] == -1 for s in specs)

    def check(self, inputs: Mapping[str, Tensor]) -> int:
        """Return the number of rows of `inputs`, or raise `InvalidInput` that names the first wrong field."""
        if len(inputs) != len(self.inputs):
            self._check_names(inputs)
        rows = -1
        for spec in self.inputs:
            array = inputs.get(spec.name)
            if array is None:
                raise self._check_names(inputs)
            if array.dtype != DTYPES[spec.datatype]:
                raise InvalidInput(
                    f'input "{spec.name}" has datatype {datatype_of(array)}, the model expects {spec.datatype}'
                )
            shape = array.shape
            if len(shape) != len(spec.shape):
                raise _wrong_shape(spec, shape)
            for want, got in zip(spec.shape, shape, strict=True):
                if want != got and want != -1:
                    raise _wrong_shape(spec, shape)
            count = shape[0] if shape else 1
            if rows not in (-1, count) and self.batchable:
                first = self.inputs[0].name
                raise InvalidInput(
                    f'input "{spec.name}" has {count} rows, input "{first}" has {rows}; all inputs of a'
                    " request need the same number"
                )
            rows = count if rows < 0 else rows
            if not spec.allow_nan and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InvalidInput(f'input "{spec.name}" holds NaN or infinity, which this model refuses')
        if rows == 0:
            raise InvalidInput("the request has no rows")
        return rows if self.batchable else 1

    def _check_names(self, inputs: Mapping[str, Tensor]) -> InvalidInput:
        """Raise for the first unknown or missing input."""
        known = [s.name for s in self.inputs]
        for name in inputs:
            if name not in known:
                raise InvalidInput(f'unknown input "{name}". {did_you_mean(name, known)}')
        for spec in self.inputs:
            if spec.name not in inputs:
                raise InvalidInput(f'input "{spec.name}" is missing; the model expects {spec}')
        return InvalidInput("the inputs are not those of the signature")


def _wrong_shape(spec: TensorSpec, shape: tuple[int, ...]) -> InvalidInput:
    return InvalidInput(
        f'input "{spec.name}" has shape {list(shape)}, the model expects {list(spec.shape)} (-1 is any)'
    )


_LENGTH = struct.Struct("<I")


def pack_bytes(array: Tensor) -> bytes:
    """Serialise a BYTES tensor: each element as a little-endian uint32 length and its bytes, in row order."""
    parts: list[bytes] = []
    for item in array.ravel():
        raw = item.encode() if isinstance(item, str) else bytes(item)
        parts.append(_LENGTH.pack(len(raw)))
        parts.append(raw)
    return b"".join(parts)


def unpack_bytes(buffer: bytes | memoryview, name: str = "") -> Tensor:
    """The inverse of `pack_bytes`, as a 1-D object array. Raises `InvalidInput` if a length lies."""
    view = memoryview(buffer)
    items: list[bytes] = []
    at, end = 0, len(view)
    while at < end:
        if end - at < 4:
            raise InvalidInput(f'input "{name}": {end - at} stray bytes after the last BYTES element')
        (size,) = _LENGTH.unpack_from(view, at)
        at += 4
        if size > end - at:
            raise InvalidInput(f'input "{name}": a BYTES element claims {size} bytes, {end - at} are left')
        items.append(bytes(view[at : at + size]))
        at += size
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def to_wire(array: Tensor) -> bytes | memoryview:
    """The raw little-endian row-major bytes of a tensor; no copy unless it is BYTES or not contiguous."""
    if array.dtype.kind == "O":
        return pack_bytes(array)
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array.reshape(-1).view(np.uint8).data


def from_wire(buffer: bytes | memoryview, datatype: str, shape: tuple[int, ...], name: str = "") -> Tensor:
    """View `buffer` as a tensor (no copy unless BYTES). Raises `InvalidInput` if sizes disagree."""
    if datatype not in DTYPES:
        raise InvalidInput(f'input "{name}": unknown datatype "{datatype}". {did_you_mean(datatype, DTYPES)}')
    if any(d < 0 for d in shape):
        raise InvalidInput(f'input "{name}": shape {list(shape)} has a negative dimension')
    count = 1
    for d in shape:
        count *= d
    if datatype == "BYTES":
        items = unpack_bytes(buffer, name)
        if len(items) != count:
            raise InvalidInput(
                f'input "{name}": shape {list(shape)} needs {count} elements, the data holds {len(items)}'
            )
        return items.reshape(shape)
    dtype = DTYPES[datatype]
    if len(buffer) != count * dtype.itemsize:
        raise InvalidInput(
            f'input "{name}": {datatype} of shape {list(shape)} needs {count * dtype.itemsize} bytes,'
            f" the data holds {len(buffer)}"
        )
    return np.frombuffer(buffer, dtype=dtype).reshape(shape)
