"""Stores on every supported pair of database and filesystem, and a PostgreSQL server of the tests' own."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from foretell.store.store import Store


def _binary(name: str) -> str | None:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((str(folder / name) for folder in versions if (folder / name).exists()), shutil.which(name))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _account() -> dict:
    """initdb refuses root, so root runs the server as the user that Debian's package made."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip('PostgreSQL refuses to run as root, and there is no user "postgres" to run it as')
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a fresh PostgreSQL server, stopped and removed at the end."""
    initdb, server = _binary("initdb"), _binary("postgres")
    if not initdb or not server:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    account = _account()
    folder = Path(tempfile.mkdtemp(prefix="foretell-pg-"))
    try:
        if account:
            os.chown(folder, account["user"], account["group"])
        command = [initdb, "-D", str(folder / "data"), "-U", "foretell", "--auth=trust", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **account)
        port = _free_port()
        options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", str(folder)]
        process = subprocess.Popen(
            [server, "-D", str(folder / "data"), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            **account,
        )
        try:
            url = f"postgresql://foretell@127.0.0.1:{port}/postgres"
            _wait_for(url)
            yield url
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nothing in it is worth a checkpoint
            process.wait(20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(url: str) -> None:
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    for _ in range(100):
        try:
            engine.connect().close()
            break
        except sa.exc.OperationalError:
            time.sleep(0.1)
    else:
        pytest.fail("PostgreSQL did not start within 10 s")
    engine.dispose()


def execute(url: str, *statements: str) -> None:
    """Run SQL statements on a PostgreSQL server, each by itself."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


@pytest.fixture
def postgres_database(postgres: str) -> str:
    """The URL of an empty database (the same one each time: making one takes long)."""
    execute(postgres, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return postgres


BACKENDS = ["sqlite, local files", "sqlite, memory files", "postgresql, local files"]


@pytest.fixture(params=BACKENDS)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens one and the same store as often as asked, on each backend in turn."""
    opened: list[Store] = []
    url, database = str(tmp_path / "store"), None
    if "memory" in request.param:
        url, database = f"memory://{uuid.uuid4().hex}", f"sqlite:///{tmp_path / 'store.db'}"
    if "postgresql" in request.param:
        database = request.getfixturevalue("postgres_database")

    def open_again() -> Store:
        opened.append(Store.open(url, database, cache=tmp_path / "cache"))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], Store]) -> Store:
    return open_store()
