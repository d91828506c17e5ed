"""Several processes of one stream: what they print, and what becomes of a reset when one of them dies."""

import asyncio
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from foretell.app.streams import Keeps, _store_opener
from foretell.cli.stream_workers import Workers, share_cores
from foretell.streams.progress import Counts
from foretell.streams.retry import Backoff
from foretell.streams.transform import Transform
from tests.streams.state_world import BATCH, WINDOWS, event, feed, load, opened

PRINTING = """
import asyncio, os
from foretell.cli.stream_workers import report_channel, report_to
from foretell.streams.progress import Counts

async def main():
    async with report_to(report_channel(), lambda: Counts(answered=7)):
        print("noise")
        os.system("echo noise of a child")
        print("x" * 100_000)

asyncio.run(main())
"""
DYING = """#!/bin/sh
echo "$@" >> {log}
echo '{{"answered": 1}}'
[ $(wc -l < {log}) -gt 1 ] || kill -9 $$
"""


def test_what_a_worker_prints_is_no_report():
    done = subprocess.run([sys.executable, "-c", PRINTING], capture_output=True, text=True, check=True, timeout=60)
    reports = [msgspec.json.decode(line, type=Counts) for line in done.stdout.splitlines()]
    assert reports and {report.answered for report in reports} == {7}
    assert "noise\n" in done.stderr
    assert "noise of a child\n" in done.stderr
    assert "x" * 100_000 in done.stderr


def test_a_worker_that_dies_is_not_reset_again(tmp_path, monkeypatch):
    log, program = tmp_path / "log", tmp_path / "python"
    program.write_text(DYING.format(log=log))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    workers = Workers(1, ["stream", "m", "--reset-state", "--key", "k"], Backoff(0.001, 0.001))
    asyncio.run(workers.run())
    first, second = log.read_text().splitlines()
    assert first == "-m foretell stream m --reset-state --key k --workers 1 --metrics  --worker 0"
    assert second == first.replace(" --reset-state", "")
    assert workers.counts().answered == 2


def test_a_worker_that_is_dead_already_shares_no_cores():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    share_cores(gone.pid, 0, 2)


@pytest.fixture
def logged(tmp_path) -> tuple[Transform, list]:
    """A transform, and the log of a partition that came as far as 2 before the reset."""
    transform = load(tmp_path, WINDOWS + BATCH)
    store = opened(tmp_path, transform)
    feed(store, transform, "t/0", [event(b"a", 1, 1), event(b"a", 2, 1)])
    log = [(change.key, change.value) for change in store.changes({"t/0": "2"})]
    store.commit({"t/0": "2"})
    store.close()
    return transform, log


def test_a_reset_holds_until_the_first_commit_however_often_the_ends_are_opened(tmp_path, logged):
    transform, log = logged
    file = tmp_path / "state.db"
    open_store = _store_opener(Keeps(transform="t", file=str(file), reset=True), transform, None)
    for _ in range(2):  # the second time after a StreamReset
        store = open_store()
        assert store.restore("t/0", [log]) is None
        store.close()
    assert opened(tmp_path, transform).positions() == {}
    old = tmp_path / "old"
    old.mkdir()
    Path(f"{file}.old").rename(old / "state.db")
    assert opened(old, transform).positions() == {"t/0": "2"}, "what was moved aside is what was there"


def test_after_the_first_commit_a_log_counts_again(tmp_path, logged):
    transform, log = logged
    open_store = _store_opener(Keeps(transform="t", file=str(tmp_path / "state.db"), reset=True), transform, None)
    store = open_store()
    feed(store, transform, "t/1", [event(b"a", 1, 1)])
    store.commit({"t/1": "1"})
    assert store.restore("t/0", [log]) == "2", "another worker wrote it meanwhile"
    store.close()
    store = open_store()
    assert store.restore("t/0", [log]) == "2"
    store.close()


def test_a_reset_outlives_a_worker_that_dies_before_it_commits(tmp_path, logged):
    """The next one is started without --reset-state."""
    transform, log = logged

    def opener(reset: bool):
        return _store_opener(Keeps(transform="t", file=str(tmp_path / "state.db"), reset=reset), transform, None)

    for reset in (True, False, False):
        store = opener(reset)()
        assert store.restore("t/0", [log], "2") is None
        store.close()
    store = opener(False)()
    assert store.restore("t/0", [log], "2") is None
    taken_back = {change.key for change in store.changes({"t/0": "1"}) if change.value is None}
    assert taken_back == {key for key, _ in log}
    store.commit({"t/0": "1"})
    store.close()
    assert opener(False)().positions() == {"t/0": "1"}


def test_a_reset_holds_for_a_partition_of_which_nothing_was_committed_yet(tmp_path, logged):
    transform, log = logged
    for reset in (True, False):
        open_store = _store_opener(Keeps(transform="t", file=str(tmp_path / "s"), reset=reset), transform, None)
        store = open_store()
        assert store.restore("t/0", [log], "2") is None
        if reset:
            feed(store, transform, "t/1", [event(b"a", 1, 1)])
            store.commit({"t/1": "1"})
        store.close()
    store = open_store()
    assert store.restore("t/0", [log], "3") == "2", "the group went on: another worker has begun anew and wrote it"
    store.close()
