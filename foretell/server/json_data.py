"""The `data` lists of JSON tensors, typed by datatype: strict, bounded, and fast for the flat case."""

import struct
from functools import lru_cache
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np

from foretell.core.errors import InvalidInput
from foretell.core.tensor import DTYPES, Tensor

_MAX_DEPTH = 16
_PACK_UP_TO = 4096
_COUNT_FROM = 64 * 2**10
_FORMATS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip


def read_data(raw: msgspec.Raw, datatype: str, shape: list[int], name: str, index: int) -> Tensor:
    """The tensor of the JSON list `raw`, flat in row-major order or nested as `shape`.

    Raises `InvalidInput` with the path into `$.inputs[index]` for wrong types, counts and ranges.
    """
    where = f"$.inputs[{index}]"
    if not raw:
        raise InvalidInput(
            f'input "{name}" has no data (at {where}); send a list, or binary_data_size with'
            " Inference-Header-Content-Length"
        )
    count = 1
    for dim in shape:
        if dim < 0:
            raise InvalidInput(f'input "{name}" has the negative dimension {dim} (at {where}.shape)')
        count *= dim
    view = memoryview(raw)
    depth = _depth(view)
    if depth != 1 and depth != len(shape):
        raise InvalidInput(
            f'input "{name}": data is nested {depth} deep, shape {shape} needs 1 (flat) or {len(shape)} (at'
            f" {where}.data)"
        )
    if len(view) > _COUNT_FROM and datatype != "BYTES":
        _bound(view, count, shape, name, where)
    try:
        values = _decoder(datatype, depth).decode(raw)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).rpartition(" - at ")
        raise InvalidInput(
            f'input "{name}" ({datatype}): {problem or error} (at {where}.data{path.strip("`")[1:]})'
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f'input "{name}": {error} (at {where}.data)') from None
    if depth > 1:
        values = _flatten(values, shape, name, where)
    if len(values) != count:
        raise InvalidInput(
            f'input "{name}": shape {shape} needs {count} elements, data has {len(values)} (at {where}.data)'
        )
    try:
        return _pack(values, datatype).reshape(shape)
    except (struct.error, OverflowError, FloatingPointError, UnicodeEncodeError) as error:
        raise InvalidInput(f'input "{name}": a value does not fit {datatype}: {error} (at {where}.data)') from None
    except ValueError as error:
        raise InvalidInput(f'input "{name}": {error} (at {where}.shape)') from None


def _pack(values: list[Any], datatype: str) -> Tensor:
    count = len(values)
    if datatype == "BYTES":
        array = np.empty(count, dtype=object)
        array[:] = [v.encode() for v in values]
        return array
    dtype = DTYPES[datatype]
    if count <= _PACK_UP_TO:
        # Faster than np.array up to a few thousand elements, and it refuses what does not fit.
        return np.frombuffer(_packer(_FORMATS[datatype], count).pack(*values), dtype=dtype)
    with np.errstate(over="raise"):
        return np.array(values, dtype=dtype)


@lru_cache(maxsize=256)
def _packer(code: str, count: int) -> struct.Struct:
    return struct.Struct(f"<{count}{code}")


@lru_cache(maxsize=256)
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder:
    kind = DTYPES[datatype].kind
    item: Any = {"b": bool, "f": float, "O": str}.get(kind)
    if item is None:
        limits = np.iinfo(DTYPES[datatype])
        # Constraints reach to int64; what uint64 has above it is refused when packed.
        item = Annotated[int, msgspec.Meta(ge=int(limits.min), le=min(int(limits.max), 2**63 - 1))]
        if datatype == "UINT64":
            item = Annotated[int, msgspec.Meta(ge=0)]
    for _ in range(depth):
        item = list[item]
    return msgspec.json.Decoder(item)


def _depth(view: memoryview) -> int:
    """How many lists open at the start of the data, 0 if it is no list."""
    if view[0] == 91 and len(view) > 1 and view[1] not in b"[ \t\r\n":
        return 1
    depth = 0
    for byte in view:
        if byte == 91:
            depth += 1
            if depth > _MAX_DEPTH:
                break
        elif byte not in b" \t\r\n":
            break
    return depth


def _bound(view: memoryview, count: int, shape: list[int], name: str, where: str) -> None:
    """Refuse a long list of the wrong length before its elements become Python objects."""
    commas = bytes(view).count(b",")
    # Nested empty lists have fewer elements than commas + 1, never more.
    if commas + 1 < count or (commas + 1 > count and count > 0):
        raise InvalidInput(
            f'input "{name}": shape {shape} needs {count} elements, data has {commas + 1} (at {where}.data)'
        )


def _flatten(values: list[Any], shape: list[int], name: str, where: str) -> list[Any]:
    if len(values) != shape[0]:
        raise InvalidInput(
            f'input "{name}": data has {len(values)} rows, shape {shape} says {shape[0]} (at {where}.data)'
        )
    for axis, dim in enumerate(shape[1:], 1):
        for at, inner in enumerate(values):
            if len(inner) != dim:
                place = "".join(f"[{i}]" for i in np.unravel_index(at, shape[:axis]))
                raise InvalidInput(
                    f'input "{name}": a list of {len(inner)} where shape {shape} says {dim} (at {where}.data{place})'
                )
        values = list(chain.from_iterable(values))
    return values
