"""Connections and transactions on SQLite or PostgreSQL. Writers queue up; readers never wait for them."""

import sqlite3
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from foretell.core.errors import ConfigError, Conflict, NotReady
from foretell.store.schema import CHANGES, MIGRATIONS, migrate, schema_version

_BUSY_S = 30.0
_RETRY_S = 0.02
_MIGRATION_LOCK = 0x666F7265  # one number for all foretells that share a PostgreSQL database


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling would begin late and without the write lock; ours is in _on_begin.
    connection.isolation_level = None
    # Whatever its busy timeout, SQLite does not wait while another process switches to WAL or leaves it as the last.
    for _ in range(int(_BUSY_S / _RETRY_S)):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            time.sleep(_RETRY_S)
    for pragma in ("synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _on_sqlite_begin(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later fails at once if another wrote between: take the lock first.
    writes = connection.get_execution_options().get("foretell_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _engine(url: sa.URL) -> sa.Engine:
    backend = url.get_backend_name()
    if backend == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": _BUSY_S})
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
        return engine
    if backend == "postgresql":
        if "+" not in url.drivername:
            url = url.set(drivername="postgresql+psycopg")
        try:
            return sa.create_engine(url, pool_pre_ping=True)
        except ImportError:
            raise ConfigError("a PostgreSQL store needs its driver: pip install 'foretell[postgres]'") from None
    raise ConfigError(f'database "{backend}" is not supported; use sqlite:///path or postgresql://host/name')


class Database:
    """One engine with foretell's schema. Safe to share between threads; open it anew after a fork."""

    def __init__(self, engine: sa.Engine, where: str) -> None:
        self._engine = engine
        self._reading = engine
        self._writing = engine.execution_options(foretell_write=True)
        self.where = where

    @classmethod
    def open(cls, url: str) -> "Database":
        """Connect and bring the schema up to date. Raises `ConfigError` if the URL or the server is no good."""
        try:
            parsed = sa.make_url(url)
        except exc.ArgumentError:
            raise ConfigError(
                f'"{url}" is not a database URL; write sqlite:///path or postgresql://host/name'
            ) from None
        where = parsed.render_as_string(hide_password=True)
        database = cls(_engine(parsed), where)
        try:
            database._prepare()
        except exc.DBAPIError as error:
            database.close()
            raise ConfigError(f"cannot open the database {where}: {error.orig}") from None
        return database

    def _prepare(self) -> None:
        with self._reading.begin() as connection:
            if schema_version(connection) == len(MIGRATIONS):
                return
        with self._writing.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            migrate(connection)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads; everything in it sees the same moment. `NotReady` if that fails."""
        with self._named_errors(), self._reading.begin() as connection:
            yield connection

    @contextmanager
    def write(self, name: str, *, counts: bool = True) -> Iterator[sa.Connection]:
        """A transaction that holds the lock of `name` (a model, a job). Commits at the end. It counts as one change
        of what servers serve unless `counts` is false.

        Raises `Conflict` when other writers kept the database busy too long, `NotReady` if it cannot write.
        """
        with self._named_errors(), self._writing.begin() as connection:
            self._lock(connection, name)
            yield connection
            if counts:
                # Last, because on PostgreSQL this row is the one that writers of different models share.
                connection.execute(CHANGES.update().values(counter=CHANGES.c.counter + 1))

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except exc.OperationalError as error:
            if "locked" in str(error.orig):
                raise Conflict(f"{self.where} was busy for {_BUSY_S:.0f} s; try again") from None
            raise NotReady(f"the database {self.where} does not answer: {error.orig}") from error

    def _lock(self, connection: sa.Connection, name: str) -> None:
        # SQLite's BEGIN IMMEDIATE already holds the whole file. A lock by name covers rows not there yet, too.
        if self._engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(zlib.crc32(name.encode()))))

    def change_token(self) -> int:
        """A number that differs after any committed write: one read of one row."""
        with self.read() as connection:
            return int(connection.execute(sa.select(CHANGES.c.counter)).scalar_one())

    def close(self) -> None:
        self._engine.dispose()
