"""Durations and event times as people and devices write them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.core.errors import ConfigError
from foretell.streams.times import duration, event_time, event_times


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("250ms", 250), ("5s", 5_000), ("5m", 300_000), ("1h30m", 5_400_000), ("1d 2h", 93_600_000), ("-2h", -7_200_000)],
)
def test_durations_have_units(text, milliseconds):
    assert duration(text) == milliseconds


@pytest.mark.parametrize("text", ["", "5", "m", "1.5h", "5 minutes", "1h-5m"])
def test_what_is_no_duration_is_said(text):
    with pytest.raises(ConfigError, match=r'lateness ".*" is no duration; .* such as "5m"'):
        duration(text, "lateness")


@settings(deadline=None)
@given(st.datetimes(datetime(1973, 4, 1), datetime(5000, 1, 1)), st.integers(-12, 12))
def test_every_way_to_write_a_time_is_the_same_time(moment, zone):
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=timezone(timedelta(hours=zone)))
    ms = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    utc = moment.astimezone(UTC)
    for value in (ms, float(ms), ms * 1_000, ms * 1_000_000, ms / 1_000, str(ms), moment, moment.isoformat()):
        assert event_time(value) == ms
    assert event_time(utc.isoformat().replace("+00:00", "Z")) == event_time(utc.replace(tzinfo=None).isoformat()) == ms


def test_seconds_may_be_whole_numbers_or_fractions():
    assert event_time(1_700_000_000) == 1_700_000_000_000
    assert event_time(1_700_000_000.25) == 1_700_000_000_250


@pytest.mark.parametrize("value", [None, True, "yesterday", [], float("nan"), float("inf"), 1e300, -(10**30), 10**400])
def test_what_is_no_time_is_wrong_alone(value):
    times, wrong = event_times([1_700_000_000, value, 1_700_000_001])
    assert times.tolist() == [1_700_000_000_000, 0, 1_700_000_001_000]
    assert list(wrong) == [1]
    assert "time" in wrong[1].message
