"""Keyed state with the source's position beside it: both change in one transaction, or neither.

Partitioned like the source: all of a partition (entries, clock, position) can be dropped and rebuilt from a
change-log. Memory is bounded: entries beyond `cache_bytes` live in the file only.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from foretell.core.errors import StateError, did_you_mean
from foretell.streams.message import Change
from foretell.streams.protocol import Portion
from foretell.streams.state_file import StateFile
from foretell.streams.table import Kind, Plan, Table
from foretell.streams.times import Times
from foretell.streams.watermark import NEVER, Clock, Marks, Watermark

CACHE_BYTES = 256 * 2**20
"""What the cached entries may take by default."""


DRAINED = 8
"""Rows of the log that a commit deletes at most; all at once would be a pause."""
_DRAIN = "DELETE FROM log WHERE id IN (SELECT id FROM log WHERE series = ? AND id <= ? ORDER BY id LIMIT ?)"
_SET_POSITION = (
    "INSERT INTO partitions (name, position) VALUES (?, ?)"
    " ON CONFLICT (name) DO UPDATE SET position = excluded.position"
)
_SET_CLOCK = (
    "INSERT INTO partitions (name, clock) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET clock = excluded.clock"
)


_SELF, _CLOCK, _POSITION = "", b"clock", b"position"
"""Keys in a change-log of what is known of a partition itself; no window is named ""."""


class StateStore:
    """State by (partition, name, key). One thread; one process per file.

    What was put since the last `commit` is undone by a crash, together with the position; `commit` writes both.
    """

    def __init__(
        self, file: StateFile, version: str, kinds: Mapping[str, Kind], rule: Watermark, cache_bytes: int
    ) -> None:
        self._file = file
        self._version = version
        self._kinds = dict(kinds)
        self._rule = rule
        self._cache_bytes = cache_bytes
        self._tables: dict[tuple[str, str], Table] = {}
        self._clocks: dict[str, Clock] = {}
        self._moved: dict[str, None] = {}
        self._plans: dict[tuple[str, str], Plan] | None = None
        self._stale: dict[str, list[bytes]] = {}
        for name, clock in file.read("SELECT name, clock FROM partitions WHERE clock IS NOT NULL"):
            self._clocks[name] = msgspec.msgpack.decode(clock, type=Clock)
        self._anew: dict[str, str | None] = dict(file.read("SELECT name, position FROM anew"))

    @classmethod
    def open(
        cls,
        path: str | Path,
        version: str,
        kinds: Mapping[str, Kind],
        rule: Watermark | None = None,
        cache_bytes: int = CACHE_BYTES,
        reset: bool = False,
        fsync: bool = False,
    ) -> "StateStore":
        """Open the file, or make it. `version` is the digest of what makes the state (`Transform.version`), `kinds`
        says what is kept under each name, `rule` how event time advances.

        A killed process loses nothing that was committed. Power that fails may lose the last commits as a whole, state
        and position together, unless `fsync`. `reset` moves an old file aside; then no change-log counts before the
        first commit, however often the file is opened until then. Raises `StateError` if the file is damaged, in use
        or of another version.
        """
        file = StateFile.open(Path(path), version, reset, fsync)
        return cls(file, version, kinds, rule or Watermark(), cache_bytes)

    def table(self, partition: str, name: str) -> Table:
        """The entries under `name` in a partition."""
        table = self._tables.get((partition, name))
        if table is None:
            if name not in self._kinds:
                raise StateError(f'nothing is kept under the name "{name}". {did_you_mean(name, self._kinds)}')
            table = Table(self._file, partition, name, self._kinds[name])
            self._tables[partition, name] = table
        return table

    def get(self, partition: str, name: str, key: bytes) -> Any | None:
        """One entry, None if there is none."""
        table = self.table(partition, name)
        table.fetch((key,))
        return table.held.get(key)

    def put(self, partition: str, name: str, key: bytes, entry: Any) -> None:
        """Set one entry; None deletes it."""
        table = self.table(partition, name)
        table.fetch((key,))
        table.put(key, entry)

    def clock(self, partition: str) -> Clock:
        """How far a partition's event time has come."""
        return self._clocks.get(partition, Clock())

    def advance(self, partition: str, times: Times) -> Marks:
        """Events with these times came. Call it once for each event, before anything asks for the watermark."""
        clock = self.clock(partition)
        marks = self._rule.advance(clock, times)
        if marks.after != clock:
            self._clocks[partition] = marks.after
            self._moved[partition] = None
        return marks

    def watermark(self, partition: str = "") -> int:
        """That of a partition; of the whole stream (the smallest of all) without one. `NEVER` if there is none yet."""
        clocks = (self.clock(partition),) if partition else self._clocks.values()
        return min((self._rule.of(clock) for clock in clocks), default=NEVER)

    def positions(self) -> dict[str, str]:
        """Source positions of the last commit by "topic/partition"."""
        return dict(self._file.read("SELECT name, position FROM partitions WHERE position IS NOT NULL"))

    def undo(self) -> None:
        """Take back every put since the last `keep` or `commit`."""
        for table in self._tables.values():
            table.undo()

    def keep(self) -> None:
        """What was put stays, whatever is undone later."""
        for table in self._tables.values():
            table.keep()

    @property
    def pending(self) -> int:
        """Entries that wait for a commit; they stay in memory until then."""
        return sum(len(table.dirty) for table in self._tables.values())

    @property
    def nbytes(self) -> int:
        """About how much memory the entries in memory take."""
        return sum(table.nbytes for table in self._tables.values())

    def changes(self, positions: Mapping[str, str]) -> list[Change]:
        """What `commit` will change, for a change-log. Call it before anything else is put."""
        self.keep()
        self._plans = self._plan()
        found = [Change(name, key, None) for name in positions for key in self._stale.get(name, ())]
        for at, plan in self._plans.items():
            table = self._tables[at]
            for key, value in table.changes(plan):
                found.append(Change(table.partition, self._log_key(table.name, key), value))
        found += [Change(name, self._log_key(_SELF, _CLOCK), clock) for name, clock in self._clock_rows()]
        found += [Change(name, self._log_key(_SELF, _POSITION), at.encode()) for name, at in positions.items()]
        return found

    def commit(self, positions: Mapping[str, str]) -> None:
        """Write what changed and the positions, in one transaction.

        Raises `StateUnwritable` if the disk refuses. Then nothing was written and nothing is lost: commit again.
        """
        self.keep()
        plans = self._plan() if self._plans is None else self._plans
        self._plans = None
        begun = self._anew.keys() & ({"", *positions} if positions else set())
        with self._file.transaction() as connection:
            drained = {at: self._write(connection, self._tables[at].series, plan) for at, plan in plans.items()}
            connection.executemany(_SET_POSITION, positions.items())
            connection.executemany(_SET_CLOCK, self._clock_rows())
            connection.executemany("DELETE FROM anew WHERE name = ?", [(name,) for name in begun])
        self._moved = {}
        for name in begun:
            del self._anew[name]
        for partition in positions:
            self._stale.pop(partition, None)
        for at, plan in plans.items():
            self._tables[at].done(plan, drained[at])
        if self.nbytes > self._cache_bytes:
            for table in self._tables.values():
                table.age()

    def _clock_rows(self) -> list[tuple[str, bytes]]:
        return [(partition, msgspec.msgpack.encode(self._clocks[partition])) for partition in self._moved]

    def _plan(self) -> dict[tuple[str, str], Plan]:
        excess = self.nbytes - self._cache_bytes
        return {
            at: table.plan(self.watermark(table.partition), excess) for at, table in self._tables.items() if table.dirty
        }

    def _write(self, connection: sqlite3.Connection, series: int, plan: Plan) -> bool:
        """Whether the log is rid of what `plan.drain` names."""
        if plan.body:
            connection.execute("INSERT INTO log (series, body) VALUES (?, ?)", (series, plan.body))
        if plan.gone:
            gone = [(series, key) for key in plan.gone]
            connection.executemany("DELETE FROM state WHERE series = ? AND key = ?", gone)
        if plan.store:
            connection.executemany(
                "INSERT OR REPLACE INTO state (series, key, value, until) VALUES (?, ?, ?, ?)", plan.store
            )
        if plan.drain is None:
            return False
        return connection.execute(_DRAIN, (series, plan.drain, DRAINED)).rowcount < DRAINED

    def restore(self, partition: str, log: Iterable[Portion], enough: str | None = None) -> str | None:
        """Make a partition what `changes` once told, given in the order in which it was, in portions; and up to where
        that is. None: nothing is known of it. Only when nothing waits for a commit. Where the log has to be waited for
        (an empty portion), the position `enough` is the end.

        What another version wrote, or after a reset anything until somebody has committed, is left out; the next
        `changes` take it back.
        """
        self.drop(partition)
        anew = self._begins_anew(partition, enough)
        position: str | None = None
        stale: dict[bytes, None] = {}
        for portion in log:
            for packed, value in portion:
                version, name, key = msgspec.msgpack.decode(packed, type=tuple[str, str, bytes])
                if anew or version != self._version:
                    stale.pop(packed, None) if value is None else stale.setdefault(packed)
                elif name == _SELF:
                    position = self._recall(partition, key, value or b"") or position
                else:
                    self._put_packed(partition, name, key, value)
            if not portion and position is not None and position == enough:
                break
            self.commit({})  # without a position, a restore that was cut short is begun anew
        self._stale[partition] = list(stale)
        if position is None:
            self.drop(partition)
        else:
            self.commit({partition: position})
        return position

    def _begins_anew(self, partition: str, committed: str | None) -> bool:
        """Whether nobody has committed anything of a partition since a reset: then its log is from before. Also where
        this process dies before it does, and another partition was committed.
        """
        if "" in self._anew and partition not in self._anew:
            with self._file.transaction() as connection:
                connection.execute("INSERT INTO anew (name, position) VALUES (?, ?)", (partition, committed))
            self._anew[partition] = committed
        return partition in self._anew and self._anew[partition] == committed

    def _recall(self, partition: str, what: bytes, value: bytes) -> str | None:
        """A position, if it is one; or the clock."""
        if what == _POSITION:
            return value.decode()
        self._clocks[partition] = msgspec.msgpack.decode(value, type=Clock)
        self._moved[partition] = None
        return None

    def _put_packed(self, partition: str, name: str, key: bytes, value: bytes | None) -> None:
        table = self.table(partition, name)
        table.fetch((key,))
        table.put(key, None if value is None else table.decode(value))

    def drop(self, partition: str) -> None:
        """Forget all of a partition: it moved to another worker, or is to be rebuilt."""
        with self._file.transaction() as connection:
            for table in ("state", "log"):
                connection.execute(
                    f"DELETE FROM {table} WHERE series IN (SELECT id FROM series WHERE partition = ?)", (partition,)
                )
            connection.execute("DELETE FROM series WHERE partition = ?", (partition,))
            connection.execute("DELETE FROM partitions WHERE name = ?", (partition,))
        for at in [at for at in self._tables if at[0] == partition]:
            del self._tables[at]
        for known in (self._clocks, self._moved):
            known.pop(partition, None)

    def close(self) -> None:
        """Let go of the file; what was not committed is not in it."""
        self._file.close()

    def _log_key(self, name: str, key: bytes) -> bytes:
        return msgspec.msgpack.encode((self._version, name, key))
