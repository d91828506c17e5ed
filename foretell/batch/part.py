"""A part as it goes through a job: the rows that were read, and what came of them. Cuts a stream into parts."""

from collections.abc import Iterable, Iterator

import msgspec
import pyarrow as pa

from foretell.batch.protocol import PartKey


class Part(msgspec.Struct):
    """Rows of one input file; the first of them is row `start` of the file."""

    key: PartKey
    start: int
    table: pa.Table


class PartRange(msgspec.Struct, frozen=True):
    """A part that is not read yet: `rows` rows of its file from row `start` on."""

    key: PartKey
    start: int
    rows: int


class Scored(msgspec.Struct):
    """What came of the rows of a table: a column for each output, without the rows in `failed` (row → reason)."""

    columns: dict[str, pa.Array]
    failed: dict[int, str]
    compute_s: float = 0.0
    dollars: float = 0.0


def cut(batches: Iterable[pa.RecordBatch], schema: pa.Schema, file: int, start: int, part_rows: int) -> Iterator[Part]:
    """Parts of `part_rows` rows, the last one as long as the file leaves it; `start` is where a part begins."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    at = start
    for batch in batches:
        while batch.num_rows:
            piece = batch.slice(0, part_rows - rows)
            batch = batch.slice(piece.num_rows)
            waiting.append(piece)
            rows += piece.num_rows
            if rows == part_rows:
                yield Part(PartKey(file, at // part_rows), at, pa.Table.from_batches(waiting, schema))
                waiting, rows, at = [], 0, at + part_rows
    if rows:
        yield Part(PartKey(file, at // part_rows), at, pa.Table.from_batches(waiting, schema))
