"""The input of a job: its files, checked against each other, and the parts that are still to do."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import msgspec
import pyarrow as pa

from foretell.batch.files import InputFile, find_inputs, seen_now
from foretell.batch.layout import Layout
from foretell.batch.part import Part, PartRange, cut
from foretell.batch.protocol import PartKey
from foretell.batch.readers import Reader, is_open, open_input, typed
from foretell.batch.spec import Seen
from foretell.core.errors import Conflict, InvalidInput

LOOK_BYTES = 32 * 2**20
"""So much is looked at, at most, to see how large rows are and how long they take."""
SEARCH_BYTES = 256 * 2**20
"""How much is read at most to find some that the filter lets through."""


class Survey(msgspec.Struct, frozen=True):
    """What is known before reading: rows by file where a form tells them, bytes of a row."""

    rows: tuple[int | None, ...]
    row_bytes: float

    @property
    def total(self) -> int | None:
        """Rows of all files, None where some do not tell."""
        known = [rows for rows in self.rows if rows is not None]
        return sum(known) if len(known) == len(self.rows) else None


class Source:
    """Files in a fixed order; `files[n]` is file n of every `PartKey`."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.files: list[InputFile] = find_inputs(paths)

    @property
    def seen(self) -> tuple[Seen, ...]:
        return tuple(file.seen for file in self.files)

    @property
    def folders(self) -> set[str]:
        """Names of the columns that are in the names of folders."""
        return {key for file in self.files for key in file.partition}

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the first file. One in which it has nothing but null, so that its type is not known there, has
        the type of the next file that knows it.
        """
        with open_input(self.files[0]) as reader:
            schema = reader.schema
        for file in self.files[1:]:
            if not any(is_open(field.type) for field in schema):
                break
            with open_input(file) as reader:
                schema = typed(schema, reader.schema)
        return schema

    @property
    def of_files(self) -> bool:
        """Whether each row is a file by itself."""
        return self.files[0].format == "files"

    def survey(self, *checks: Callable[[pa.Schema], None]) -> Survey:
        """Look at the columns of every file. Raises `InvalidInput` that names the first one which a check refuses."""
        rows: list[int | None] = []
        row_bytes = 0.0
        for file in self.files:
            with self._open(file) as reader:
                rows.append(reader.rows)
                row_bytes = max(row_bytes, reader.row_bytes)
                try:
                    for check in checks:
                        check(reader.schema)
                except InvalidInput as error:
                    raise InvalidInput(f"{file.path} differs from {self.files[0].path}: {error.message}") from None
        return Survey(tuple(rows), row_bytes)

    def look(self, layout: Layout, rows: int) -> pa.Table:
        """The first `rows` rows that the filter lets through, fewer where they are more than `LOOK_BYTES`; all of one
        file. None where there are none in the first `SEARCH_BYTES`.
        """
        left = SEARCH_BYTES
        for file in self.files:
            found: list[pa.Table] = []
            count = size = 0
            with self._open(file) as reader:
                for batch in reader.read(0, layout.reads, rows):
                    found.append(layout.filtered(pa.Table.from_batches([batch]), 0))
                    count, size, left = count + found[-1].num_rows, size + found[-1].nbytes, left - batch.nbytes
                    if count >= rows or size >= LOOK_BYTES or left <= 0:
                        break
            if count:
                return pa.concat_tables(found).slice(0, rows)
            if left <= 0:
                break
        return layout.schema.empty_table()

    def parts(
        self, layout: Layout, part_rows: int, rows: Sequence[int | None], done: Mapping[PartKey, object]
    ) -> Iterator[Part]:
        """The parts that are not done, in order. Blocks while it reads; one thread at a time."""
        for number in range(len(self.files)):
            yield from self._parts(number, layout, part_rows, rows[number], done)

    def ranges(
        self, layout: Layout, part_rows: int, rows: Sequence[int | None], done: Mapping[PartKey, object]
    ) -> Iterator[Part | PartRange]:
        """As `parts`, but nothing is read of files that tell their rows: whoever does the part reads it (`part`)."""
        for number, known in enumerate(rows):
            if known is None:  # such a form is read from its beginning on: once, and not once for each part
                yield from self._parts(number, layout, part_rows, known, done)
                continue
            for at in range(0, known, part_rows):
                key = PartKey(number, at // part_rows)
                if key not in done:
                    yield PartRange(key, at, min(part_rows, known - at))

    def part(self, layout: Layout, wanted: PartRange) -> Part:
        """Read one part. Raises `Conflict` if its file is not what it was."""
        number = wanted.key.file
        self._check_unchanged(self.files[number])
        with self._open(self.files[number]) as reader:
            batches = reader.read(wanted.start, layout.reads)
            found = next(cut(batches, _chosen(reader.schema, layout), number, wanted.start, wanted.rows), None)
        if found is None or found.table.num_rows != wanted.rows:
            raise Conflict(f"{self.files[number].path} has fewer rows than it had. Restore it, or start a new job")
        return Part(wanted.key, wanted.start, found.table)

    def _parts(
        self, number: int, layout: Layout, part_rows: int, known: int | None, done: Mapping[PartKey, object]
    ) -> Iterator[Part]:
        finished = {key.part for key in done if key.file == number}
        first = next(part for part in range(len(finished) + 1) if part not in finished)
        if known is not None and first * part_rows >= known:
            return
        self._check_unchanged(self.files[number])
        with self._open(self.files[number]) as reader:
            batches = reader.read(first * part_rows, layout.reads, part_rows)
            for part in cut(batches, _chosen(reader.schema, layout), number, first * part_rows, part_rows):
                if part.key not in done:
                    yield part

    @contextlib.contextmanager
    def _open(self, file: InputFile) -> Iterator[Reader]:
        with open_input(file) as reader:
            yield reader.typed(self.schema)

    def _check_unchanged(self, file: InputFile) -> None:
        if file.format == "files":  # many; they were looked at when the job began
            return
        if seen_now(file) != file.seen:
            raise Conflict(f"{file.path} has changed while the job ran. Restore it, or start a new job")


def _chosen(schema: pa.Schema, layout: Layout) -> pa.Schema:
    return pa.schema([schema.field(name) for name in layout.reads])
