"""Observations as Parquet files by hour, and the way back. Owns the file layout and the schema; doesn't know who
decides which requests are sampled.

Layout: `FOLDER/date=2026-11-24/hour=07/part-<pid>-<token>-<n>.parquet`, hours in UTC. A file
appears under its name only when it is complete; until then its name starts with a dot.
"""

import logging
import os
import time
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.core.clock import Clock
from foretell.core.observation import Observation, TokenUse
from foretell.core.tensor import Tensors, from_wire
from foretell.tables.arrays import booleans, numbers, texts
from foretell.telemetry.columns import tensor_type, tensors

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)

_COLUMNS = (
    "model", "version", "outcome", "total_s", "queue_s", "compute_s", "rows", "batch_rows", "cached", "protocol",
    "request_id", "cost_dollars", "error",
)  # fmt: skip
_SECONDS = ("total_s", "queue_s", "compute_s", "cost_dollars")
_COUNTS = ("rows", "batch_rows")
_fields = attrgetter(*_COLUMNS)
_TOKEN_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "drafted_tokens", "accepted_tokens")
_TOKEN_SECONDS = ("first_token_s", "mean_gap_s", "longest_gap_s")
_token_fields = attrgetter(*_TOKEN_COUNTS, *_TOKEN_SECONDS)
_NO_TOKENS = TokenUse()
_use, _inputs, _outputs = map(attrgetter, ("tokens", "inputs", "outputs"))


def schema() -> "pyarrow.Schema":
    """The columns of every file: those of `Observation` and `TokenUse` (all 0 on requests that generated nothing;
    of the gaps between tokens only the mean and the longest), `at` as a UTC timestamp.

    `inputs` and `outputs` are null on requests that weren't sampled, otherwise a list of tensors, each with its
    name, datatype, shape and raw bytes as on the wire of the Open Inference Protocol.
    """
    pa = _pyarrow()
    tensor = tensor_type()
    types = {name: pa.float64() for name in _SECONDS} | {name: pa.int32() for name in _COUNTS}
    types["cached"] = pa.bool_()
    return pa.schema(
        [("at", pa.timestamp("us", tz="UTC"))]
        + [(name, types.get(name, pa.string())) for name in _COLUMNS]
        + [(name, pa.int32()) for name in _TOKEN_COUNTS]
        + [(name, pa.float64()) for name in _TOKEN_SECONDS]
        + [("inputs", pa.list_(tensor)), ("outputs", pa.list_(tensor))]
    )


class ParquetWriter:
    """Keeps observations as Arrow batches and writes them as files (a `Consumer`; wrap it in `Detached`).

    A file is written when its hour has `max_rows` rows or `max_bytes` bytes waiting, or when its first row has
    waited `max_age_s` seconds: that much is lost if the process is killed. If a file can't be written, its rows
    are counted in `dropped`, the first failure in a row is logged, and the next file is tried as usual. `kept`
    counts the rows in finished files.
    """

    def __init__(
        self,
        folder: Path | str,
        max_rows: int = 50_000,
        max_bytes: int = 16 * 2**20,
        max_age_s: float = 60.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._folder = Path(folder)
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        # A process id alone returns after a restart (always 1 in a container) and would overwrite old files.
        self._prefix = f"part-{os.getpid()}-{os.urandom(4).hex()}"
        self._parts = 0
        self._hours: dict[int, _Hour] = {}
        self._schema: pyarrow.Schema | None = None
        self._failing = False
        self.kept = 0
        self.dropped = 0

    def consume(self, batch: Sequence[Observation]) -> None:
        if self._schema is None:
            self._schema = schema()
        hours = [int(o.at // 3600) for o in batch]
        different = set(hours)
        for hour in different:
            rows = batch if len(different) == 1 else [o for o, h in zip(batch, hours, strict=True) if h == hour]
            waiting = self._hours.setdefault(hour, _Hour(self._clock()))
            waiting.add(_to_arrow(rows, self._schema))
            if waiting.rows >= self._max_rows or waiting.bytes >= self._max_bytes:
                self._write(hour)
        self.tick()

    def tick(self) -> None:
        """Write the hours whose first row has waited long enough."""
        now = self._clock()
        for hour in [h for h, waiting in self._hours.items() if now - waiting.since >= self._max_age_s]:
            self._write(hour)

    def close(self) -> None:
        """Write what waits."""
        for hour in list(self._hours):
            self._write(hour)

    def _write(self, hour: int) -> None:
        waiting = self._hours.pop(hour)
        moment = time.gmtime(hour * 3600)
        folder = self._folder / time.strftime("date=%Y-%m-%d", moment) / time.strftime("hour=%H", moment)
        name = f"{self._prefix}-{self._parts}.parquet"
        self._parts += 1
        unfinished = folder / f".{name}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_file(waiting.batches, unfinished)
            unfinished.rename(folder / name)
        except OSError as error:
            self.dropped += waiting.rows
            if not self._failing:
                logger.error(
                    "observations can't be written to %s: %s; they are counted and dropped until it works again",
                    folder, error.strerror or error,
                )  # fmt: skip
            self._failing = True
            _remove(unfinished)
        else:
            self._failing = False
            self.kept += waiting.rows


class _Hour:
    """Arrow batches of one hour that wait for a file."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.batches: list[Any] = []
        self.rows = 0
        self.bytes = 0

    def add(self, batch: Any) -> None:
        self.batches.append(batch)
        self.rows += batch.num_rows
        self.bytes += batch.nbytes


def read_observations(folder: Path | str) -> "pyarrow.Table":
    """Every complete file under `folder` as one table in `schema()`, oldest hour first; empty if there is none.

    Columns that a file of an earlier foretell lacks are null.
    """
    pa = _pyarrow()
    import pyarrow.parquet as pq

    files = sorted(Path(folder).glob("date=*/hour=*/part-*.parquet"))
    # ParquetFile, not read_table: the latter turns date=…/hour=… into columns of its own.
    tables = [pq.ParquetFile(file).read() for file in files]
    return pa.concat_tables(tables, promote_options="default") if tables else schema().empty_table()


def unpack_tensors(cell: Iterable[dict[str, Any]] | None) -> Tensors | None:
    """The tensors in one cell of `inputs` or `outputs` (as `to_pylist` gives it), or None if not sampled."""
    if cell is None:
        return None
    return {
        tensor["name"]: from_wire(tensor["data"], tensor["datatype"], tuple(tensor["shape"]), tensor["name"])
        for tensor in cell
    }


def _to_arrow(rows: Sequence[Observation], columns: "pyarrow.Schema") -> "pyarrow.RecordBatch":
    pa = _pyarrow()
    at = (np.array([o.at for o in rows]) * 1e6).round()
    arrays = [numbers(at, columns.types[0], np.int64)]
    for name, values in zip(_COLUMNS, zip(*map(_fields, rows), strict=True), strict=True):
        if name in _SECONDS:
            arrays.append(numbers(values, pa.float64(), np.float64))
        elif name in _COUNTS:
            arrays.append(numbers(values, pa.int32(), np.int32))
        else:
            arrays.append(booleans(values) if name == "cached" else texts(values))
    arrays += _token_columns(list(map(_use, rows)))
    arrays += [tensors(list(map(_inputs, rows))), tensors(list(map(_outputs, rows)))]
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def _token_columns(uses: Sequence[TokenUse | None]) -> "list[pyarrow.Array]":
    pa = _pyarrow()
    columns: list[Any] = [np.zeros(len(uses))] * (len(_TOKEN_COUNTS) + len(_TOKEN_SECONDS))
    if uses.count(None) < len(uses):  # most models generate nothing
        columns = list(zip(*(_token_fields(use or _NO_TOKENS) for use in uses), strict=True))
    counts, seconds = columns[: len(_TOKEN_COUNTS)], columns[len(_TOKEN_COUNTS) :]
    return [numbers(values, pa.int32(), np.int32) for values in counts] + [
        numbers(values, pa.float64(), np.float64) for values in seconds
    ]


def _write_file(batches: Sequence[Any], path: Path) -> None:
    pa = _pyarrow()
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_batches(batches), path, compression="zstd")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.debug("%s stays behind: %s", path, error)


def _pyarrow() -> Any:
    # pyarrow costs about 30 MB; a gateway that writes no files never loads it.
    import pyarrow

    return pyarrow
