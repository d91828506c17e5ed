"""The SQLite file that holds state and source positions: its tables, its checks, one transaction at a time.

Changes go to a log, one row for all that a commit changed in a table, because writing scattered keys costs a page each.
`state` holds what had to leave memory. Knows neither windows nor caches.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from foretell.core.errors import ConfigError, StateError, StateUnwritable

_APPLICATION = 0x666F7265
_FORMAT = 1
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
CREATE TABLE version (digest TEXT NOT NULL);
CREATE TABLE partitions (name TEXT PRIMARY KEY, position TEXT, clock BLOB) WITHOUT ROWID;
CREATE TABLE series (id INTEGER PRIMARY KEY, partition TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (partition, name));
CREATE TABLE state (series INTEGER, key BLOB, value BLOB NOT NULL, until INTEGER NOT NULL, PRIMARY KEY (series, key))
    WITHOUT ROWID;
CREATE TABLE log (id INTEGER PRIMARY KEY AUTOINCREMENT, series INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX log_series ON log (series);
"""
_ANEW = "CREATE TABLE IF NOT EXISTS anew (name TEXT PRIMARY KEY, position TEXT) WITHOUT ROWID"
"""Partitions that are to begin anew, and up to where the group was then; "" until the first commit after a reset."""
_CHUNKS = (1, 8, 64, 256)
"""Numbers of keys of a SELECT; few, so that SQLite keeps them prepared."""
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_REFUSED = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)


class StateFile:
    """One open file; this process alone holds it until `close`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path, version: str, reset: bool = False, fsync: bool = False) -> "StateFile":
        """Open or create. With `reset` what was there is moved aside to PATH.old.

        Raises `StateError` if it is damaged, no state, in use, or of another `version`.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the folder of the state {path}: {error.strerror}") from None
        if reset:
            _move_aside(path)
        file = cls(path, None)  # type: ignore[arg-type]
        try:
            file._connection = sqlite3.connect(path, timeout=0.2, isolation_level=None, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise ConfigError(f"cannot open the state {path}: {error}; name a file that can be written") from None
        try:
            with file._named_errors():
                file._prepare(version, fsync, reset)
        except BaseException:
            file.close()
            raise
        return file

    def _prepare(self, version: str, fsync: bool, reset: bool) -> None:
        for pragma in (
            "locking_mode = EXCLUSIVE",  # no second processor, and no shared memory to keep up
            "journal_mode = WAL",
            f"synchronous = {'FULL' if fsync else 'NORMAL'}",
            "cache_size = -16000",
            "wal_autocheckpoint = 4000",
            "journal_size_limit = 67108864",
        ):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._check(version)
            self._connection.execute(_ANEW)
            if reset:
                self._connection.execute("INSERT INTO anew (name) VALUES ('')")
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _check(self, version: str) -> None:
        tables = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if not tables:
            for statement in _SCHEMA.split(";"):
                self._connection.execute(statement)
            self._connection.execute("INSERT INTO version VALUES (?)", (version,))
            return
        if self._connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise StateError(f"{self.path} is a SQLite database, but no state of a stream; name another file")
        known = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if known != _FORMAT:
            raise StateError(
                f"{self.path} has format {known}, this foretell reads {_FORMAT}: use the foretell that wrote it, or"
                " start anew with --reset-state"
            )
        faults = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if faults != "ok":
            self._corrupt(" ".join(faults.split()))
        made_by = self._connection.execute("SELECT digest FROM version").fetchone()[0]
        if made_by != version:
            raise StateError(
                f"{self.path} was made by another version of the transform (sha256 {made_by[:12]}…, now"
                f" {version[:12]}…), and its windows may mean something else: go back to that file, or start anew with"
                " --reset-state (the old state is kept as .old)"
            )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises `StateUnwritable` if the disk refuses; then nothing of it was written."""
        with self._named_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite may have rolled back by itself
                    self._connection.execute("ROLLBACK")
                raise

    def read(self, statement: str, values: Sequence[object] = ()) -> list[tuple]:
        """All rows of a SELECT."""
        with self._named_errors():
            return self._connection.execute(statement, values).fetchall()

    def series(self, partition: str, name: str) -> int:
        """The number of a partition's table, made if new."""
        which = "SELECT id FROM series WHERE partition = ? AND name = ?"
        found = self.read(which, (partition, name))
        if not found:
            with self.transaction() as connection:
                connection.execute("INSERT INTO series (partition, name) VALUES (?, ?)", (partition, name))
            found = self.read(which, (partition, name))
        return int(found[0][0])

    def load(self, series: int, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """The keys of `keys` that are stored, with their values."""
        at = 0
        while at < len(keys):
            left = len(keys) - at
            size = next((size for size in _CHUNKS if size >= left), _CHUNKS[-1])
            asked: list[bytes | None] = [*keys[at : at + size]]
            asked += [None] * (size - len(asked))  # equal to no key
            marks = ",".join("?" * size)
            yield from self.read(
                f"SELECT key, value FROM state WHERE series = ? AND key IN ({marks})", (series, *asked)
            )
            at += size

    def log(self, series: int) -> Iterator[bytes]:
        """The bodies of a table's log, newest first."""
        last = 2**62
        while rows := self.read(
            "SELECT id, body FROM log WHERE series = ? AND id < ? ORDER BY id DESC LIMIT 64", (series, last)
        ):
            yield from (body for _, body in rows)
            last = rows[-1][0]

    def last_logged(self, series: int) -> int:
        """The newest row of a table's log."""
        return int(self.read("SELECT coalesce(max(id), 0) FROM log WHERE series = ?", (series,))[0][0])

    def stored(self, series: int, after: bytes, most: int) -> list[tuple[bytes, int]]:
        """Stored keys in their order from `after` on, each with the watermark that it is kept until."""
        return self.read(
            "SELECT key, until FROM state WHERE series = ? AND key > ? ORDER BY key LIMIT ?", (series, after, most)
        )

    def close(self) -> None:
        """Let go of the file. What was not committed is not in it."""
        if self._connection is not None:
            self._connection.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _CORRUPT:
                self._corrupt(str(error))
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StateError(
                    f"{self.path} is in use by another process: stop that one, or give each a file of its own"
                ) from None
            if code in _REFUSED:
                raise StateUnwritable(
                    f"cannot write the state {self.path}: {error}. Nothing is lost: make room or mend the disk; the"
                    " commit is tried again"
                ) from error
            raise

    def _corrupt(self, what: str) -> NoReturn:
        raise StateError(
            f"the state {self.path} is damaged ({what}): put a good copy in its place, or start anew with --reset-state"
            " (the damaged file is kept as .old)"
        ) from None


def _move_aside(path: Path) -> None:
    for suffix in ("-wal", "-shm", ""):
        part = Path(f"{path}{suffix}")
        Path(f"{path}.old{suffix}").unlink(missing_ok=True)
        if part.exists():
            part.rename(f"{path}.old{suffix}")
