"""Windows over event time: tumbling, sliding and session, one key at a time. Pure: no I/O, no clock but the watermark.

What an event gets is the value of its own window over all events that came so far, itself included: of a tumbling
window the one that holds its time; of a sliding one the window that ends with its pane, `[end - size, end)` where
`end` is the next multiple of `every`; of a session the run of events without a gap.

Windows are half-open and aligned to 1970 in UTC plus `offset`, as in Flink and Beam. Sessions join when an event is at
most `gap` away, `gap` included, as in Kafka Streams and Flink (Beam splits exactly there). A sliding window is the
merge of panes of `every` milliseconds (Li et al., "No pane, no gain", SIGMOD Record 34(1), 2005), so an event costs
one pane and not the window. An event is late when its own window ended more than `lateness` before the watermark; then
it is in no window at all. Flink would still add it to the sliding windows that end later; here an event is in all of
its windows or in none.
"""

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from foretell.core.errors import ConfigError
from foretell.streams.aggregates import Aggregate, DecayedOf, DistinctOf, NumbersOf
from foretell.streams.times import Times, duration

A = TypeVar("A")

MOST_PANES = 10_000
"""Panes of one sliding window; more would cost more than they tell."""


class Window(Protocol):
    """One kind of window. An entry is what it knows of one key: a value, never changed."""

    @property
    def aggregate(self) -> Aggregate: ...

    @property
    def form(self) -> Any:
        """The type of an entry, for msgspec."""

    def places(self, times: Times) -> list[int]:
        """What `update` and `peek` want to know of each time: the start of its pane, or the time itself."""

    def update(self, entry: Any, place: int, value: Any, time: int, mark: int) -> tuple[Any, Any] | None:
        """The entry with the value and what its window then holds; None if the event is late at watermark `mark`."""

    def peek(self, entry: Any, place: int, mark: int) -> Any | None:
        """What the window of that place holds; None if nothing or if an event there is late at watermark `mark`."""

    def until(self, entry: Any) -> int:
        """The watermark from which on no event can see anything of this entry."""


class Panes(msgspec.Struct, Generic[A], frozen=True, array_like=True, gc=False):
    """`now` is the newest pane, that from `start`; `older` are the others by start, oldest first.

    `before` is the merge of those of `older` that share a window with the newest, kept because most events fall there.
    """

    start: int
    now: A
    older: tuple[tuple[int, A], ...] = ()
    before: A | None = None


class Paned:
    """Tumbling and sliding windows; a tumbling one is a sliding one of a single pane."""

    def __init__(self, size: int, every: int, lateness: int, offset: int, aggregate: Aggregate) -> None:
        self.size, self.every, self.lateness, self.offset = size, every, lateness, offset
        self.aggregate = aggregate
        self.form: Any = Panes[aggregate.form]  # type: ignore[name-defined]
        self._late = every + lateness
        self._kept = size + lateness

    def places(self, times: Times) -> list[int]:
        starts: list[int] = (times - (times - self.offset) % self.every).tolist()
        return starts

    def update(
        self, entry: Panes[Any] | None, place: int, value: Any, time: int, mark: int
    ) -> tuple[Panes[Any], Any] | None:
        if place + self._late <= mark:
            return None
        aggregate = self.aggregate
        if entry is None:
            now = aggregate.first(value, time)
            return Panes(place, now), now
        before = entry.before
        if place == entry.start:
            now = aggregate.add(entry.now, value, time)
            return Panes(place, now, entry.older, before), now if before is None else aggregate.merge(before, now)
        if place > entry.start:
            older, before = self._push(entry, place, mark)
            now = aggregate.first(value, time)
            return Panes(place, now, older, before), now if before is None else aggregate.merge(before, now)
        older, pane = self._insert(entry.older, place, value, time)
        before = self._before(older, place)
        entered = Panes(entry.start, entry.now, older, self._before(older, entry.start))
        return entered, pane if before is None else aggregate.merge(before, pane)

    def peek(self, entry: Panes[Any] | None, place: int, mark: int) -> Any | None:
        if entry is None or place + self._late <= mark:
            return None
        return self._before((*entry.older, (entry.start, entry.now)), place + 1)

    def until(self, entry: Panes[Any]) -> int:
        return entry.start + self._kept

    def _before(self, panes: Sequence[tuple[int, Any]], place: int) -> Any | None:
        """The merge of the panes before `place` that share its window."""
        held, first = None, place - self.size
        for start, pane in panes:
            if first < start < place:
                held = pane if held is None else self.aggregate.merge(held, pane)
        return held

    def _push(self, entry: Panes[Any], place: int, mark: int) -> tuple[tuple[tuple[int, Any], ...], Any | None]:
        """The older panes, and `before`, when a newer pane begins at `place`."""
        older, oldest = (*entry.older, (entry.start, entry.now)), mark - self._kept
        if older[0][0] > max(oldest, place - self.size):  # no pane goes, so what was merged stays so
            before = entry.before
            return older, entry.now if before is None else self.aggregate.merge(before, entry.now)
        older = tuple(pane for pane in older if pane[0] > oldest)
        return older, self._before(older, place)

    def _insert(
        self, older: tuple[tuple[int, Any], ...], place: int, value: Any, time: int
    ) -> tuple[tuple[tuple[int, Any], ...], Any]:
        for at in range(len(older) - 1, -1, -1):
            start, pane = older[at]
            if start == place:
                pane = self.aggregate.add(pane, value, time)
                return (*older[:at], (place, pane), *older[at + 1 :]), pane
            if start < place:
                pane = self.aggregate.first(value, time)
                return (*older[: at + 1], (place, pane), *older[at + 1 :]), pane
        pane = self.aggregate.first(value, time)
        return ((place, pane), *older), pane


class Sessions(msgspec.Struct, Generic[A], frozen=True, array_like=True, gc=False):
    """The sessions that an event may still join, by time: of each its first and last event and its values."""

    live: tuple[tuple[int, int, A], ...]


class Gapped:
    """Sessions: an event within `gap` of another of its key is in the same session."""

    def __init__(self, gap: int, lateness: int, aggregate: Aggregate) -> None:
        self.gap, self.lateness = gap, lateness
        self.aggregate = aggregate
        self.form: Any = Sessions[aggregate.form]  # type: ignore[name-defined]
        self._kept = gap + lateness

    def places(self, times: Times) -> list[int]:
        places: list[int] = times.tolist()
        return places

    def update(
        self, entry: Sessions[Any] | None, place: int, value: Any, time: int, mark: int
    ) -> tuple[Sessions[Any], Any] | None:
        kept = self._kept
        # An event that is exactly `gap` away still joins, so a session ends only after that moment.
        live = [] if entry is None else [session for session in entry.live if session[1] + kept >= mark]
        near = [session for session in live if self._near(session, time)]
        if not near:
            if time + kept < mark:
                return None
            held = self.aggregate.first(value, time)
            return Sessions(tuple(sorted([*live, (time, time, held)], key=_first))), held
        first, last, held = near[0]
        for _, later, more in near[1:]:  # this event closes the gap between them
            last, held = later, self.aggregate.merge(held, more)
        held = self.aggregate.add(held, value, time)
        joined = (min(first, time), max(last, time), held)
        if len(live) == len(near):
            return Sessions((joined,)), held
        others = [session for session in live if not self._near(session, time)]
        return Sessions(tuple(sorted([*others, joined], key=_first))), held

    def peek(self, entry: Sessions[Any] | None, place: int, mark: int) -> Any | None:
        held = None
        for session in () if entry is None else entry.live:
            if self._near(session, place) and session[1] + self._kept >= mark:
                held = session[2] if held is None else self.aggregate.merge(held, session[2])
        return held

    def until(self, entry: Sessions[Any]) -> int:
        return entry.live[-1][1] + self._kept + 1

    def _near(self, session: tuple[int, int, Any], time: int) -> bool:
        return session[0] - self.gap <= time <= session[1] + self.gap


def _first(session: tuple[int, int, Any]) -> int:
    return session[0]


def tumbling(
    size: str, *, lateness: str = "0s", offset: str = "0s", distinct: bool = False, half_life: str = ""
) -> Window:
    """Windows of `size`, one after the other: `spend = tumbling("1h")`.

    They keep numbers: count, sum, mean, min, max. With `distinct`: count and distinct, of any values. With a
    `half_life`: count and ewma. `offset` moves them: "-2h" makes days of a zone two hours ahead of UTC.
    """
    length = _positive(size, "size")
    return Paned(length, length, _lateness(lateness), duration(offset, "offset"), _aggregate(distinct, half_life))


def sliding(
    size: str, *, every: str, lateness: str = "0s", offset: str = "0s", distinct: bool = False, half_life: str = ""
) -> Window:
    """The last `size`, in steps of `every`: `spend = sliding("1h", every="5m")`. Further as `tumbling`."""
    length, step = _positive(size, "size"), _positive(every, "every")
    if length % step:
        raise ConfigError(f'size "{size}" is no multiple of every "{every}"; a sliding window is made of whole steps')
    if length // step > MOST_PANES:
        raise ConfigError(f'size "{size}" has {length // step:,} steps of "{every}", at most {MOST_PANES:,}')
    return Paned(length, step, _lateness(lateness), duration(offset, "offset"), _aggregate(distinct, half_life))


def session(gap: str, *, lateness: str = "0s", distinct: bool = False, half_life: str = "") -> Window:
    """Runs of events of a key that are at most `gap` apart: `visit = session("30m")`. Further as `tumbling`."""
    return Gapped(_positive(gap, "gap"), _lateness(lateness), _aggregate(distinct, half_life))


def _positive(text: str, name: str) -> int:
    length = duration(text, name)
    if length <= 0:
        raise ConfigError(f'{name} "{text}" is not above 0')
    return length


def _lateness(text: str) -> int:
    lateness = duration(text, "lateness")
    if lateness < 0:
        raise ConfigError(f'lateness "{text}" is below 0')
    return lateness


def _aggregate(distinct: bool, half_life: str) -> Aggregate:
    if distinct and half_life:
        raise ConfigError("a window keeps distinct values or a half_life, not both; declare two windows")
    if half_life:
        return DecayedOf(_positive(half_life, "half_life"))
    return DistinctOf() if distinct else NumbersOf()
