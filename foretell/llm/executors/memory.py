"""Keys and values of all slots: reserved virtually, committed by the system on first touch. Knows no sequences."""

import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretell.core.errors import ConfigError


class KvMemory:
    """Per array (keys and values of each layer) [slots, heads, context, width] in one anonymous mapping.

    A slot takes memory for the positions that were written, in whole pages (16 positions of one head of 64 float32).
    """

    def __init__(self, arrays: int, slots: int, heads: int, context: int, width: int, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        shape = (arrays, slots, heads, context, width)
        size = int(np.prod(shape, dtype=np.int64)) * self._dtype.itemsize
        try:
            self._map = _reserve(size)
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(
                f"{slots} slots of {context} tokens need {size / 1e9:.1f} GB of address space, which the system"
                f" refuses ({error}). Serve fewer sequences at a time, or a shorter context"
            ) from None
        _advise(self._map, "MADV_NOHUGEPAGE")  # a huge page would be committed whole for one token
        self._all: NDArray[Any] = np.frombuffer(self._map, self._dtype).reshape(shape)

    @property
    def token_bytes(self) -> int:
        """Bytes of one position in all arrays."""
        arrays, _, heads, _, width = self._all.shape
        return int(arrays * heads * width * self._dtype.itemsize)

    @property
    def whole(self) -> NDArray[Any]:
        """[arrays, slots, heads, context, width]: a view."""
        return self._all

    def part(self, array: int, first: int, count: int) -> NDArray[Any]:
        """[count, heads, context, width] of slots first … first + count - 1: a view, contiguous."""
        return self._all[array, first : first + count]

    def read(self, slot: int, start: int, stop: int) -> NDArray[Any]:
        """A copy [arrays, heads, stop - start, width] of positions [start, stop)."""
        return self._all[:, slot, :, start:stop].copy()

    def write(self, slot: int, start: int, block: NDArray[Any]) -> None:
        self._all[:, slot, :, start : start + block.shape[2]] = block

    def move(self, source: int, target: int, length: int) -> None:
        self._all[:, target, :, :length] = self._all[:, source, :, :length]
        self.release(source)

    def release(self, slot: int) -> None:
        """Give the slot's pages back to the system; what is read from them then is zeros or the old numbers."""
        one = self._all[0, slot].nbytes
        for array in range(self._all.shape[0]):
            start = (array * self._all.shape[1] + slot) * one
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (start + one) // mmap.PAGESIZE * mmap.PAGESIZE - first
            if length > 0:
                _advise(self._map, "MADV_DONTNEED", first, length)

    def close(self) -> None:
        """Give everything back, except where somebody still holds a view."""
        self._all = np.empty((0, 0, 0, 0, 0), self._dtype)
        try:
            self._map.close()
        except BufferError:
            pass  # freed with the last view


def _reserve(size: int) -> mmap.mmap:
    """An anonymous private mapping (shared ones do not give pages back), reserved beyond what the machine has."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    lazy = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | lazy)


def _advise(memory: mmap.mmap, advice: str, *where: int) -> None:
    """A hint, where the system knows it."""
    option = getattr(mmap, advice, None)
    if option is not None:
        try:
            memory.madvise(option, *where)
        except OSError:
            pass
