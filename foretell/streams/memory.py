"""What is kept of a key without a window: values that a transform puts there, and tensors between messages."""

from typing import Any

import msgspec
import numpy as np

VALUES, TENSORS = "values", "tensors"
"""The tables of what a transform puts and of a model's own state. No window can have these names."""
_ARRAY = 1
"""The extension type of an array among MessagePack's own."""


class Memory(msgspec.Struct, frozen=True, array_like=True):
    """Packed `items` by name, worth nothing from the event time `until` on."""

    until: int
    items: dict[str, bytes]


class Memories:
    """The kind of a table of `Memory`."""

    form = Memory

    def until(self, entry: Memory) -> int:
        return entry.until


def alive(entry: Memory | None, time: int, mark: int) -> dict[str, bytes]:
    """The items for an event of that time at the watermark `mark`; {} when they are past, removed already or not."""
    return {} if entry is None or entry.until <= max(time, mark) else entry.items


def pack(value: Any) -> bytes:
    """Plain data and arrays as bytes. `TypeError` for anything else."""
    return _ENCODER.encode(value)


def unpack(packed: bytes) -> Any:
    """The inverse of `pack`; a value of its own each time."""
    return _DECODER.decode(packed)


def _write(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufSU":
        content = (value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes())
        return msgspec.msgpack.Ext(_ARRAY, msgspec.msgpack.encode(content))
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be kept; keep plain data or arrays of numbers or text")


def _read(code: int, data: memoryview) -> Any:
    dtype, shape, content = msgspec.msgpack.decode(data, type=tuple[str, tuple[int, ...], bytes])
    return np.frombuffer(content, dtype).reshape(shape).copy()


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_write)
_DECODER = msgspec.msgpack.Decoder(ext_hook=_read)
