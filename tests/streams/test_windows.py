"""Every window and aggregate against brute force, whatever the order in which events come; and its edges by hand."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.core.errors import ConfigError
from foretell.streams.watermark import NEVER
from foretell.streams.windows import session, sliding, tumbling
from tests.streams.window_reference import SessionReference, SlidingReference, ewma_of, numbers_of, streams

NUMBERS = streams(st.integers(-1000, 1000))
WORDS = streams(st.sampled_from(["x", "y", "z", "1", 1, 1.0, 2.5, b"x"]))
SETTINGS = {"delay": st.integers(0, 60), "lateness": st.integers(0, 60)}
SIZES = st.sampled_from([(10, 10, 0), (60, 60, 7), (60, 10, 0), (100, 25, -8), (600, 5, 3)])


def run(window, events, delay):
    """What the window answers to each event: its aggregate, or None if the event is late."""
    entries, newest = {}, None
    for key, time, value in events:
        mark = NEVER if newest is None else newest - delay
        newest = time if newest is None else max(newest, time)
        (place,) = window.places(np.array([time]))
        entry = entries.get(key)
        updated = window.update(entry, place, value, time, mark)
        if updated is None:
            yield None
            continue
        # As it is after a restart: nothing but what was written.
        entries[key] = msgspec.msgpack.decode(msgspec.msgpack.encode(updated[0]), type=window.form)
        assert entries[key] == updated[0]
        assert window.peek(entries[key], place, mark) == updated[1]
        yield updated[1]


def paned(size, every, offset, lateness, **more):
    if size == every:
        return tumbling(f"{size}s", offset=f"{offset}s", lateness=f"{lateness}s", **more)
    return sliding(f"{size}s", every=f"{every}s", offset=f"{offset}s", lateness=f"{lateness}s", **more)


def both(kind, sizes, delay, lateness, **more):
    """A window, and its reference."""
    if kind == "session":
        gap = sizes[1]
        return (
            session(f"{gap}s", lateness=f"{lateness}s", **more),
            SessionReference(gap * 1000, delay * 1000, lateness * 1000),
        )
    size, every, offset = sizes
    return (
        paned(size, every, offset, lateness, **more),
        SlidingReference(size * 1000, every * 1000, offset * 1000, delay * 1000, lateness * 1000),
    )


THOROUGHLY = settings(max_examples=400, deadline=None)
KINDS = pytest.mark.parametrize("kind", ["panes", "session"])


@KINDS
@THOROUGHLY
@given(events=NUMBERS, sizes=SIZES, **SETTINGS)
def test_numbers_are_those_of_brute_force(kind, events, sizes, delay, lateness):
    window, reference = both(kind, sizes, delay, lateness)
    for answer, event in zip(run(window, events, delay * 1000), events, strict=True):
        held, late = reference.event(*event)
        assert (answer is None) == late
        if answer is not None:
            told = {name: getattr(answer, name) for name in ("count", "sum", "mean", "min", "max")}
            assert told == numbers_of(held)


@KINDS
@THOROUGHLY
@given(events=WORDS, sizes=SIZES, **SETTINGS)
def test_distinct_values_are_those_of_brute_force(kind, events, sizes, delay, lateness):
    window, reference = both(kind, sizes, delay, lateness, distinct=True)
    texts = {"1": "1", 1: "1", b"x": "x"}
    for answer, event in zip(run(window, events, delay * 1000), events, strict=True):
        held, late = reference.event(*event)
        assert (answer is None) == late
        if answer is not None:
            assert answer.count == len(held)
            assert answer.distinct == len({texts.get(value, value) for _, value in held})


@KINDS
@THOROUGHLY
@given(events=NUMBERS, sizes=SIZES, half_life=st.sampled_from([1, 30, 3600]), **SETTINGS)
def test_a_decaying_mean_is_that_of_brute_force(kind, events, sizes, half_life, delay, lateness):
    window, reference = both(kind, sizes, delay, lateness, half_life=f"{half_life}s")
    for answer, event in zip(run(window, events, delay * 1000), events, strict=True):
        held, late = reference.event(*event)
        assert (answer is None) == late
        if answer is not None:
            assert answer.count == len(held)
            assert answer.ewma == pytest.approx(ewma_of(held, half_life * 1000), rel=1e-9, abs=1e-6)


@KINDS
@THOROUGHLY
@given(events=NUMBERS, sizes=SIZES, **SETTINGS)
def test_an_entry_that_is_past_tells_nothing_any_more(kind, events, sizes, delay, lateness):
    """Removing it changes no answer: what `until` allows is invisible."""
    window, _ = both(kind, sizes, delay, lateness)
    kept = list(run(window, events, delay * 1000))
    entries, newest, answers = {}, None, []
    for key, time, value in events:
        mark = NEVER if newest is None else newest - delay * 1000
        newest = time if newest is None else max(newest, time)
        entries = {k: e for k, e in entries.items() if window.until(e) > mark}
        (place,) = window.places(np.array([time]))
        updated = window.update(entries.get(key), place, value, time, mark)
        answers.append(updated and updated[1])
        if updated:
            entries[key] = updated[0]
    assert answers == kept


def add(window, *events, mark=NEVER):
    entry = None
    for time, value in events:
        entry, held = window.update(entry, window.places(np.array([time]))[0], value, time, mark)
    return held


def test_a_window_holds_its_start_and_not_its_end():
    assert add(tumbling("10s"), (0, 1), (9_999, 1)).count == 2
    assert add(tumbling("10s"), (0, 1), (10_000, 1)).count == 1


def test_an_offset_moves_days_into_another_zone():
    # Midnight two hours east of UTC is 22 o'clock here.
    hour = 3_600_000
    assert add(tumbling("1d", offset="-2h"), (21 * hour, 1), (22 * hour, 1)).count == 1
    assert add(tumbling("1d"), (21 * hour, 1), (22 * hour, 1)).count == 2


def test_a_pane_that_goes_when_its_time_is_over_is_in_no_later_window():
    # At the watermark of the last event the first pane is past; what it held must not stay in the merge of the others.
    window, entry = sliding("40s", every="10s"), None
    for second, mark in ((0, NEVER), (10, NEVER), (20, NEVER), (30, NEVER), (40, 45_000)):
        entry, held = window.update(entry, second * 1000, 1.0, second * 1000, mark)
    assert held.count == 4


def test_events_exactly_a_gap_apart_are_one_session():
    assert add(session("10s"), (0, 1), (10_000, 1)).count == 2
    assert add(session("10s"), (0, 1), (10_001, 1)).count == 1


def test_an_event_between_two_sessions_makes_them_one():
    assert add(session("10s"), (0, 1), (20_000, 2), (10_000, 4)).sum == 7


def test_a_half_life_halves():
    # 0 a half-life ago and 3 now: (0 × ½ + 3) ÷ 1½
    assert add(tumbling("1h", half_life="1m"), (0, 0.0), (60_000, 3.0)).ewma == 2.0


def test_a_half_life_far_shorter_than_the_window_does_not_underflow():
    assert add(tumbling("7d", half_life="1s"), (0, 5.0), (86_400_000, 3.0)).ewma == 3.0


@pytest.mark.parametrize("count", [100, 128, 129, 1_000, 20_000])
def test_many_distinct_values_are_estimated_within_four_standard_errors(count):
    window = tumbling("1h", distinct=True)
    held = add(window, *((0, f"value {n}") for n in range(count)))
    assert held.count == count
    assert held.distinct == pytest.approx(count, rel=0.0 if count <= 128 else 4 * 0.023)


def test_panes_of_distinct_values_merge_as_if_they_were_one():
    events = [(t * 1000, f"value {t % 700}") for t in range(2_000)]
    merged = add(sliding("1h", every="1m", distinct=True), *events)
    assert merged.distinct == add(tumbling("1h", distinct=True), *events).distinct


def test_nothing_is_nan_and_not_zero():
    empty = tumbling("1h").aggregate.empty
    assert (empty.count, empty.sum) == (0, 0.0)
    assert all(math.isnan(value) for value in (empty.mean, empty.min, empty.max))
    assert math.isnan(tumbling("1h", half_life="1m").aggregate.empty.ewma)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tumbling("1 hour"), 'size "1 hour" is no duration; write a number with ms, s, m, h, d or w'),
        (lambda: tumbling("0s"), 'size "0s" is not above 0'),
        (lambda: session("-5m"), 'gap "-5m" is not above 0'),
        (lambda: tumbling("1h", lateness="-1s"), 'lateness "-1s" is below 0'),
        (lambda: sliding("1h", every="7m"), 'size "1h" is no multiple of every "7m"'),
        (lambda: sliding("30d", every="1s"), "2,592,000 steps"),
        (lambda: tumbling("1h", distinct=True, half_life="1m"), "not both; declare two windows"),
    ],
)
def test_a_declaration_that_makes_no_sense_says_why(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
