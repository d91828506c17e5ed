"""Weights from the safetensors files of a Hugging Face folder, one file or many with an index.

The format is eight bytes of header length, a JSON header of dtypes, shapes and offsets, and the numbers
(https://huggingface.co/docs/safetensors). Read here rather than by its library, which has no bfloat16 for numpy.
"""

import json
import mmap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from foretell.core.errors import PackageError, did_you_mean

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_PREFIXES = (("model.language_model.", "model."), ("language_model.", ""))
"""How multimodal checkpoints name the decoder's part of them."""


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class SafetensorsWeights:
    """The `Weights` of a folder. Files are mapped, so memory holds only what is being converted."""

    def __init__(self, folder: Path) -> None:
        self._entries: dict[str, tuple[Path, memoryview, _Entry]] = {}
        for path in _files(folder):
            self._read(path)

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def get(self, name: str) -> NDArray[np.float32]:
        if name not in self._entries:
            raise PackageError(f'no weight "{name}" in the safetensors files. {did_you_mean(name, self._entries)}')
        path, data, entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            raise PackageError(
                f'{path.name}: weight "{name}" is {entry.dtype}; foretell reads {", ".join(_DTYPES)}. Import the'
                " model's original weights"
            )
        start, stop = entry.data_offsets
        numbers = np.frombuffer(data[start:stop], _DTYPES[entry.dtype])
        if entry.dtype == "BF16":  # the upper half of a float32
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers.astype(np.float32, copy=False).reshape(entry.shape)

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            start = 8 + int.from_bytes(whole[:8], "little")
            header = msgspec.json.decode(whole[8:start], type=dict[str, Any])
            header.pop("__metadata__", None)
            entries = msgspec.convert(header, dict[str, _Entry])
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise PackageError(f"{path.name}: not a readable safetensors file ({error})") from None
        data = whole[start:]
        for name, entry in entries.items():
            first, last = entry.data_offsets
            size = np.dtype(_DTYPES.get(entry.dtype, "u1")).itemsize * int(np.prod(entry.shape, dtype=np.int64))
            if not 0 <= first <= last <= len(data) or (entry.dtype in _DTYPES and last - first != size):
                raise PackageError(f'{path.name}: cut short or corrupt at "{name}"; fetch the file again')
            self._entries[_canonical(name)] = (path, data, entry)


def _canonical(name: str) -> str:
    for prefix, plain in _PREFIXES:
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def _files(folder: Path) -> Iterator[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if not (folder / "model.safetensors").is_file():
            raise PackageError(
                f"{folder.name}: neither model.safetensors nor model.safetensors.index.json is there. Weights in other"
                " formats (.bin, .pth) run code when read: convert them to safetensors first"
            )
        yield folder / "model.safetensors"
        return
    try:
        table = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(map(str, table.values())))
    except (ValueError, KeyError, AttributeError) as error:
        raise PackageError(f"{index.name}: not an index of safetensors files ({error!r})") from None
    for name in names:
        path = folder / name
        if path.parent != folder or not path.is_file():
            raise PackageError(f"{index.name} names {name}, which is not in the folder")
        yield path
