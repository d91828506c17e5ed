"""How event time advances: never by how the stream was cut, never because of one clock that jumps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.core.errors import ConfigError
from foretell.streams.watermark import NEVER, Clock, Watermark

HOUR, DAY = 3_600_000, 86_400_000
RULE = Watermark(delay="1m", jump="1d", confirm=3)


def advance(*times, rule=RULE, clock=Clock()):
    return rule.advance(clock, np.array(times, np.int64))


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 100), st.integers(0, 10 * DAY), st.integers(0, 2**45)), max_size=30),
    st.integers(1, 4),
    st.data(),
)
def test_cutting_the_stream_changes_nothing(times, confirm, data):
    rule = Watermark("1m", "1d", confirm)
    whole = advance(*times, rule=rule)
    clock, before, ahead = Clock(), [], []
    while times:
        cut = data.draw(st.integers(1, len(times)))
        part = advance(*times[:cut], rule=rule, clock=clock)
        before += part.before.tolist()
        ahead += part.ahead.tolist()
        clock, times = part.after, times[cut:]
    assert (before, ahead, clock) == (whole.before.tolist(), whole.ahead.tolist(), whole.after)


@settings(deadline=None)
@given(st.lists(st.integers(0, 100 * DAY), max_size=30))
def test_the_watermark_never_goes_back(times):
    before = advance(*times).before
    assert (np.diff(before) >= 0).all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 10 * DAY), min_size=1, max_size=30))
def test_believing_everything_is_the_newest_time_less_the_delay(times):
    marks = advance(*times, rule=Watermark("1m", confirm=1))
    assert marks.before.tolist() == [NEVER] + [max(times[:n]) - 60_000 for n in range(1, len(times))]
    assert not marks.ahead.any()


def test_nothing_is_late_before_enough_events_agree():
    assert advance(5 * HOUR, 5 * HOUR).after.newest == NEVER
    assert advance(5 * HOUR, 4 * HOUR, 5 * HOUR + 1).after == Clock(5 * HOUR + 1)


def test_a_wrong_first_clock_does_not_make_the_others_late():
    marks = advance(999 * DAY, HOUR, HOUR, HOUR, HOUR)
    assert marks.after == Clock(HOUR)
    assert not marks.ahead.any()


def test_one_device_in_the_future_moves_nothing_however_often_it_says_so():
    start = advance(HOUR, HOUR, HOUR).after
    marks = advance(999 * DAY, HOUR + 1, 999 * DAY, HOUR + 2, 999 * DAY, HOUR + 3, clock=start)
    assert marks.after.newest == HOUR + 3
    assert marks.ahead.tolist() == [True, False, True, False, True, False]


def test_after_a_long_silence_the_third_event_is_believed():
    start = advance(HOUR, HOUR, HOUR).after
    marks = advance(9 * DAY, 9 * DAY + 2, 9 * DAY + 1, 9 * DAY + 3, clock=start)
    assert marks.ahead.tolist() == [True, True, False, False]
    assert marks.after == Clock(9 * DAY + 3)


def test_a_clock_that_goes_back_makes_only_its_own_events_late():
    start = advance(9 * DAY, 9 * DAY, 9 * DAY).after
    assert advance(0, 0, 0, 0, clock=start).after == start


@pytest.mark.parametrize("wrong", [{"delay": "-1s"}, {"jump": "0s"}, {"confirm": 0}])
def test_a_rule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match="a watermark needs"):
        Watermark(**wrong)
