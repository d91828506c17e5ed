"""Answers worth keeping: a response cache with a byte budget and a time to live. Pure; the clock is passed in."""

from collections import OrderedDict

import xxhash

from foretell.core.clock import Clock
from foretell.core.settings import CacheSettings
from foretell.core.tensor import Tensors, datatype_of, to_wire

ENTRY_OVERHEAD = 512
"""Bytes charged for an entry beside its tensors."""


def request_digest(inputs: Tensors) -> bytes:
    """128-bit digest of names, datatypes, shapes and contents. Equal requests have equal digests."""
    state = xxhash.xxh3_128()
    for name in sorted(inputs):
        array = inputs[name]
        raw = to_wire(array)
        state.update(f"{name}\0{datatype_of(array)}{array.shape}{len(raw)}\0".encode())
        state.update(raw)
    return state.digest()


class ResponseCache:
    """Least recently used out first. One per deployed version, so a version never answers for another."""

    def __init__(self, settings: CacheSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, int, Tensors]] = OrderedDict()
        self.nbytes = 0

    def get(self, digest: bytes) -> Tensors | None:
        entry = self._entries.get(digest)
        if entry is not None and self._settings.ttl_s and self._clock() - entry[0] > self._settings.ttl_s:
            self._drop(digest)
            entry = None
        if entry is None:
            return None
        self._entries.move_to_end(digest)
        return entry[2]

    def put(self, digest: bytes, outputs: Tensors) -> None:
        # Outputs are views of a receive buffer that may hold many answers: keep copies, or it all stays alive.
        kept = {name: array.copy() for name, array in outputs.items()}
        size = ENTRY_OVERHEAD + sum(len(to_wire(array)) for array in kept.values())
        if size > self._settings.max_bytes:
            return
        if digest in self._entries:
            self._drop(digest)
        self._entries[digest] = (self._clock(), size, kept)
        self.nbytes += size
        while self.nbytes > self._settings.max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, digest: bytes) -> None:
        self.nbytes -= self._entries.pop(digest)[1]
