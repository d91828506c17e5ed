"""Several processes use one store at once, and some of them die in the middle."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from foretell.core.errors import Conflict, NotReady, PackageError
from foretell.store.store import Store
from tests.store.packages import write_package

ADD = """
import sys
from pathlib import Path
from foretell.store.store import Store

store = Store.open(sys.argv[1], sys.argv[2] or None)
print("ready", flush=True)
sys.stdin.readline()
for folder in sys.argv[3:]:
    print(store.add("m", Path(folder)).number, flush=True)
"""

MOVE = """
import sys
from foretell.core.errors import Conflict
from foretell.store.store import Store

store = Store.open(sys.argv[1], sys.argv[2] or None)
print("ready", flush=True)
sys.stdin.readline()
try:
    store.set_alias("m", "live", int(sys.argv[3]), expected=None)
    print("won")
except Conflict:
    print("lost")
"""

DIE = """
import os, signal, sys
from pathlib import Path
from foretell.store.blobs import Blobs
from foretell.store.store import Store

step = sys.argv[3]
plain = getattr(Blobs, step.split("-")[1])

def die(self, *args):
    if step.startswith("after"):
        plain(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)

store = Store.open(sys.argv[1], sys.argv[2] or None)
setattr(Blobs, step.split("-")[1], die)
store.add("m", Path(sys.argv[4]))
"""


def start(script: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def race(scripts: list[subprocess.Popen]) -> list[list[str]]:
    """Let all processes go at the same moment; what each printed after that."""
    for process in scripts:
        assert process.stdout.readline() == "ready\n"
    for process in scripts:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate(timeout=60)[0].split() for process in scripts]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Store URL and database URL ("" for the default)."""
    database = request.getfixturevalue("postgres_database") if request.param == "postgresql" else ""
    return str(tmp_path / "store"), database


def open_place(place: tuple[str, str]) -> Store:
    return Store.open(place[0], place[1] or None)


def test_processes_that_add_at_once_all_land_with_different_numbers(place: tuple[str, str], tmp_path: Path):
    folders = [[write_package(tmp_path / f"{p}-{i}", f"{p}-{i}".encode()) for i in range(5)] for p in range(3)]
    printed = race([start(ADD, *place, *mine) for mine in folders])
    numbers = [int(number) for mine in printed for number in mine]
    assert sorted(numbers) == list(range(1, 16))
    with open_place(place) as store:
        by_number = {info.number: store.fetch(info).artifact.read_bytes() for info in store.versions("m")}
        contents = {int(n): f"{p}-{i}".encode() for p, mine in enumerate(printed) for i, n in enumerate(mine)}
        assert by_number == contents


def test_processes_that_add_the_same_contents_at_once_make_one_version(place: tuple[str, str], tmp_path: Path):
    folder = write_package(tmp_path / "prepared")
    assert race([start(ADD, *place, folder) for _ in range(2)]) == [["1"]] * 2
    with open_place(place) as store:
        assert len(store.versions("m")) == 1
        assert store._blobs.names("packages") == ["m"]


def test_an_alias_race_has_one_winner(place: tuple[str, str], tmp_path: Path):
    with open_place(place) as store:
        for content in (b"a", b"b"):
            store.add("m", write_package(tmp_path / "prepared", content))
        printed = race([start(MOVE, *place, version) for version in (1, 2)])
        assert sorted(printed) == [["lost"], ["won"]]
        winner = printed.index(["won"]) + 1
        assert store.aliases("m") == {"live": winner}
        assert [change.after for change in store.alias_history("m")] == [winner]


@pytest.mark.parametrize("step", ["before-write", "before-move", "after-move"])
def test_an_add_that_is_killed_registers_nothing_and_blocks_nothing(
    place: tuple[str, str], tmp_path: Path, step: str
):
    folder = write_package(tmp_path / "prepared")
    died = start(DIE, *place, step, folder)
    died.communicate(timeout=60)
    assert died.returncode == -signal.SIGKILL
    with open_place(place) as store:
        assert store.names() == []
        info = store.add("m", write_package(tmp_path / "other", b"other"))
        assert info.number == 1
        assert store.fetch(info).artifact.read_bytes() == b"other"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root; the store's tests raise ENOSPC by a stand-in as well")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_really_is_full_leaves_what_was_there(small_disk: Path, tmp_path: Path):
    with Store.open(small_disk) as store:
        store.add("m", write_package(tmp_path / "small-one", b"fits"))
        with pytest.raises(PackageError, match="No space left"):
            store.add("m", write_package(tmp_path / "large", os.urandom(2**20)))
        assert [info.number for info in store.versions("m")] == [1]
        assert store._blobs.names("packages") == ["m"]
        assert store.add("m", write_package(tmp_path / "another", b"fits too")).number == 2


def test_a_database_that_stays_busy_is_a_conflict_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("foretell.store.database._BUSY_S", 0.05)
    with Store.open(tmp_path / "store") as one, Store.open(tmp_path / "store") as other:
        with one._database.write("m"), pytest.raises(Conflict, match="busy"):
            other.add("m", write_package(tmp_path / "prepared"))
        assert one._blobs.names("packages") == []
        assert other.add("m", write_package(tmp_path / "prepared")).number == 1


def test_a_lost_database_is_named(tmp_path: Path, postgres_database: str):
    with Store.open(tmp_path / "store", postgres_database) as store:
        name = postgres_database.rsplit("/", 1)[1]
        server = postgres_database.replace(name, "postgres").replace("postgresql:", "postgresql+psycopg:")
        engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()
        with pytest.raises(NotReady, match="does not answer"):
            store.names()
