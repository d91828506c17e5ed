"""A file of calls of the server's API → a table of them, which a job reads."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from foretell.batch.lines import CUSTOM_ID, BadCalls, Call, CallReader, CheckModel
from foretell.tables.arrays import texts

BODY = "body"

_SCHEMA = pa.schema([(CUSTOM_ID, pa.string()), (BODY, pa.string())])
_GROUP_CALLS = 1024
_GROUP_BYTES = 16 * 2**20


def write_calls(source: Path, endpoint: str, check_model: CheckModel, target: Path) -> int:
    """Write the calls in `source` as a Parquet file and return how many there are. `target` is there whole or not at
    all. Raises `BadCalls`.
    """
    reader = CallReader(endpoint, check_model)
    temporary = target.with_suffix(".tmp")
    with source.open("rb") as lines, pyarrow.parquet.ParquetWriter(temporary, _SCHEMA, compression="zstd") as writer:
        for group in _groups(reader.calls(lines)):
            columns = [
                texts([call.custom_id for call in group]),
                texts([str(bytes(call.body), "utf-8") for call in group]),
            ]
            writer.write_table(pa.table(columns, schema=_SCHEMA))
    if not reader.count and not reader.faults:
        reader.note("empty_file", "the file holds no calls; write one JSON object a line", None)
    if reader.faults:
        temporary.unlink()
        raise BadCalls(reader.faults)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.rename(target)
    return reader.count


def _groups(calls: Iterator[Call]) -> Iterator[list[Call]]:
    """Calls that are written together: bounded in number and in bytes."""
    group: list[Call] = []
    size = 0
    for call in calls:
        group.append(call)
        size += len(bytes(call.body))
        if len(group) == _GROUP_CALLS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
