"""Rows of a table → requests of the plane → columns of answers. Keeps the replicas busy; a row that fails, fails alone.

Knows no files and no job.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foretell.batch.part import Scored
from foretell.batch.question import Question, RowQuestion
from foretell.batch.spec import PROTOCOL
from foretell.batch.tuning import MOST_BYTES, Sizes, part_rows, sizes, untried
from foretell.core.errors import InvalidInput, ModelFailed, ReplicaCrashed
from foretell.core.reference import Reference
from foretell.core.request import Request
from foretell.core.tensor import Tensors, TensorSpec
from foretell.plane.plane import Plane
from foretell.tables.arrays import numbers
from foretell.tables.inputs import Inputs
from foretell.tables.outputs import column_type, text_faults, to_column

T = TypeVar("T")

BLAMED = (InvalidInput, ModelFailed, ReplicaCrashed)
"""Errors that a row can be the cause of; any other stops the job."""


class Scorer(Protocol):
    """Answers a question about the rows of tables."""

    @property
    def question(self) -> Question: ...

    async def sizes(self, table: pa.Table, row_bytes: float) -> Sizes:
        """How many rows a request and a part should have, tried on some rows of about `row_bytes` bytes."""

    async def score(self, table: pa.Table, batch_rows: int) -> Scored: ...


class Piece(msgspec.Struct):
    """The answers of some rows."""

    rows: NDArray[np.int64]
    outputs: Tensors


class RowScorer:
    """Asks a model that predicts. `slots`: requests under way at a time; enough that no replica waits for the next."""

    def __init__(
        self, plane: Plane, reference: Reference, question: RowQuestion, slots: int, dollars_per_second: float
    ) -> None:
        self.question = question
        self._plane = plane
        self._reference = reference
        self._slots = asyncio.Semaphore(slots)
        self._dollars_per_second = dollars_per_second
        self._signature = question.signature
        self._columns = question.columns

    async def score(self, table: pa.Table, batch_rows: int) -> Scored:
        inputs = await asyncio.to_thread(Inputs, table, self._columns, self._signature)
        failed = inputs.reasons()
        size = batch_rows if self._signature.batchable else 1
        found = await together(self._ask(inputs, rows, failed) for rows in requests(inputs, size, self.question.pads))
        pieces = [piece for part, _ in found for piece in part]
        compute_s = sum(seconds for _, seconds in found)
        columns = await asyncio.to_thread(self._columns_of, pieces, inputs.rows, failed)
        return Scored(columns, failed, compute_s, compute_s * self._dollars_per_second)

    async def sizes(self, table: pa.Table, row_bytes: float) -> Sizes:
        """Tries requests of more and more rows while that pays. Of texts of different lengths those in the middle are
        tried: they are no shorter where a request is small.
        """
        if not table.num_rows:
            return untried(2 * row_bytes)
        inputs = Inputs(table, self._columns, self._signature)
        own_bytes = float(inputs.nbytes) / inputs.rows
        trial = sizes(inputs.rows if self._signature.batchable else 1, own_bytes, MOST_BYTES)
        row_s = answer_bytes = 0.0
        best = size = next(trial)
        while size * answer_bytes <= MOST_BYTES:
            asked = list(requests(inputs, size, self.question.pads))
            if not asked:  # none of them is good: whatever the size, nothing will be asked
                break
            rows = asked[(len(asked) - 1) // 2]
            began = time.monotonic()
            pieces, _ = await self._ask(inputs, rows, {})
            row_s = (time.monotonic() - began) / len(rows)
            answer_bytes = max(answer_bytes, sum(_nbytes(piece.outputs) for piece in pieces) / len(rows))
            best = size
            try:
                size = trial.send(row_s * size)
            except StopIteration as chosen:
                best = chosen.value
                break
        best = max(1, min(best, int(MOST_BYTES / max(answer_bytes, 1.0))))
        # Answers are there twice for a while: as they came, and as columns.
        return Sizes(best, part_rows(best, row_s, row_bytes + own_bytes + 2 * answer_bytes))

    async def _ask(self, inputs: Inputs, rows: NDArray[np.int64], failed: dict[int, str]) -> tuple[list[Piece], float]:
        """The answers of `rows`. Halves those that fail until the row to blame is alone, and notes it in `failed`."""
        try:
            async with self._slots:
                request = Request(inputs.take(_run(rows)), len(rows), protocol=PROTOCOL, whole=True)
                response = await self._plane.infer(self._reference, request)
        except BLAMED as error:
            if len(rows) == 1:
                failed[int(rows[0])] = error.message
                return [], 0.0
        else:
            return [Piece(rows, response.outputs)], response.timing.compute_s
        middle = len(rows) // 2
        first, first_s = await self._ask(inputs, rows[:middle], failed)
        second, second_s = await self._ask(inputs, rows[middle:], failed)
        return first + second, first_s + second_s

    def _columns_of(self, pieces: list[Piece], count: int, failed: dict[int, str]) -> dict[str, pa.Array]:
        for spec in self._signature.outputs:
            if spec.datatype == "BYTES":
                _drop_what_is_no_text(pieces, spec, failed)
        done = np.ones(count, dtype=bool)
        done[list(failed)] = False
        place = np.cumsum(done) - 1
        for piece in pieces:
            piece.rows = place[piece.rows]
        return {spec.name: joined(pieces, int(done.sum()), spec) for spec in self._signature.outputs}


def requests(inputs: Inputs, batch_rows: int, by_length: bool) -> Iterator[NDArray[np.int64]]:
    """The rows of each request: only good ones, in order; `by_length` those of similar length together."""
    rows = np.flatnonzero(inputs.good())
    if inputs.lengths is not None and (by_length or inputs.ragged):
        rows = rows[np.argsort(inputs.lengths[rows], kind="stable")]
    at = 0
    while at < len(rows):
        end = min(at + batch_rows, len(rows))
        if inputs.ragged and inputs.lengths is not None:
            end = at + int(np.searchsorted(inputs.lengths[rows[at:end]], inputs.lengths[rows[at]], side="right"))
        yield rows[at:end]
        at = end


def joined(pieces: Sequence[Piece], rows: int, spec: TensorSpec) -> pa.Array:
    """One column from the answers of all pieces, in the order of the rows."""
    arrays = [piece.outputs[spec.name] for piece in pieces]
    if spec.shape[0] != -1:  # one row at a time, its axis is in the array
        arrays = [array.reshape(1, *array.shape[1:]) for array in arrays]
    if not arrays:
        return pa.nulls(0, column_type(spec))
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) == 1:
        whole = np.empty((rows, *shapes.pop()), dtype=arrays[0].dtype)
        for piece, array in zip(pieces, arrays, strict=True):
            whole[_run(piece.rows)] = array
        return to_column(whole, spec)
    columns = pa.concat_arrays([to_column(array, spec) for array in arrays])
    order = np.empty(rows, dtype=np.int64)
    order[np.concatenate([piece.rows for piece in pieces])] = np.arange(rows)
    return columns.take(numbers(order, pa.int64(), np.int64))


def _drop_what_is_no_text(pieces: Sequence[Piece], spec: TensorSpec, failed: dict[int, str]) -> None:
    for piece in pieces:
        wrong = text_faults(piece.outputs[spec.name])
        if wrong.any():
            for row in piece.rows[wrong].tolist():
                failed[row] = f'output "{spec.name}" is not UTF-8 text, which a table cannot hold'
            piece.rows = piece.rows[~wrong]
            piece.outputs = {name: array[~wrong] for name, array in piece.outputs.items()}


def _nbytes(outputs: Tensors) -> int:
    return sum(sum(map(len, array.ravel())) if array.dtype.kind == "O" else array.nbytes for array in outputs.values())


def _run(rows: NDArray[np.int64]) -> "NDArray[np.int64] | slice":
    """A slice where the rows follow each other, which costs no copy."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (len(rows) < 2 or (np.diff(rows) == 1).all()):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


async def together(asked: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """All results, in order; the first error ends the others."""
    tasks = [asyncio.ensure_future(each) for each in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
