"""Which columns a job reads, which it keeps, and what the rows of its output and of its errors look like. Pure."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from foretell.batch.accuracy import Comparison, Tally
from foretell.batch.part import Scored
from foretell.batch.spec import JobSpec
from foretell.core.errors import InvalidInput, did_you_mean
from foretell.tables.arrays import booleans, numbers, texts
from foretell.tables.inputs import check_once
from foretell.tables.where import Where

ROW = "__row"
"""A column for the time of a filter: which row of the file a row was."""
ERROR_COLUMNS = ("file", "row", "error")
KEEP_ALL = "all"
KEEP_NONE = "none"


class Layout:
    """Made from the schema of the input; every file must fit it (`check`).

    Raises `InvalidInput` for columns that are not there. Partition columns are in the names of the folders, as
    everywhere in Hive's layout, and not in the files.
    """

    def __init__(
        self, spec: JobSpec, schema: pa.Schema, reads: Sequence[str], makes: pa.Schema, folders: set[str]
    ) -> None:
        self._where = Where(spec.reading.where) if spec.reading.where else None
        if self._where is not None:
            self._where.check(schema)
        kept = [name for name in _kept(spec, schema, reads) if name not in folders]
        check_once(schema, kept)
        self.kept = pa.schema([schema.field(name) for name in kept])
        self.names = {name: f"predicted_{name}" if name in kept else name for name in makes.names}
        self.schema = pa.schema([*self.kept, *(pa.field(self.names[field.name], field.type) for field in makes)])
        self.comparison: Comparison | None = None
        if spec.label is not None:
            if spec.label.column not in schema.names:
                raise InvalidInput(
                    f'--label: no column "{spec.label.column}". {did_you_mean(spec.label.column, schema.names)}'
                )
            self.comparison = Comparison(spec.label, schema.field(spec.label.column).type, makes)
        wanted = [*reads, *kept, *(self._where.columns if self._where else ())]
        wanted += [spec.label.column] if spec.label else []
        self.reads = tuple(dict.fromkeys(wanted))
        check_once(schema, self.reads)

    def check(self, schema: pa.Schema) -> None:
        """Raise `InvalidInput` where another file does not fit the first."""
        for name in self.reads:
            if name not in schema.names:
                raise InvalidInput(f'it has no column "{name}", which the first file has')
        check_once(schema, self.reads)
        if self._where is not None:
            self._where.check(schema)
        if self.comparison is not None:
            self.comparison.check(schema.field(self.comparison.label.column).type)
        for field in self.kept:
            found = schema.field(field.name).type
            if not _castable(found, field.type):
                raise InvalidInput(f'column "{field.name}" holds {found}, in the first file {field.type}')

    def filtered(self, table: pa.Table, start: int) -> pa.Table:
        """The rows that the filter lets through; they know which row of the file they were."""
        if self._where is None:
            return table
        return self._where.apply(
            table.append_column(ROW, numbers(np.arange(start, start + table.num_rows), pa.int64(), np.int64))
        )

    def output(self, table: pa.Table, path: str, scored: Scored) -> pa.Table:
        """The rows of the file `path` that were answered: kept columns, then predictions. Raises `InvalidInput` where a
        kept value does not fit the type that its column has in the first file.
        """
        table = without(table, scored)
        columns = [_cast(table.column(field.name), field, path) for field in self.kept]
        return pa.Table.from_arrays([*columns, *scored.columns.values()], schema=self.schema)

    def errors(self, table: pa.Table, start: int, path: str, scored: Scored) -> pa.Table:
        """The rows that were not, with the file, the row of the file, the reason and the kept columns."""
        rows = sorted(scored.failed)
        chosen = table.take(numbers(rows, pa.int64(), np.int64))
        places = numbers([start + row for row in rows], pa.int64(), np.int64)
        if ROW in chosen.column_names:
            places = chosen.column(ROW)
        told = texts([scored.failed[row] for row in rows])
        kept = [chosen.column(field.name) for field in self.kept]
        return pa.Table.from_arrays(
            [*kept, texts([path] * len(rows)), places, told], [*self.kept.names, *ERROR_COLUMNS]
        )

    def tally(self, table: pa.Table, scored: Scored) -> Tally | None:
        """What the label column says of the answers."""
        if self.comparison is None:
            return None
        answered = without(table, scored)
        return self.comparison.tally(
            answered.column(self.comparison.label.column), scored.columns[self.comparison.output]
        )


def without(table: pa.Table, scored: Scored) -> pa.Table:
    """The table without the rows that failed."""
    if not scored.failed:
        return table
    there = np.ones(table.num_rows, dtype=bool)
    there[list(scored.failed)] = False
    return table.filter(booleans(there))


def _kept(spec: JobSpec, schema: pa.Schema, reads: Sequence[str]) -> list[str]:
    keep = spec.writing.keep
    if keep is None:
        return [name for name in schema.names if name not in reads]
    if keep == (KEEP_NONE,) and KEEP_NONE not in schema.names:
        return []
    if keep == (KEEP_ALL,) and KEEP_ALL not in schema.names:
        return list(schema.names)
    for name in keep:
        if name not in schema.names:
            raise InvalidInput(f'--keep: no column "{name}". {did_you_mean(name, schema.names)}')
    return list(keep)


def _castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    if found == wanted:
        return True
    found = found.value_type if pa.types.is_dictionary(found) else found
    wanted = wanted.value_type if pa.types.is_dictionary(wanted) else wanted
    return any(
        any(test(found) for test in kinds) and any(test(wanted) for test in kinds)
        for kinds in (
            (pa.types.is_integer, pa.types.is_floating),
            (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
            (pa.types.is_date, pa.types.is_timestamp),
        )
    )


def _cast(column: pa.ChunkedArray, field: pa.Field, path: str) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except pa.ArrowInvalid as error:
        raise InvalidInput(
            f'{path}: column "{field.name}" does not fit {field.type}, its type in the first file: {error}. Convert it,'
            " or leave it out with --keep, and start anew"
        ) from None
