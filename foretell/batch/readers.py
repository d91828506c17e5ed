"""Files as streams of record batches, from any row on, in bounded memory. One function a form; knows no model."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem

from foretell.batch.files import InputFile, InputFormat
from foretell.batch.tuning import PART_BYTES
from foretell.core.errors import InvalidInput
from foretell.tables.arrays import blobs, texts
from foretell.tables.values import is_list

PATH, CONTENT = "path", "content"
"""The columns of an input that consists of whole files."""

BATCH_BYTES = 16 * 2**20
"""About how much is read at a time."""
_BATCH_ROWS = 16384
_FILES_AT_A_TIME = 64
_BLOCK = 4 * 2**20
_BUFFERS = 16 * 2**20
_LEAST_BUFFER, _MOST_BUFFER = 2**16, 2**20
Batches = Iterator[pa.RecordBatch]


class Read(Protocol):
    def __call__(self, start: int, columns: Sequence[str], rows: int = 0, /) -> Batches: ...


class Reader(msgspec.Struct):
    """An opened file: its columns, its number of rows where that is known without reading, and how to read.

    `read(start, columns, rows)`: batches of these columns that together hold the rows from `start` on, of `rows` each
    where that is given, fits `PART_BYTES` and the form can: what comes in one piece is copied no more. `row_bytes`:
    about how large a row is, 0 where unknown.
    """

    schema: pa.Schema
    rows: int | None
    read: Read
    row_bytes: float = 0.0

    def typed(self, known: pa.Schema) -> "Reader":
        """This reader, its columns of nulls with the types that they have in `known`."""
        schema = typed(self.schema, known)
        if schema.equals(self.schema):
            return self

        def read(start: int, columns: Sequence[str], rows: int = 0) -> Batches:
            wanted = pa.schema([schema.field(name) for name in columns])
            for batch in self.read(start, columns, rows):
                yield batch.cast(wanted)

        return Reader(schema, self.rows, read, self.row_bytes)


@contextlib.contextmanager
def open_input(file: InputFile) -> Iterator[Reader]:
    """Open one file; partition values are columns of it. Raises `InvalidInput` that names the file, in mid-read too."""
    with _named(file), contextlib.ExitStack() as stack:
        reader = _OPEN[file.format](file, stack)
        constants = {key: value for key, value in file.partition.items() if key not in reader.schema.names}
        if constants:
            reader = _with_constants(reader, constants)
        yield reader


def _parquet(file: InputFile, stack: contextlib.ExitStack) -> Reader:
    # Columns are read by turns: what is read ahead of one is thrown away for the next.
    handle = stack.enter_context(_handle(file, cache_type="none"))
    metadata = pyarrow.parquet.read_metadata(handle)
    opened = stack.enter_context(
        pyarrow.parquet.ParquetFile(
            handle,
            metadata=metadata,
            pre_buffer=False,
            # Without a buffer every column of a row group is read whole.
            buffer_size=min(max(_BUFFERS // max(metadata.num_columns, 1), _LEAST_BUFFER), _MOST_BUFFER),
            page_checksum_verification=True,
        )
    )
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    row_bytes = size / max(metadata.num_rows, 1)
    batch_rows = _at_a_time(_BATCH_ROWS, row_bytes)

    def read(start: int, columns: Sequence[str], rows: int = 0) -> Batches:
        groups: list[int] = []
        skip = start
        for number in range(metadata.num_row_groups):
            held = metadata.row_group(number).num_rows
            if groups or skip < held:
                groups.append(number)
            else:
                skip -= held
        step = rows if 0 < rows * row_bytes <= PART_BYTES else batch_rows
        yield from _from(opened.iter_batches(step, groups, list(columns)), skip)

    return Reader(opened.schema_arrow, metadata.num_rows, read, row_bytes)


def _csv(file: InputFile, stack: contextlib.ExitStack) -> Reader:
    tab = pyarrow.csv.ParseOptions(delimiter="\t" if ".tsv" in file.path.lower() else ",", newlines_in_values=True)
    reading = pyarrow.csv.ReadOptions(block_size=_BLOCK)

    def again(columns: Sequence[str] = ()) -> Any:
        wanted = pyarrow.csv.ConvertOptions(include_columns=list(columns))
        return stack.enter_context(pyarrow.csv.open_csv(_stream(file, stack), reading, tab, wanted))

    return _streamed(again)


def _jsonl(file: InputFile, stack: contextlib.ExitStack) -> Reader:
    reading = pyarrow.json.ReadOptions(block_size=_BLOCK)

    def again(columns: Sequence[str] = ()) -> Any:
        return stack.enter_context(pyarrow.json.open_json(_stream(file, stack), reading))

    return _streamed(again)


def _arrow(file: InputFile, stack: contextlib.ExitStack) -> Reader:
    handle = stack.enter_context(_handle(file))
    try:
        opened = stack.enter_context(pyarrow.ipc.open_file(handle))
    except pa.ArrowInvalid:  # the streaming form has no footer

        def again(columns: Sequence[str] = ()) -> Any:
            return stack.enter_context(pyarrow.ipc.open_stream(stack.enter_context(_handle(file))))

        return _streamed(again)

    def read(start: int, columns: Sequence[str], rows: int = 0) -> Batches:
        skip = start
        for number in range(opened.num_record_batches):
            batch = opened.get_batch(number)
            if skip < batch.num_rows:
                yield batch.select(list(columns)).slice(skip)
            skip = max(0, skip - batch.num_rows)

    return Reader(opened.schema, None, read)


def _files(file: InputFile, stack: contextlib.ExitStack) -> Reader:
    schema = pa.schema([(PATH, pa.string()), (CONTENT, pa.binary())])
    row_bytes = file.seen.size / max(len(file.members), 1)
    step = _at_a_time(_FILES_AT_A_TIME, row_bytes)

    def read(start: int, columns: Sequence[str], rows: int = 0) -> Batches:
        for at in range(start, len(file.members), step):
            names = list(file.members[at : at + step])
            contents = _contents(file.filesystem, names) if CONTENT in columns else [b""] * len(names)
            arrays = [texts(names), blobs(contents, pa.binary())]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema).select(list(columns))

    return Reader(schema, len(file.members), read, row_bytes)


def typed(schema: pa.Schema, known: pa.Schema) -> pa.Schema:
    """`schema`, its columns of nothing but null (or lists of that) with the types that they have in `known`."""

    def better(field: pa.Field) -> pa.Field:
        if is_open(field.type) and field.name in known.names:
            other = known.field(field.name)
            return other if _says_more(other.type, field.type) else field
        return field

    return pa.schema([better(field) for field in schema])


def is_open(kind: pa.DataType) -> bool:
    """Whether nobody knows of what a column is."""
    return bool(pa.types.is_null(kind)) or (is_list(kind) and is_open(kind.value_type))


def _says_more(kind: pa.DataType, than: pa.DataType) -> bool:
    if is_list(kind) and is_list(than):
        return _says_more(kind.value_type, than.value_type)
    return bool(pa.types.is_null(than)) and not pa.types.is_null(kind)


def _at_a_time(most: int, row_bytes: float) -> int:
    return max(1, min(most, int(BATCH_BYTES / max(row_bytes, 1.0))))


def _contents(filesystem: Any, names: list[str]) -> list[bytes]:
    """Whole files, at the same time where the file system can. A name is a name here, in `cat` it is a pattern."""
    found: list[bytes] = []
    for each in filesystem.cat_ranges(names, None, None, on_error="return"):
        if isinstance(each, Exception):
            raise each
        found.append(each)
    return found


_OPEN: dict[InputFormat, Callable[[InputFile, contextlib.ExitStack], Reader]] = {
    "parquet": _parquet,
    "csv": _csv,
    "jsonl": _jsonl,
    "arrow": _arrow,
    "files": _files,
}


def _streamed(again: Callable[..., Any]) -> Reader:
    """A form that can only be read from its beginning."""

    def read(start: int, columns: Sequence[str], rows: int = 0) -> Batches:
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

    def read(start: int, columns: Sequence[str], rows: int = 0) -> Batches:
        own = [name for name in columns if name not in constants]
        # Something must be read for the number of rows to be known.
        for batch in reader.read(start, own or reader.schema.names[:1], rows):
            arrays = [
                pa.repeat(pa.scalar(constants[name], kinds[name]), batch.num_rows)
                if name in constants
                else batch.column(name)
                for name in columns
            ]
            yield pa.RecordBatch.from_arrays(arrays, names=list(columns))

    return Reader(schema, reader.rows, read, reader.row_bytes)


def _handle(file: InputFile, **options: str) -> Any:
    if isinstance(file.filesystem, LocalFileSystem):
        return pa.OSFile(file.path)  # read by Arrow's threads, which need not wait for the interpreter
    return pa.PythonFile(file.filesystem.open(file.path, "rb", **options), mode="r")


def _stream(file: InputFile, stack: contextlib.ExitStack) -> Any:
    handle = stack.enter_context(_handle(file))
    return pa.CompressedInputStream(handle, "gzip") if file.path.lower().endswith(".gz") else handle


@contextlib.contextmanager
def _named(file: InputFile) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        remedy = "Mend the file or leave it out"
        if "conversion error" in first or "changed from" in first:
            remedy = (
                f"The first {_BLOCK // 2**20} MB say of what type a column is: convert the file to Parquet, or leave"
                " the column out with --keep"
            )
        raise InvalidInput(
            f"{file.path} cannot be read as {file.format}: {first}. {remedy}, and start again"
        ) from error
