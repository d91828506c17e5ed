"""Files as streams of record batches, from any row on, in bounded memory. One function a form; knows no model."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem

from foretell.batch.files import InputFile, InputFormat
from foretell.core.errors import InvalidInput
from foretell.tables.arrays import blobs, texts

PATH, CONTENT = "path", "content"
"""The columns of an input that consists of whole files."""

_BLOCK = 4 * 2**20
_FILES_AT_A_TIME = 64
Batches = Iterator[pa.RecordBatch]


class Reader(msgspec.Struct):
    """An opened file: its columns, its number of rows where that is known without reading, and how to read.

    `read(start, columns)`: batches of these columns that together hold the rows from `start` on. `row_bytes`: about
    how large a row is, 0 where unknown.
    """

    schema: pa.Schema
    rows: int | None
    read: Callable[[int, Sequence[str]], Batches]
    row_bytes: float = 0.0


@contextlib.contextmanager
def open_input(file: InputFile, batch_rows: int = 16384) -> Iterator[Reader]:
    """Open one file; partition values are columns of it. Raises `InvalidInput` that names the file, in mid-read too."""
    with _named(file), contextlib.ExitStack() as stack:
        reader = _OPEN[file.format](file, batch_rows, stack)
        constants = {key: _value(value) for key, value in file.partition.items() if key not in reader.schema.names}
        if constants:
            reader = _with_constants(reader, constants)
        yield reader


def _parquet(file: InputFile, batch_rows: int, stack: contextlib.ExitStack) -> Reader:
    handle = stack.enter_context(_handle(file))
    opened = stack.enter_context(pyarrow.parquet.ParquetFile(handle, pre_buffer=False))
    metadata = opened.metadata

    def read(start: int, columns: Sequence[str]) -> Batches:
        groups: list[int] = []
        skip = start
        for number in range(metadata.num_row_groups):
            rows = metadata.row_group(number).num_rows
            if groups or skip < rows:
                groups.append(number)
            else:
                skip -= rows
        yield from _from(opened.iter_batches(batch_rows, groups, list(columns)), skip)

    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return Reader(opened.schema_arrow, metadata.num_rows, read, size / max(metadata.num_rows, 1))


def _csv(file: InputFile, batch_rows: int, stack: contextlib.ExitStack) -> Reader:
    tab = pyarrow.csv.ParseOptions(delimiter="\t" if ".tsv" in file.path.lower() else ",", newlines_in_values=True)
    reading = pyarrow.csv.ReadOptions(block_size=_BLOCK)

    def again(columns: Sequence[str] = ()) -> Any:
        wanted = pyarrow.csv.ConvertOptions(include_columns=list(columns))
        return stack.enter_context(pyarrow.csv.open_csv(_stream(file, stack), reading, tab, wanted))

    return _streamed(again)


def _jsonl(file: InputFile, batch_rows: int, stack: contextlib.ExitStack) -> Reader:
    reading = pyarrow.json.ReadOptions(block_size=_BLOCK)

    def again(columns: Sequence[str] = ()) -> Any:
        return stack.enter_context(pyarrow.json.open_json(_stream(file, stack), reading))

    return _streamed(again)


def _arrow(file: InputFile, batch_rows: int, stack: contextlib.ExitStack) -> Reader:
    handle = stack.enter_context(_handle(file))
    try:
        opened = stack.enter_context(pyarrow.ipc.open_file(handle))
    except pa.ArrowInvalid:  # the streaming form has no footer

        def again(columns: Sequence[str] = ()) -> Any:
            return stack.enter_context(pyarrow.ipc.open_stream(stack.enter_context(_handle(file))))

        return _streamed(again)

    def read(start: int, columns: Sequence[str]) -> Batches:
        skip = start
        for number in range(opened.num_record_batches):
            batch = opened.get_batch(number)
            if skip < batch.num_rows:
                yield batch.select(list(columns)).slice(skip)
            skip = max(0, skip - batch.num_rows)

    return Reader(opened.schema, None, read)


def _files(file: InputFile, batch_rows: int, stack: contextlib.ExitStack) -> Reader:
    schema = pa.schema([(PATH, pa.string()), (CONTENT, pa.binary())])

    def read(start: int, columns: Sequence[str]) -> Batches:
        for at in range(start, len(file.members), _FILES_AT_A_TIME):
            names = list(file.members[at : at + _FILES_AT_A_TIME])
            found = file.filesystem.cat(names) if CONTENT in columns else {}
            contents = [found.get(name, b"") for name in names]
            arrays = [texts(names), blobs(contents, pa.binary())]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema).select(list(columns))

    return Reader(schema, len(file.members), read, file.seen.size / max(len(file.members), 1))


_OPEN: dict[InputFormat, Callable[[InputFile, int, contextlib.ExitStack], Reader]] = {
    "parquet": _parquet,
    "csv": _csv,
    "jsonl": _jsonl,
    "arrow": _arrow,
    "files": _files,
}


def _streamed(again: Callable[..., Any]) -> Reader:
    """A form that can only be read from its beginning."""

    def read(start: int, columns: Sequence[str]) -> Batches:
        stream = again(columns)
        chosen = (batch.select(list(columns)) for batch in stream)
        yield from _from(chosen, start)

    return Reader(again().schema, None, read)


def _from(batches: Batches, skip: int) -> Batches:
    for batch in batches:
        if skip < batch.num_rows:
            yield batch.slice(skip)
        skip = max(0, skip - batch.num_rows)


def _with_constants(reader: Reader, constants: dict[str, int | str]) -> Reader:
    kinds = {key: pa.string() if isinstance(value, str) else pa.int64() for key, value in constants.items()}
    schema = reader.schema
    for key, kind in kinds.items():
        schema = schema.append(pa.field(key, kind))

    def read(start: int, columns: Sequence[str]) -> Batches:
        own = [name for name in columns if name not in constants]
        # Something must be read for the number of rows to be known.
        for batch in reader.read(start, own or reader.schema.names[:1]):
            arrays = [
                pa.repeat(pa.scalar(constants[name], kinds[name]), batch.num_rows)
                if name in constants
                else batch.column(name)
                for name in columns
            ]
            yield pa.RecordBatch.from_arrays(arrays, names=list(columns))

    return Reader(schema, reader.rows, read, reader.row_bytes)


def _value(text: str) -> int | str:
    return int(text) if text.isdigit() and str(int(text)) == text else text


def _handle(file: InputFile) -> Any:
    if isinstance(file.filesystem, LocalFileSystem):
        return pa.OSFile(file.path)  # read by Arrow's threads, which need not wait for the interpreter
    return pa.PythonFile(file.filesystem.open(file.path, "rb"), mode="r")


def _stream(file: InputFile, stack: contextlib.ExitStack) -> Any:
    handle = stack.enter_context(_handle(file))
    return pa.CompressedInputStream(handle, "gzip") if file.path.lower().endswith(".gz") else handle


@contextlib.contextmanager
def _named(file: InputFile) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        raise InvalidInput(
            f"{file.path} cannot be read as {file.format}: {first}. Mend the file or leave it out, and start again"
        ) from error
