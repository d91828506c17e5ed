"""Windows by brute force: every event is kept, and every answer is computed from all of them."""

import math

from hypothesis import strategies as st

SECOND = 1_000
GAP_FREE = st.integers(0, 600)


def streams(values):
    """Events (key, seconds, value) in order of arrival: mostly forward, often disordered, sometimes very late."""
    step = st.one_of(st.integers(0, 4), st.integers(-30, 30), st.integers(-200, 120))
    event = st.tuples(st.sampled_from([b"a", b"b"]), step, values)
    return st.lists(event, max_size=60).map(_walk)


def _walk(steps):
    now, events = 1_000, []
    for key, step, value in steps:
        now += step
        events.append((key, now * SECOND, value))
        now += max(0, -step)  # a step back is one event's, not the stream's
    return events


class Reference:
    """Answers (values in the event's window, late) for one event after the other."""

    def __init__(self, delay, lateness):
        self.delay, self.lateness = delay, lateness
        self.newest = None
        self.events = {}

    def mark(self, time):
        mark = -math.inf if self.newest is None else self.newest - self.delay
        self.newest = time if self.newest is None else max(self.newest, time)
        return mark


class SlidingReference(Reference):
    def __init__(self, size, every, offset, delay, lateness):
        super().__init__(delay, lateness)
        self.size, self.every, self.offset = size, every, offset

    def event(self, key, time, value):
        mark = self.mark(time)
        end = (time - self.offset) // self.every * self.every + self.every + self.offset
        if end + self.lateness <= mark:
            return [], True
        known = self.events.setdefault(key, [])
        known.append((time, value))
        return [(t, v) for t, v in known if end - self.size <= t < end], False


class SessionReference(Reference):
    def __init__(self, gap, delay, lateness):
        super().__init__(delay, lateness)
        self.gap = gap

    def event(self, key, time, value):
        mark = self.mark(time)
        ends = self.gap + self.lateness
        runs = [run for run in self.events.get(key, []) if max(t for t, _ in run) + ends >= mark]
        joined = [run for run in runs if any(abs(t - time) <= self.gap for t, _ in run)]
        if not joined and time + ends < mark:
            return [], True
        run = [event for one in joined for event in one] + [(time, value)]
        self.events[key] = [one for one in runs if one not in joined] + [run]
        return run, False


def numbers_of(window):
    values = [value for _, value in window]
    count = len(values)
    return {
        "count": count,
        "sum": sum(values),
        "mean": sum(values) / count if count else math.nan,
        "min": min(values, default=math.nan),
        "max": max(values, default=math.nan),
    }


def ewma_of(window, half_life):
    if not window:
        return math.nan
    newest = max(t for t, _ in window)
    weights = [0.5 ** ((newest - t) / half_life) for t, _ in window]
    return sum(w * v for w, (_, v) in zip(weights, window, strict=True)) / sum(weights)
