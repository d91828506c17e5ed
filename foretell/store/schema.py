"""The one database schema, and how an older database becomes the present one. Knows no files and no policy."""

from collections.abc import Callable

import sqlalchemy as sa

from foretell.core.errors import ConfigError

METADATA = sa.MetaData()

SCHEMA_VERSION = sa.Table("schema_version", METADATA, sa.Column("version", sa.Integer, nullable=False))

CHANGES = sa.Table(
    "changes",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("counter", sa.BigInteger, nullable=False),
)
"""One row; every write adds one to `counter`, so that a server sees with one cheap read that something moved."""

MODELS = sa.Table(
    "models",
    METADATA,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("last_number", sa.Integer, nullable=False),
)
"""`last_number` is the highest number ever given, so that a removed version's number is not given again."""

VERSIONS = sa.Table(
    "versions",
    METADATA,
    sa.Column("name", sa.String(100), sa.ForeignKey("models.name"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("runtime", sa.String(32), nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
)
"""A row here is what makes a version exist; files without one are leavings of an interrupted add."""

ALIASES = sa.Table(
    "aliases",
    METADATA,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("alias", sa.String(100), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
)

ALIAS_HISTORY = sa.Table(
    "alias_history",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(100), nullable=False, index=True),
    sa.Column("alias", sa.String(100), nullable=False),
    sa.Column("before", sa.Integer),
    sa.Column("after", sa.Integer),
    sa.Column("at", sa.String(32), nullable=False),
)

JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("output", sa.String(1000), nullable=False, index=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(200), nullable=False),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("report", sa.Text, nullable=False),
)

JOB_PARTS = sa.Table(
    "job_parts",
    METADATA,
    sa.Column("job", sa.String(32), sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("file", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("names", sa.Text, nullable=False),
    sa.Column("read", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("errors", sa.BigInteger, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("compute_s", sa.Float, nullable=False),
    sa.Column("dollars", sa.Float, nullable=False),
    sa.Column("measures", sa.Text, nullable=False),
    sa.Column("finished", sa.Float, nullable=False),
)
"""A row here is what commits a part of a job's output; files without one are leavings."""

FILES = sa.Table(
    "files",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("filename", sa.String(1000), nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
"""A row here is what makes a file exist that a client uploaded or that a batch of calls made."""


def _create(connection: sa.Connection) -> None:
    first = (SCHEMA_VERSION, CHANGES, MODELS, VERSIONS, ALIASES, ALIAS_HISTORY)
    METADATA.create_all(connection, tables=first)
    connection.execute(CHANGES.insert().values(id=1, counter=0))
    connection.execute(SCHEMA_VERSION.insert().values(version=0))


def _add_jobs(connection: sa.Connection) -> None:
    METADATA.create_all(connection, tables=(JOBS, JOB_PARTS))


def _add_files(connection: sa.Connection) -> None:
    METADATA.create_all(connection, tables=(FILES,))


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_create, _add_jobs, _add_files)
"""Step n leads from schema n to n + 1. Steps are only ever appended."""


def schema_version(connection: sa.Connection) -> int:
    """The schema of the database: 0 when it is empty."""
    if not sa.inspect(connection).has_table(SCHEMA_VERSION.name):
        return 0
    return int(connection.execute(sa.select(SCHEMA_VERSION.c.version)).scalar_one())


def migrate(connection: sa.Connection) -> None:
    """Bring the database to the present schema, inside the caller's transaction. `ConfigError` if it is newer."""
    found = schema_version(connection)
    if found > len(MIGRATIONS):
        raise ConfigError(
            f"the database has schema {found}, this foretell knows up to {len(MIGRATIONS)}. Upgrade foretell"
        )
    for step in MIGRATIONS[found:]:
        step(connection)
    if found < len(MIGRATIONS):
        connection.execute(SCHEMA_VERSION.update().values(version=len(MIGRATIONS)))
