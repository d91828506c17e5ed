"""What is known of the keys of one window in one partition: a cache in front of the state file, written back on commit.

Entries are values that are never changed, so undoing is putting the old one back. Each entry is dirty (put since the
last commit), logged (only the file's log has it), or stored (the file's `state` has it, too, or instead). What fits in
memory stays logged, which costs a commit little; what leaves memory is stored first. The log is kept short by logging
its oldest entries again and deleting its oldest rows.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol

import msgspec

from foretell.streams.state_file import StateFile

_ABSENT = object()
_NIL = msgspec.msgpack.encode(None)
_ENTRY_BYTES, _SPREAD = 100, 5
"""Memory of an entry beside its content, and bytes in memory for a byte of MessagePack: benchmarks/state.py."""
LOG_BYTES = 16 * 2**20
"""A log up to this size is never worked on; it is read at the start in a fraction of a second."""


class Kind(Protocol):
    """What is kept in a table."""

    @property
    def form(self) -> Any: ...

    def until(self, entry: Any) -> int:
        """The watermark from which on the entry is worth nothing."""


class Plan(NamedTuple):
    """What the next commit does to a table: log `body`, `store` what leaves memory, delete what is `gone`."""

    body: bytes
    copied: list[bytes]
    store: list[tuple[int, bytes, bytes, int]]
    gone: list[bytes]
    evicted: int
    swept: int
    position: bytes | None
    drain: int | None


class Table:
    """Get entries by `fetch` and then `held`; change them by `put`; `undo` takes back what came since `keep`."""

    def __init__(self, file: StateFile, partition: str, name: str, kind: Kind) -> None:
        self.partition, self.name, self.kind = partition, name, kind
        self.series = file.series(partition, name)
        self.held: dict[bytes, Any] = {}
        """Entries in use, by key; None is a deleted one."""
        self.dirty: dict[bytes, Any] = {}
        """The keys that the next commit writes."""
        self._file = file
        self._older: dict[bytes, Any] = {}
        self._before: dict[bytes, Any] = {}
        self._logged: dict[bytes, None] = {}
        self._ancient: dict[bytes, None] = {}
        self._horizon = 0
        self._log_bytes = self._ancient_bytes = 0
        self._size = 64.0
        self._queue: list[bytes] = []
        self._position: bytes | None = None
        self._encode = msgspec.msgpack.Encoder().encode
        self.decode = msgspec.msgpack.Decoder(kind.form).decode
        self._stored = bool(file.read("SELECT 1 FROM state WHERE series = ? LIMIT 1", (self.series,)))
        self._replay()

    def _replay(self) -> None:
        decode = msgspec.msgpack.Decoder(list[tuple[bytes, msgspec.Raw]]).decode
        for body in self._file.log(self.series):
            self._log_bytes += len(body)
            for key, entry in decode(body):
                if key not in self._logged:
                    self.held[key] = None if entry == _NIL else self.decode(entry)
                    self._logged[key] = None
        if self._logged:
            self._size = self._log_bytes / len(self._logged)

    def fetch(self, keys: Iterable[bytes]) -> None:
        """Bring the entries of these keys into `held`; a key that is not there afterwards has none."""
        held, older = self.held, self._older
        if not older and not self._stored:
            return
        unknown = []
        for key in keys:
            if key not in held:
                if key in older:
                    held[key] = older.pop(key)
                else:
                    unknown.append(key)
        if unknown and self._stored:
            for key, value in self._file.load(self.series, list(dict.fromkeys(unknown))):
                held[key] = self.decode(value)

    def put(self, key: bytes, entry: Any) -> None:
        """Set the entry of a fetched key; None deletes it."""
        before, held = self._before, self.held
        if key not in before:
            before[key] = held.get(key, _ABSENT)
        held[key] = entry

    def undo(self) -> None:
        """Take back every `put` since `keep`."""
        for key, entry in self._before.items():
            if entry is _ABSENT:
                del self.held[key]
            else:
                self.held[key] = entry
        self._before = {}

    def keep(self) -> None:
        """What was put stays, and goes into the next commit."""
        if self._before:
            self.dirty.update(self._before)
            self._before = {}

    def changes(self, plan: Plan) -> Iterator[tuple[bytes, bytes | None]]:
        """What a commit of `plan` changes, each entry as bytes; None for a deleted one."""
        for key in self.dirty:
            entry = self.held[key]
            yield key, None if entry is None else self._encode(entry)
        yield from ((key, None) for key in plan.gone if key not in self.dirty)

    def plan(self, watermark: int, excess: int) -> Plan:
        """What to do in the next commit, which should free about `excess` bytes. Changes nothing yet."""
        held, until, dirty, encode = self.held, self.kind.until, self.dirty, self._encode
        most = len(dirty) + 500
        record = [(key, held[key]) for key in dirty]
        gone = [key for key, entry in record if entry is None]
        copied = [key for key in islice(reversed(self._ancient), most) if key not in dirty]
        for key in copied:
            entry = held[key] if key in held else self._older[key]
            if entry is not None and until(entry) > watermark:
                record.append((key, entry))
        store: list[tuple[int, bytes, bytes, int]] = []
        evicted = min(len(self._older), 4 * most, -(-excess // self._entry_bytes)) if excess > 0 else 0
        for key, entry in islice(reversed(self._older.items()), evicted):
            end = watermark if entry is None else until(entry)
            if end <= watermark:
                gone.append(key)
            elif key in self._logged or key in self._ancient:
                store.append((self.series, key, encode(entry), end))
        swept = min(len(self._queue), most // 4)
        for key in self._queue[-swept:] if swept else ():
            entry = held.get(key)
            if entry is not None and until(entry) <= watermark and key not in dirty:
                gone.append(key)
        expired, position = self._sweep_stored(most, watermark)
        body = encode(record) if record else b""
        drain = self._horizon if self._horizon and len(copied) == len(self._ancient) else None
        return Plan(body, copied, store, gone + expired, evicted, swept, position, drain)

    def done(self, plan: Plan, drained: bool) -> None:
        """`plan` is committed. `drained`: the log has no row left up to its `drain`."""
        self._log_bytes += len(plan.body)
        if self.dirty:
            self._size += 0.2 * (len(plan.body) / (len(self.dirty) + len(plan.copied)) - self._size)
        logged, ancient = self._logged, self._ancient
        logged.update(dict.fromkeys(self.dirty))
        if ancient:
            for key in (*plan.copied, *self.dirty):
                if ancient.pop(key, _ABSENT) is None:
                    logged[key] = None
        for _ in range(plan.evicted):
            key, _entry = self._older.popitem()
            logged.pop(key, None)
            ancient.pop(key, None)
        self._stored = self._stored or bool(plan.store)
        for key in plan.gone:
            for known in (self.held, self._older, logged, ancient):
                known.pop(key, None)
        del self._queue[len(self._queue) - plan.swept :]
        self._queue = self._queue or list(self.held)
        self._position = plan.position
        self.dirty = {}
        if drained:
            self._log_bytes -= self._ancient_bytes
            self._horizon = self._ancient_bytes = 0
        live = (len(logged) + len(ancient)) * self._size
        if not self._horizon and self._log_bytes > max(LOG_BYTES, 3 * live):
            self._ancient, self._logged = logged, ancient
            self._ancient_bytes, self._horizon = self._log_bytes, self._file.last_logged(self.series)

    def _sweep_stored(self, most: int, watermark: int) -> tuple[list[bytes], bytes | None]:
        """Of the next `most` stored keys those that expired, and where to go on."""
        if not self._stored:
            return [], None
        rows = self._file.stored(self.series, self._position or b"", most)
        changed = (self.dirty, self._logged, self._ancient)  # what `state` says of these is old
        expired = [key for key, until in rows if until <= watermark and not any(key in keys for keys in changed)]
        return expired, rows[-1][0] if len(rows) == most else None

    @property
    def _entry_bytes(self) -> int:
        return int(_ENTRY_BYTES + _SPREAD * self._size)

    @property
    def nbytes(self) -> int:
        """About how much memory the entries take."""
        return (len(self.held) + len(self._older)) * self._entry_bytes

    def age(self) -> None:
        """What is not used from now on leaves memory first. Only after a commit."""
        if not self._older:
            self._older, self.held = self.held, {}
