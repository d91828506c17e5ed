"""Several processes use one store at once, and some of them die in the middle."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from foretell.core.errors import Conflict, NotReady, PackageError
from foretell.store.blobs import Blobs
from foretell.store.store import Store
from tests.store.conftest import execute
from tests.store.packages import write_package

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pytest", "foretell.store.store", "sqlalchemy.dialects.postgresql.psycopg", "tests.store.packages"]
)

Place = tuple[str, str]


def open_place(place: Place) -> Store:
    return Store.open(place[0], place[1] or None)


def add_all(place: Place, start: Barrier, *folders: Path) -> list[int]:
    with open_place(place) as store:
        start.wait(60)
        return [store.add("m", folder).number for folder in folders]


def move_live(place: Place, start: Barrier, version: int) -> str:
    with open_place(place) as store:
        start.wait(60)
        try:
            store.set_alias("m", "live", version, expected=None)
        except Conflict:
            return "lost"
        return "won"


def answering(answer, work: Callable, place: Place, start: Barrier, *arguments: object) -> None:
    try:
        answer.send(work(place, start, *arguments))
    except Exception as error:
        start.abort()
        answer.send(error)


def add_and_die(place: Place, step: str, folder: Path) -> None:
    when, method = step.split("-")
    plain = getattr(Blobs, method)

    def die(*args: object) -> None:
        if when == "after":
            plain(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Blobs, method, die)
    open_place(place).add("m", folder)


def race(work: Callable, place: Place, arguments: list[tuple]) -> list:
    """Run `work` in one process for each entry of `arguments`, all let go at the same moment; their answers."""
    start = PROCESSES.Barrier(len(arguments))
    pipes = [PROCESSES.Pipe(duplex=False) for _ in arguments]
    processes = [
        PROCESSES.Process(target=answering, args=(answer, work, place, start, *mine))
        for (_, answer), mine in zip(pipes, arguments, strict=True)
    ]
    for process in processes:
        process.start()
    for _, answer in pipes:
        answer.close()
    answers = [reader.recv() for reader, _ in pipes]
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return answers


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Store URL and database URL ("" for the default)."""
    database = request.getfixturevalue("postgres_database") if request.param == "postgresql" else ""
    return str(tmp_path / "store"), database


def test_processes_that_add_at_once_all_land_with_different_numbers(place: Place, tmp_path: Path):
    folders = [[write_package(tmp_path / f"{p}-{i}", f"{p}-{i}".encode()) for i in range(5)] for p in range(3)]
    answers = race(add_all, place, [tuple(mine) for mine in folders])
    numbers = [number for mine in answers for number in mine]
    assert sorted(numbers) == list(range(1, 16))
    with open_place(place) as store:
        by_number = {info.number: store.fetch(info).artifact.read_bytes() for info in store.versions("m")}
        contents = {n: f"{p}-{i}".encode() for p, mine in enumerate(answers) for i, n in enumerate(mine)}
        assert by_number == contents


def test_processes_that_add_the_same_contents_at_once_make_one_version(place: Place, tmp_path: Path):
    folder = write_package(tmp_path / "prepared")
    assert race(add_all, place, [(folder,)] * 3) == [[1]] * 3
    with open_place(place) as store:
        assert len(store.versions("m")) == 1
        assert store._blobs.names("packages") == ["m"]


def test_an_alias_race_has_one_winner(place: Place, tmp_path: Path):
    with open_place(place) as store:
        for content in (b"a", b"b"):
            store.add("m", write_package(tmp_path / "prepared", content))
        answers = race(move_live, place, [(1,), (2,), (1,)])
        assert sorted(answers) == ["lost", "lost", "won"]
        winner = (1, 2, 1)[answers.index("won")]
        assert store.aliases("m") == {"live": winner}
        assert [change.after for change in store.alias_history("m")] == [winner]


@pytest.mark.parametrize("step", ["before-write", "before-move", "after-move"])
def test_an_add_that_is_killed_registers_nothing_and_blocks_nothing(place: Place, tmp_path: Path, step: str):
    folder = write_package(tmp_path / "prepared")
    died = PROCESSES.Process(target=add_and_die, args=(place, step, folder))
    died.start()
    died.join(60)
    assert died.exitcode == -signal.SIGKILL
    with open_place(place) as store:
        assert store.names() == []
        info = store.add("m", write_package(tmp_path / "other", b"other"))
        assert info.number == 1
        assert store.fetch(info).artifact.read_bytes() == b"other"


def test_a_disk_that_really_is_full_leaves_what_was_there(small_disk: Path, tmp_path: Path):
    with Store.open(small_disk) as store:
        store.add("m", write_package(tmp_path / "small-one", b"fits"))
        with pytest.raises(PackageError, match="No space left"):
            store.add("m", write_package(tmp_path / "large", os.urandom(2**20)))
        assert [info.number for info in store.versions("m")] == [1]
        assert store._blobs.names("packages") == ["m"]
        assert store.add("m", write_package(tmp_path / "another", b"fits too")).number == 2


def test_a_database_that_stays_busy_is_a_conflict_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("foretell.store.database._BUSY_S", 0.05)
    with Store.open(tmp_path / "store") as one, Store.open(tmp_path / "store") as other:
        with one._database.write("m"), pytest.raises(Conflict, match="busy"):
            other.add("m", write_package(tmp_path / "prepared"))
        assert one._blobs.names("packages") == []
        assert other.add("m", write_package(tmp_path / "prepared")).number == 1


def test_a_lost_database_is_named(tmp_path: Path, postgres: str):
    execute(postgres, "CREATE DATABASE lost")
    with Store.open(tmp_path / "store", postgres.rsplit("/", 1)[0] + "/lost") as store:
        execute(postgres, "DROP DATABASE lost WITH (FORCE)")
        with pytest.raises(NotReady, match="does not answer"):
            store.names()
