"""State, clock and position are one: after any crash they agree, and no cache, commit or cut of the stream shows."""

import os
import signal
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.core.errors import ConfigError, StateError
from foretell.streams import table as table_module
from foretell.streams.watermark import NEVER
from tests.streams.state_world import BATCH, WINDOWS, event, feed, load, opened, plainly, same

KEYS = [b"a", b"b", b"c", b"d", b"e"]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(KEYS), st.one_of(st.integers(0, 3), st.integers(-40, 90)), st.none() | st.integers(-50, 50)
    ),
    min_size=1,
    max_size=50,
).map(lambda steps: walk(steps))


def walk(steps):
    second, events = 1_000, []
    for key, step, amount in steps:
        second += step
        events.append(event(key, second, amount))
    return events


@pytest.fixture(scope="module")
def transform(tmp_path_factory):
    return load(tmp_path_factory.mktemp("transform"))


@pytest.fixture(autouse=True)
def busy_log(monkeypatch):
    """Every log is long enough to be shortened."""
    monkeypatch.setattr(table_module, "LOG_BYTES", 200)


@given(events=EVENTS, cache=st.sampled_from([0, 2_000, 2**20]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_neither_crashes_nor_commits_nor_cuts_nor_the_cache_show(tmp_path_factory, transform, events, cache, data):
    folder = tmp_path_factory.mktemp("state")
    store = opened(folder, transform, cache_bytes=cache)
    rows, at = [None] * len(events), 0
    while at < len(events):
        end = data.draw(st.integers(at + 1, len(events)))
        rows[at:end] = feed(store, transform, "t/0", events[at:end])
        at = end
        act = data.draw(st.sampled_from(["go on", "commit", "commit", "crash"]))
        if act == "commit":
            store.commit({"t/0": str(at)})
        elif act == "crash":
            store.close()
            store = opened(folder, transform, cache_bytes=cache)
            at = int(store.positions().get("t/0", 0))
    store.close()
    assert same(rows, list(plainly(transform, events)))


@given(events=EVENTS, data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_partition_moves_with_its_change_log(tmp_path_factory, transform, events, data):
    half = data.draw(st.integers(0, len(events)))
    first = opened(tmp_path_factory.mktemp("first"), transform)
    rows, log = [], []
    for at in range(0, half, 7):
        rows += feed(first, transform, "t/0", events[at : min(at + 7, half)])
        feed(first, transform, "t/1", events[:3])
        positions = {"t/0": str(min(at + 7, half)), "t/1": "3"}
        log += [(change.key, change.value) for change in first.changes(positions) if change.partition == "t/0"]
        first.commit(positions)
    first.close()

    second = opened(tmp_path_factory.mktemp("second"), transform)
    feed(second, transform, "t/0", events[:2])
    second.commit({"t/0": "2"})
    found = second.restore("t/0", (log[at : at + 10] for at in range(0, len(log), 10)))
    assert found == (str(half) if half else None)
    assert second.positions() == ({"t/0": found} if found else {})
    rows += feed(second, transform, "t/0", events[half:])
    second.close()
    assert same(rows, list(plainly(transform, events)))


def test_a_dropped_partition_is_gone_and_the_others_are_not(tmp_path, transform):
    events = walk([(b"a", 1, n) for n in range(20)])
    store = opened(tmp_path, transform)
    for partition in ("t/0", "t/1"):
        feed(store, transform, partition, events)
    store.commit({"t/0": "20", "t/1": "20"})
    store.drop("t/0")
    for _ in range(2):
        assert store.positions() == {"t/1": "20"}
        assert store.watermark("t/0") == NEVER
        assert store.get("t/0", "spend", b"a") is None
        assert store.get("t/1", "spend", b"a") is not None
        store.close()
        store = opened(tmp_path, transform)
    assert same(feed(store, transform, "t/0", events), list(plainly(transform, events)))


class Killing(sqlite3.Connection):
    """Kills its process before or after the n-th statement."""

    left = None

    def step(self):
        if Killing.left is not None:
            Killing.left -= 1
            if Killing.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def execute(self, *args):
        self.step()
        cursor = super().execute(*args)
        self.step()
        return cursor

    def executemany(self, *args):
        self.step()
        cursor = super().executemany(*args)
        self.step()
        return cursor


def killed_in_commit(folder, transform, events, step, monkeypatch):
    """Whether a child that commits six events at a time died at that step of its last commit."""
    child = os.fork()
    if child == 0:
        try:
            connect = sqlite3.connect
            monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Killing, **k))
            store = opened(folder, transform, cache_bytes=0)
            for at in range(0, len(events), 6):
                feed(store, transform, "t/0", events[at : at + 6])
                Killing.left = step if at + 6 == len(events) else None
                store.commit({"t/0": str(at + 6)})
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("length", [30, 36, 60])
def test_killed_at_any_step_of_a_commit_state_and_position_agree(tmp_path, transform, monkeypatch, length):
    # With no cache and a short log, these commits log, store, delete and shorten.
    events = walk([(b"%d" % (n % 30), 3, n) for n in range(length + 10)])
    expected = list(plainly(transform, events))
    outcomes = {}
    for step in range(1, 200):
        folder = tmp_path / str(step)
        folder.mkdir()
        died = killed_in_commit(folder, transform, events[:length], step, monkeypatch)
        store = opened(folder, transform, cache_bytes=0)
        at = int(store.positions()["t/0"])
        outcomes[at] = outcomes.get(at, 0) + 1
        assert same(feed(store, transform, "t/0", events[at:]), expected[at:])
        store.close()
        if not died:
            break
    assert step > 30, "such a commit has many steps"
    assert outcomes.keys() == {length - 6, length}
    assert outcomes[length] >= 2, "killed after COMMIT, and undisturbed"


def test_killed_at_any_moment_state_and_position_agree(tmp_path, transform):
    events = walk([(KEYS[n % 5], 1, n) for n in range(2_000)])
    expected = list(plainly(transform, events))
    random = np.random.default_rng(7)
    at = 0
    for _ in range(10):
        child = os.fork()
        if child == 0:
            try:
                store = opened(tmp_path, transform, cache_bytes=0)
                at = int(store.positions().get("t/0", 0))
                for start in range(at, 2_000, 3):
                    feed(store, transform, "t/0", events[start : start + 3])
                    store.commit({"t/0": str(min(start + 3, 2_000))})
                    time.sleep(0.0005)
            finally:
                os._exit(0)
        time.sleep(0.02 + 0.1 * random.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        store = opened(tmp_path, transform)
        at, before = int(store.positions().get("t/0", 0)), at
        assert at >= before
        assert same(feed(store, transform, "t/0", events[at : at + 50]), expected[at : at + 50])
        store.close()
    assert at > 0


def test_a_full_disk_loses_nothing(tmp_path, transform):
    events = walk([(b"%d" % n, 0, n) for n in range(400)])
    store = opened(tmp_path, transform)
    rows = feed(store, transform, "t/0", events[:200])
    store.commit({"t/0": "200"})
    rows += feed(store, transform, "t/0", events[200:])
    connection = store._file._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(2):
        with pytest.raises(
            StateError, match=r"cannot write the state .*state\.db: .* full\. Nothing is lost: make room"
        ):
            store.commit({"t/0": "400"})
        assert store.positions() == {"t/0": "200"}
    connection.execute("PRAGMA max_page_count = 1000000")
    store.commit({"t/0": "400"})
    store.close()
    store = opened(tmp_path, transform)
    assert store.positions() == {"t/0": "400"}
    assert store.get("t/0", "spend", b"399") is not None
    assert same(rows, list(plainly(transform, events)))


def test_a_state_that_cannot_be_a_file_is_said_at_once(tmp_path, transform):
    (tmp_path / "state.db").mkdir()
    with pytest.raises(ConfigError, match=r"cannot open the state .*state\.db: .*; name a file that can be written"):
        opened(tmp_path, transform)


def filled(folder: Path, transform) -> Path:
    store = opened(folder, transform)
    feed(store, transform, "t/0", walk([(b"%d" % n, 0, n) for n in range(2_000)]))
    store.commit({"t/0": "2000"})
    store.close()
    return folder / "state.db"


@pytest.mark.parametrize("damage", ["head", "middle", "cut", "text"])
def test_a_damaged_file_is_refused_and_can_be_replaced(tmp_path, transform, damage):
    path = filled(tmp_path, transform)
    content = bytearray(path.read_bytes())
    if damage == "head":
        content[:64] = os.urandom(64)
    elif damage == "middle":
        content[4096 * 2 : 4096 * 8] = os.urandom(4096 * 6)
    elif damage == "cut":
        del content[len(content) // 2 :]
    else:
        content = b"not a database at all " * 500
    path.write_bytes(content)
    with pytest.raises(
        StateError, match=r"is damaged .*put a good copy in its place, or start anew with --reset-state"
    ):
        opened(tmp_path, transform)
    store = opened(tmp_path, transform, reset=True)
    assert store.positions() == {}
    assert Path(f"{path}.old").read_bytes() == bytes(content)


def test_damage_that_shows_only_later_is_named_too(tmp_path, transform):
    store = opened(tmp_path, transform, cache_bytes=0)
    events = walk([(b"%d" % n, 0, n) for n in range(3_000)])
    for at in range(0, 3_000, 500):
        feed(store, transform, "t/0", events[at : at + 500])
        store.commit({"t/0": str(at)})
    store._file._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._file._connection.execute("PRAGMA shrink_memory")
    path = tmp_path / "state.db"
    with path.open("r+b") as file:
        file.seek(4096 * 2)
        file.write(os.urandom(path.stat().st_size - 4096 * 2))
    with pytest.raises(StateError, match="is damaged"):
        feed(store, transform, "t/0", events)


def test_another_transform_is_refused_with_both_ways_out(tmp_path, transform):
    filled(tmp_path, transform)
    other = load(tmp_path, "from foretell.streams.windows import session\ndef transform(event, state): return {}")
    with pytest.raises(StateError, match="another version of the transform") as caught:
        opened(tmp_path, other)
    assert "go back to that file, or start anew with --reset-state" in caught.value.message
    opened(tmp_path, other, reset=True).close()
    (tmp_path / "state.db.old").rename(tmp_path / "state.db")
    assert opened(tmp_path, transform).positions() == {"t/0": "2000"}


def test_two_processors_cannot_share_a_file(tmp_path, transform):
    store = opened(tmp_path, transform)
    with pytest.raises(StateError, match="in use by another process: stop that one, or give each a file"):
        opened(tmp_path, transform)
    store.close()
    opened(tmp_path, transform).close()


def test_a_database_of_somebody_else_is_left_alone(tmp_path, transform):
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("CREATE TABLE mine (x)")
    with pytest.raises(StateError, match="no state of a stream; name another file"):
        opened(tmp_path, transform)


def counts(store):
    read = store._file.read
    stored, log = read("SELECT count(*) FROM state")[0][0], read("SELECT coalesce(sum(length(body)), 0) FROM log")[0][0]
    return stored, log


def test_windows_behind_the_watermark_leave_memory_and_disk(tmp_path, transform):
    store = opened(tmp_path, transform, cache_bytes=100_000)
    for at in range(10):
        feed(store, transform, "t/0", walk([(b"old %d" % (at * 100 + n), 0, n) for n in range(100)]))
        store.commit({"t/0": "0"})
    most = counts(store)[0]
    for n in range(60):
        feed(store, transform, "t/0", walk([(b"new %d" % m, 600 + n, m) for m in range(20)]))
        store.commit({"t/0": str(n)})
    keys = {row[0] for row in store._file.read("SELECT key FROM state")}
    assert most > 1_000, "they had been stored"
    assert not any(key.startswith(b"old") for key in keys)
    assert store.get("t/0", "spend", b"old 7") is None


def test_memory_stays_within_its_bound_and_the_log_short(tmp_path, transform):
    store = opened(tmp_path, transform, cache_bytes=300_000)
    rng = np.random.default_rng(0)
    for at in range(40):
        events = [event(b"%d" % key, 1_000 + at, 1) for key in rng.integers(0, 3_000, 250).tolist()]
        feed(store, transform, "t/0", events)
        store.commit({"t/0": str(at)})
        assert store.nbytes < 300_000 + 250 * 4 * 1_000
        assert store.pending == 0
    assert counts(store)[0] > 5_000, "most of it is on disk"
    entries = store.nbytes / 300
    assert counts(store)[1] < 4 * entries * 100, "the log holds what is in memory, a few times over"


def test_changes_name_what_expired(tmp_path, transform):
    store = opened(tmp_path, transform)
    feed(store, transform, "t/0", walk([(b"old", 0, 1), (b"old", 0, 1)]))
    known = {change.key for change in store.changes({}) if change.value is not None}
    store.commit({})
    gone = set()
    for n in range(10):
        feed(store, transform, "t/0", walk([(b"new", 600 + n, 1), (b"new", 0, 1)]))
        gone |= {change.key for change in store.changes({}) if change.value is None}
        store.commit({})
    assert gone == {key for key in known if b"old" in key}


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path, transform):
    with pytest.raises(StateError, match='Did you mean "spend"'):
        opened(tmp_path, transform).get("t/0", "spent", b"a")


def test_a_change_log_of_another_version_or_before_a_reset_is_taken_back(tmp_path_factory, transform):
    events = walk([(b"%d" % n, 1, n) for n in range(20)])
    first = opened(tmp_path_factory.mktemp("first"), transform)
    feed(first, transform, "t/0", events)
    log = [(change.key, change.value) for change in first.changes({"t/0": "20"})]
    first.commit({"t/0": "20"})

    folder = tmp_path_factory.mktemp("other")
    other = load(folder, WINDOWS + BATCH + "\n# another version\n")
    for store in (opened(folder, other), opened(tmp_path_factory.mktemp("reset"), transform, reset=True)):
        assert store.restore("t/0", [log]) is None
        assert store.positions() == {}
        rows = feed(store, transform, "t/0", events[:5])
        changes = store.changes({"t/0": "5"})
        store.commit({"t/0": "5"})
        assert same(rows, list(plainly(transform, events[:5])))
        merged = dict(log) | {change.key: change.value for change in changes}
        again = opened(tmp_path_factory.mktemp("again"), other if "other" in str(store._file.path) else transform)
        assert again.restore("t/0", [list(merged.items())]) == "5"
        rows = feed(again, transform, "t/0", events[5:])
        assert same(rows, list(plainly(transform, events))[5:])


def test_a_restore_that_waits_for_a_dead_workers_transaction_ends_where_it_is_enough(tmp_path, transform):
    store = opened(tmp_path, transform)
    feed(store, transform, "t/0", walk([(b"a", 1, 1)]))
    log = [(change.key, change.value) for change in store.changes({"t/0": "1"})]
    store.commit({"t/0": "1"})

    def forever():
        yield log
        yield ()
        raise AssertionError("it waits on")

    assert store.restore("t/0", forever(), "1") == "1"
    with pytest.raises(AssertionError, match="it waits on"):
        store.restore("t/0", forever(), "2")
