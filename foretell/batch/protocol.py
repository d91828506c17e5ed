"""How a part gets into the output folder and is never there by half or twice. Pure: names and steps, no I/O.

A part is the rows [n · part_rows, (n + 1) · part_rows) of one input file, so its name follows from the input alone.
Its files are written under temporary names and synced, renamed, their folders synced, and then the part is recorded in
the database. The record is the truth: a file of ours that no record names is a leaving, and is removed before the
job goes on, and once more at its end.
"""

import posixpath
import re
from collections.abc import Iterable
from typing import NamedTuple

ERRORS = "_errors"
"""The folder of the rows that failed. Readers of folders leave out what begins with _ or a dot."""

_NAME = re.compile(r"\.?part-\d{5,}-\d{6,}\.(parquet|csv|jsonl)(\.\d+(-\d+)?\.tmp)?")


class PartKey(NamedTuple):
    """The number of the input file, and of the part within it."""

    file: int
    part: int


class Write(NamedTuple):
    """Write a file under a temporary name, and make sure that it is on the disk."""

    name: str
    temporary: str


class Publish(NamedTuple):
    """Give a written file its name."""

    name: str
    temporary: str


class SyncFolder(NamedTuple):
    """Make sure that the names in a folder are on the disk."""

    folder: str


class Record(NamedTuple):
    """Write the part's record: from here on it is done."""

    key: PartKey


FileStep = Write | Publish | SyncFolder
Step = FileStep | Record


def part_name(key: PartKey, folder: str, suffix: str) -> str:
    """The name of a part's file; `folder` is that of the partition ("" for none).

    >>> part_name(PartKey(2, 14), "month=3", "parquet")
    'month=3/part-00002-000014.parquet'
    """
    return posixpath.join(folder, f"part-{key.file:05d}-{key.part:06d}.{suffix}")


def temporary_name(name: str, attempt: int, again: int = 0) -> str:
    """Where a file stays until it is complete: hidden, in the same folder. Each attempt at the job has its own, and
    within it whoever does a part `again`, so that a process which lost its lease, or was given up, and does not know
    it yet never writes into a file that another one is writing. What it then publishes has the name that the part has
    for all of them, and replaces it: by the same rows, unless one of the two had rows fail.
    """
    folder, base = posixpath.split(name)
    return posixpath.join(folder, f".{base}.{attempt}{f'-{again}' if again else ''}.tmp")


def commit_steps(key: PartKey, names: Iterable[str], attempt: int, again: int = 0) -> list[Step]:
    """What to do, in this order, to commit a part that consists of the files `names`."""
    names = list(names)
    writes = [Write(name, temporary_name(name, attempt, again)) for name in names]
    publishes = [Publish(name, temporary_name(name, attempt, again)) for name in names]
    folders = [SyncFolder(folder) for folder in dict.fromkeys(posixpath.dirname(name) for name in names)]
    return [*writes, *publishes, *folders, Record(key)]


def leavings(present: Iterable[str], recorded: Iterable[str]) -> list[str]:
    """Which of the files in the output folder are parts, or halves of parts, that were never recorded."""
    known = set(recorded)
    return [name for name in present if name not in known and _NAME.fullmatch(posixpath.basename(name))]


def missing(present: Iterable[str], recorded: Iterable[str]) -> list[str]:
    """Which files were recorded and are not there."""
    there = set(present)
    return [name for name in recorded if name not in there]
