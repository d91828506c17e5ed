"""What a transform sees: `events` as columns, and `state`, which adds to windows and answers what they hold."""

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from foretell.core.errors import ModelFailed
from foretell.core.tensor import Tensor
from foretell.streams.aggregates import DistinctOf, numbers, present
from foretell.streams.memory import VALUES, Memory, alive, pack, unpack
from foretell.streams.state import StateStore
from foretell.streams.table import Table
from foretell.streams.times import Times, duration
from foretell.streams.watermark import Marks
from foretell.streams.windows import Window

KEPT_FOR = "30d"


class Events(Mapping[str, Tensor]):
    """The events of a micro-batch by field, as a dict is for one event: `events["x"]` is an error where an event has no
    x, which then fails alone; `events.get("x")` has NaN (among numbers) or None (among others) there.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    def __getitem__(self, name: str) -> Tensor:
        return _column([row[name] for row in self._rows])

    def get(self, name: str, default: Any = None) -> Any:
        return _column([row.get(name, default) for row in self._rows])

    def __contains__(self, name: object) -> bool:
        return any(name in row for row in self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for row in self._rows for name in row))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _column(values: list[Any]) -> Tensor:
    kinds = {type(value) for value in values}
    if kinds <= {int, float, bool, type(None)}:
        return np.array(values, None if type(None) not in kinds else np.float64)
    column = np.empty(len(values), object)
    column[:] = values
    return column


class Batch:
    """A micro-batch of one partition while it is transformed: keys, times, watermarks, and who was late."""

    def __init__(
        self,
        store: StateStore,
        names: Mapping[Window, str],
        partition: str,
        keys: list[bytes],
        times: Times,
        marks: Marks,
    ) -> None:
        self.keys, self.times, self.marks = keys, times, marks
        self.ahead: list[int] = np.flatnonzero(marks.ahead).tolist()
        self.late: set[int] = set()
        self._store, self._names, self._partition = store, names, partition
        self._ready: dict[str, tuple[Table, list[int]]] = {}
        self._times: list[int] = times.tolist()
        self._before: list[int] = marks.before.tolist()
        self._ahead = frozenset(self.ahead)

    def add(self, window: Window, values: Sequence[Any], first: int = 0) -> tuple[list[Any], list[int]]:
        """Add a value each of the events from `first` on; what their windows then hold, and which were late."""
        table, places = self._table(window)
        held, update, empty = table.held, window.update, window.aggregate.empty
        put, keys, times, before, ahead = table.put, self.keys, self._times, self._before, self._ahead
        found: list[Any] = []
        late: list[int] = []
        for at, value in enumerate(values, first):
            key = keys[at]
            entry = held.get(key)
            if at in ahead:
                found.append(empty)
                continue
            if value is None:
                found.append(window.peek(entry, places[at], before[at]) or empty)
                continue
            updated = update(entry, places[at], value, times[at], before[at])
            if updated is None:
                late.append(at)
                found.append(empty)
            else:
                put(key, updated[0])
                found.append(updated[1])
        self.late.update(late)
        return found, late

    def _table(self, window: Window) -> tuple[Table, list[int]]:
        name = self._names.get(window)
        if name is None:
            raise ModelFailed("this window was made inside a function; declare windows at the top of the file")
        ready = self._ready.get(name)
        if ready is None:
            table = self._store.table(self._partition, name)
            table.fetch(self.keys)
            ready = self._ready[name] = table, window.places(self.times)
        return ready

    def get(self, at: int) -> dict[str, bytes]:
        """What `put` kept of the key of an event, packed."""
        return alive(self._store.get(self._partition, VALUES, self.keys[at]), self._times[at], self._before[at])

    def put(self, at: int, name: str, value: bytes, kept_for: int) -> None:
        memory = Memory(max(self._times[at], self._before[at]) + kept_for, {**self.get(at), name: value})
        self._store.put(self._partition, VALUES, self.keys[at], memory)

    def only(self, at: int) -> "Batch":
        """A batch of this event alone."""
        marks = self.marks.of([at])
        return Batch(self._store, self._names, self._partition, [self.keys[at]], self.times[[at]], marks)


class Columns:
    """What the windows of a micro-batch hold, as arrays: `count`, `sum`, `mean`, … whichever the window keeps.

    `late` tells which events the window did not take.
    """

    def __init__(self, held: list[Any], late: list[int]) -> None:
        self._held = held
        self._late = late

    @property
    def late(self) -> Tensor:
        mask = np.zeros(len(self._held), bool)
        mask[self._late] = True
        return mask

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_"):
            raise AttributeError(name)
        dtype = np.int64 if name == "count" else np.float64
        return np.fromiter(map(attrgetter(name), self._held), dtype, len(self._held))


class BatchState:
    """The state of a micro-batch's keys, an event each."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def add(self, window: Window, values: Sequence[Any]) -> Columns:
        """Add a column of values, one for each event in its order, and get what each event's window then holds.

        A value that is missing (None, NaN) is not added; nor is that of a late event, for which the window is empty.
        """
        if len(values) != len(self._batch.keys):
            raise ModelFailed(f"add got {len(values)} values for {len(self._batch.keys)} events")
        clean = numbers(values) if _numeric(window) else present(values)
        return Columns(*self._batch.add(window, clean))


class EventState:
    """The state of one event's key."""

    def __init__(self, batch: Batch, at: int) -> None:
        self._batch, self._at = batch, at

    @property
    def late(self) -> bool:
        """Whether a window that was added to so far did not take this event."""
        return self._at in self._batch.late

    def add(self, window: Window, value: Any) -> Any:
        """Add a value and get what the event's window then holds: `count`, `sum`, `mean`, …

        A value that is missing (None, NaN) is not added; nor is that of a late event, for which the window is empty.
        """
        clean = numbers((value,)) if _numeric(window) else present((value,))
        return self._batch.add(window, clean, self._at)[0][0]

    def get(self, name: str, default: Any = None) -> Any:
        """What `put` kept under this name for the event's key."""
        packed = self._batch.get(self._at).get(name)
        return default if packed is None else unpack(packed)

    def put(self, name: str, value: Any, kept_for: str = KEPT_FOR) -> None:
        """Keep plain data or an array; all of a key goes when `kept_for` has passed since its last one."""
        self._batch.put(self._at, name, pack(value), duration(kept_for, "kept_for"))


def _numeric(window: Window) -> bool:
    return not isinstance(window.aggregate, DistinctOf)
