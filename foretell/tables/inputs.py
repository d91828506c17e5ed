"""A table's columns → the tensors of a signature, whole columns at a time; rows that do not fit are named, not lost."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foretell.core.column_map import ColumnMap
from foretell.core.errors import InvalidInput
from foretell.core.tensor import DTYPES, Signature, Tensor, Tensors, TensorSpec
from foretell.tables.values import (
    Faults,
    check_type,
    is_list,
    lists_of,
    plain,
    ragged_of,
    value_type,
    values_of,
)

Index = NDArray[np.int64] | slice
"""Rows of a table: their numbers, or a run of them (which then is no copy)."""


def check_columns(schema: pa.Schema, columns: ColumnMap, signature: Signature) -> None:
    """Raise `InvalidInput` where a column can never feed its input: wrong type, wrong form, or no rows in the model.

    `columns` is complete (see `ColumnMap.complete`).
    """
    for spec in signature.inputs:
        names = columns.feeds[spec.name]
        _row_shape(spec)
        check_once(schema, names)
        for name in names:
            kind = schema.field(name).type
            check_type(value_type(kind), spec.datatype, f'column "{name}" for input "{spec.name}"')
            _check_form(spec, name, _lists(kind), len(names))


def check_once(schema: pa.Schema, names: Sequence[str]) -> None:
    """Raise `InvalidInput` where one of `names` is that of several columns."""
    for name in names:
        if (count := schema.names.count(name)) > 1:
            raise InvalidInput(f'{count} columns are called "{name}"; rename them, or choose with --keep')


class Inputs:
    """The rows of one table as inputs of a model; `faults` says which cannot be used and why.

    `lengths`: how much of variable size each row has (bytes, list values), None where all rows are equal. Rows of one
    `take` need the same length where `ragged`.
    """

    def __init__(self, table: pa.RecordBatch | pa.Table, columns: ColumnMap, signature: Signature) -> None:
        self.rows: int = table.num_rows
        self.faults: Faults = []
        self.lengths: NDArray[np.int64] | None = None
        self.ragged = False
        self._dense: dict[str, Tensor] = {}
        self._ragged: dict[str, tuple[Tensor, NDArray[np.int64]]] = {}
        for spec in signature.inputs:
            names = columns.feeds[spec.name]
            arrays = [plain(_one(table.column(name))) for name in names]
            self._add(spec, names, arrays)

    def take(self, rows: Index) -> Tensors:
        """The inputs of some rows, in that order."""
        tensors = {name: np.ascontiguousarray(values[rows]) for name, values in self._dense.items()}
        if self._ragged:
            chosen = np.arange(self.rows)[rows]
            for name, (values, offsets) in self._ragged.items():
                length = int(offsets[chosen[0] + 1] - offsets[chosen[0]])
                tensors[name] = values[offsets[chosen][:, None] + np.arange(length)]
        return tensors

    @property
    def nbytes(self) -> int:
        """About how much the rows take on their way to a replica."""
        dense = sum(values.nbytes for values in self._dense.values() if values.dtype.kind != "O")
        ragged = sum(values.nbytes for values, _ in self._ragged.values())
        return dense + ragged + (int(self.lengths.sum()) if self.lengths is not None else 0)

    def good(self) -> NDArray[np.bool_]:
        """Which rows can be used."""
        bad = np.zeros(self.rows, dtype=bool)
        for mask, _ in self.faults:
            bad |= mask
        return ~bad

    def reasons(self) -> dict[int, str]:
        """Why a row cannot be used, by its number."""
        found: dict[int, str] = {}
        for mask, reason in self.faults:
            for row in np.flatnonzero(mask).tolist():
                found.setdefault(row, reason)
        return found

    def _add(self, spec: TensorSpec, names: tuple[str, ...], arrays: list[pa.Array]) -> None:
        shape = _row_shape(spec)
        faults: Faults = []
        if len(arrays) > 1 or (len(shape) == 1 and not is_list(arrays[0].type)):
            values = np.empty((self.rows, len(arrays)), dtype=DTYPES[spec.datatype])
            for at, (name, array) in enumerate(zip(names, arrays, strict=True)):
                values[:, at], found = values_of(array, spec.datatype)
                faults += [(mask, f'column "{name}": {reason}') for mask, reason in found]
        else:
            (array,) = arrays
            if shape == (-1,):
                values, offsets, found = ragged_of(array, spec.datatype)
                self._ragged[spec.name] = (values, offsets)
                self.ragged = True
                self._lengthen(np.diff(offsets))
            elif shape:
                values, found = lists_of(array, spec.datatype, shape)
            else:
                values, found = values_of(array, spec.datatype)
            faults += [(mask, f'column "{names[0]}": {reason}') for mask, reason in found]
        if spec.name not in self._ragged:
            self._dense[spec.name] = values if _has_row_axis(spec) else values.reshape(self.rows, 1, *shape)
            if spec.datatype == "BYTES":
                self._lengthen(np.fromiter(map(len, values.ravel()), np.int64, values.size).reshape(self.rows, -1))
            if not spec.allow_nan and values.dtype.kind == "f":
                self._refuse_nan(values, names, faults)
        self.faults += [(mask, reason) for mask, reason in faults if mask.any()]

    def _refuse_nan(self, values: Tensor, names: tuple[str, ...], faults: Faults) -> None:
        wrong = ~np.isfinite(values.reshape(self.rows, -1)).all(axis=1)
        told = ", ".join(f'"{name}"' for name in names[:3]) + ("…" if len(names) > 3 else "")
        faults.append((wrong, f"column {told}: NaN, infinity or null, which this model refuses"))

    def _lengthen(self, lengths: NDArray[np.int64]) -> None:
        summed = lengths.reshape(self.rows, -1).sum(axis=1)
        self.lengths = summed if self.lengths is None else self.lengths + summed


def _row_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one row. Raises `InvalidInput` where the input has no rows."""
    if not spec.shape or spec.shape[0] not in (-1, 1):
        raise InvalidInput(
            f"input {spec} has no row axis: this model takes whole requests, not rows of a table. Serve it instead"
        )
    shape = spec.shape[1:]
    if -1 in shape and shape != (-1,):
        raise InvalidInput(
            f"input {spec} has rows of several variable axes, which no column can hold; declare a fixed shape"
        )
    return shape


def _has_row_axis(spec: TensorSpec) -> bool:
    return spec.shape[0] == -1


def _lists(kind: pa.DataType) -> int:
    """How deep the lists of a column are."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return 1 + _lists(kind.value_type) if is_list(kind) else 0


def _check_form(spec: TensorSpec, column: str, depth: int, columns: int) -> None:
    shape = _row_shape(spec)
    what = f'column "{column}" for input {spec}'
    if columns > 1:
        if depth:
            raise InvalidInput(f"{what}: only scalar columns can be joined into a vector; this one holds lists")
        if shape not in ((-1,), (columns,)):
            raise InvalidInput(f"{columns} columns are mapped to input {spec}, which takes {_told(shape)}")
        return
    if depth == 0 and shape not in ((), (1,), (-1,)):
        raise InvalidInput(f"{what} holds single values, the model expects {_told(shape)}; map more columns or a list")
    if depth and (not shape or depth not in (1, len(shape))):
        raise InvalidInput(f"{what} holds lists {depth} deep, the model expects {_told(shape)}")


def _told(shape: tuple[int, ...]) -> str:
    if not shape:
        return "one value a row"
    return "a list a row" if shape == (-1,) else f"{' × '.join(map(str, shape))} values a row"


def _one(column: Any) -> pa.Array:
    """A table's column in one piece."""
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column
