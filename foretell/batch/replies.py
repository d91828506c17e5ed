"""The parts of a job of calls → the two files that whoever asked reads: answers, and what has none. In the order of the
input; every call is in exactly one of them, however the job ended.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow.parquet

from foretell.batch.calling import RESPONSE
from foretell.batch.lines import CUSTOM_ID
from foretell.batch.protocol import ERRORS
from foretell.store.job import JobPart

NULL = msgspec.Raw(b"null")


class Unanswered(msgspec.Struct, frozen=True):
    """Why calls were never made."""

    code: str
    message: str


def write_replies(calls: Path, folder: Path, parts: Sequence[JobPart], part_rows: int, why: Unanswered) -> list[Path]:
    """Write answers and errors beside `calls`; returns both paths. Whole files are put in place: it may be done again,
    and somebody who lost the lease of it meanwhile breaks nothing.
    """
    paths = [calls.with_name("answers.jsonl"), calls.with_name("errors.jsonl")]
    token = uuid.uuid4().hex
    halves = [path.with_suffix(f".{token}") for path in paths]
    done = {part.part: part for part in parts}
    with halves[0].open("wb") as answers, halves[1].open("wb") as errors:
        for part in parts:
            _copy(folder, part, answers, errors)
        for custom_id in _left(calls, part_rows, done):
            _write(errors, custom_id, NULL, why)
    for half, path in zip(halves, paths, strict=True):
        half.replace(path)
    return paths


def _copy(folder: Path, part: JobPart, answers: BinaryIO, errors: BinaryIO) -> None:
    for name in part.names:
        if name.startswith(f"{ERRORS}/"):
            with (folder / name).open("rb") as lines:
                for line in lines:
                    row = msgspec.json.decode(line)
                    _write(errors, row[CUSTOM_ID], msgspec.Raw(row["error"].encode()), None)
        else:
            rows = pyarrow.parquet.read_table(folder / name)
            columns = (rows.column(each).to_pylist() for each in (CUSTOM_ID, RESPONSE))
            for custom_id, response in zip(*columns, strict=True):
                _write(answers, custom_id, msgspec.Raw(response.encode()), None)


def _left(calls: Path, part_rows: int, done: Mapping[int, JobPart]) -> Iterator[str]:
    """The calls of the parts that are not done."""
    at = 0
    with pyarrow.parquet.ParquetFile(calls) as opened:
        for batch in opened.iter_batches(columns=[CUSTOM_ID]):
            for custom_id in batch.column(0).to_pylist():
                if not part_rows or at // part_rows not in done:
                    yield custom_id
                at += 1


def _write(file: BinaryIO, custom_id: str, response: msgspec.Raw, error: Unanswered | None) -> None:
    line: dict[str, Any] = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    file.write(msgspec.json.encode(line) + b"\n")
