"""The commit protocol: a process may be killed or the power may fail after any step, again and again; in the end every
row is in the output once, and at no time could a reader see half a part.
"""

import posixpath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.batch.protocol import (
    ERRORS,
    PartKey,
    Publish,
    Record,
    SyncFolder,
    Write,
    commit_steps,
    leavings,
    missing,
    part_name,
    temporary_name,
)


class Crash(Exception):
    """The process dies here."""


class Disk:
    """Files by name. What was not synced is lost or torn when the power fails, not when a process dies."""

    def __init__(self) -> None:
        self.now: dict[str, str] = {}
        self.safe: dict[str, str] = {}
        self.synced: set[str] = set()

    def write(self, name: str, contents: str) -> None:
        self.now[name] = contents
        self.synced.add(name)

    def rename(self, temporary: str, name: str) -> None:
        self.now[name] = self.now.pop(temporary)

    def sync_folder(self, folder: str) -> None:
        inside = {name: text for name, text in self.now.items() if posixpath.dirname(name) == folder}
        self.safe = {n: t for n, t in self.safe.items() if posixpath.dirname(n) != folder} | inside

    def power_cut(self) -> None:
        self.now = dict(self.safe)

    def visible(self) -> dict[str, str]:
        """What a reader of the folder takes for output."""
        hidden = lambda name: any(part.startswith((".", "_")) for part in name.split("/"))  # noqa: E731
        return {name: text for name, text in self.now.items() if not hidden(name)}


class Job:
    """Runs all parts of a job on a disk, with a record; dies after a given number of steps."""

    def __init__(self, parts: list[PartKey], torn: bool = False) -> None:
        self.parts = parts
        self.disk = Disk()
        self.recorded: dict[PartKey, list[str]] = {}
        self.attempt = 0
        self.left = 0
        self.torn = torn

    def names(self, key: PartKey) -> list[str]:
        names = [part_name(key, "month=3" if key.file else "", "parquet")]
        return [*names, part_name(key, ERRORS, "jsonl")] if key.part % 2 else names

    def run(self, steps: int) -> None:
        self.left, self.attempt = steps, self.attempt + 1
        recorded = [name for names in self.recorded.values() for name in names]
        assert missing(self.disk.now, recorded) == [], "what was recorded is there"
        for name in leavings(self.disk.now, recorded):
            self.count()
            del self.disk.now[name]
        for key in self.parts:
            if key not in self.recorded:
                for step in commit_steps(key, self.names(key), self.attempt):
                    self.take(step, key)
                    self.check()

    def count(self) -> None:
        if not self.left:
            raise Crash
        self.left -= 1

    def take(self, step, key: PartKey) -> None:
        match step:
            case Write(name, temporary):
                self.disk.now[temporary] = "half"
                self.check()
                self.count()
                self.disk.write(temporary, f"rows of {key}")
            case Publish(name, temporary):
                self.count()
                self.disk.rename(temporary, name)
            case SyncFolder(folder):
                self.count()
                self.disk.sync_folder(folder)
            case Record():
                self.count()
                self.recorded[key] = self.names(key)

    def check(self) -> None:
        """No reader ever sees half a part, and no row twice."""
        texts = list(self.disk.visible().values())
        assert "half" not in texts
        assert len(texts) == len(set(texts))

    def finished(self) -> None:
        recorded = [name for names in self.recorded.values() for name in names]
        assert sorted(self.disk.now) == sorted(recorded), "nothing but what was recorded"
        assert sorted(self.recorded) == sorted(self.parts)
        assert sorted(self.disk.visible().values()) == sorted(f"rows of {key}" for key in self.parts)


PARTS = st.lists(st.builds(PartKey, st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=5, unique=True)


@settings(max_examples=200)
@given(PARTS, st.lists(st.tuples(st.integers(0, 25), st.booleans()), max_size=12))
def test_after_any_crashes_every_row_is_in_the_output_once(parts, crashes):
    job = Job(parts)
    for steps, power in crashes:
        try:
            job.run(steps)
        except Crash:
            job.check()
            if power:
                job.disk.power_cut()
                job.check()
    job.run(10_000)
    job.finished()


def test_a_crash_after_every_single_step():
    parts = [PartKey(0, 0), PartKey(0, 1), PartKey(1, 0)]
    for steps in range(40):
        for power in (False, True):
            job = Job(parts)
            try:
                job.run(steps)
            except Crash:
                if power:
                    job.disk.power_cut()
            job.run(10_000)
            job.finished()


@pytest.mark.parametrize("broken", ["record first", "no temporary"])
def test_the_simulation_notices_a_broken_protocol(broken, monkeypatch):
    """The property can fail: with the record before the files, or without temporary names, it does."""

    correct = commit_steps

    def steps(key, names, attempt):
        right = correct(key, names, attempt)
        if broken == "record first":
            return [right[-1], *right[:-1]]
        return [Write(name, name) for name in names] + right[-2:]

    monkeypatch.setitem(globals(), "commit_steps", steps)
    with pytest.raises((AssertionError, KeyError)):
        test_a_crash_after_every_single_step()


def test_leavings_are_our_own_files_only():
    name = part_name(PartKey(1, 2), "a=b", "csv")
    ours = [name, temporary_name(name, 3), part_name(PartKey(0, 7), ERRORS, "jsonl")]
    theirs = ["_report.json", "notes.csv", "a=b/part-1.csv", ".part-00000-000000.csv.swp"]
    assert leavings([*ours, *theirs], [name]) == ours[1:]
