"""Durations that people write ("5m", "1h30m") and event times as they come (epoch or ISO 8601), both as milliseconds.

Event times are integers of milliseconds since 1970 in UTC everywhere in this room.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretell.core.errors import ConfigError, InvalidInput

Times = NDArray[np.int64]

_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION = re.compile(r"(-?)((?:\d+(?:ms|[smhdw]))+)")
_FARTHEST_MS = 2**53
"""Event times beyond it (the year 287,396) are no times; what is below stays exact as a float, too."""


def duration(text: str, name: str = "duration") -> int:
    """Milliseconds of "250ms", "30s", "5m", "1h", "7d", "2w" or several of them together, as in "1h30m".

    Raises `ConfigError` that names the setting.
    """
    match = _DURATION.fullmatch(text.replace(" ", ""))
    if not match:
        raise ConfigError(f'{name} "{text}" is no duration; write a number with ms, s, m, h, d or w, such as "5m"')
    total = sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)(ms|[smhdw])", match[2]))
    return -total if match[1] else total


def event_time(value: Any) -> int:
    """One event's time in milliseconds.

    A number is read by its size as seconds (below 10¹¹), milliseconds (10¹⁴), microseconds (10¹⁷) or nanoseconds since
    1970, which is right for every time from March 1973 to the year 5138. Text is ISO 8601, in UTC unless it says
    otherwise. Raises `InvalidInput` that shows the value.
    """
    if isinstance(value, str):
        value = _read_iso(value)
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InvalidInput(f"event time {value!r} is neither a number nor ISO 8601 text")
    number = float(value) if isinstance(value, float | np.floating) else int(value)
    size = abs(number)
    if not size < 1e20:  # not a number, too
        raise InvalidInput(f"event time {value!r} is no time")
    if size < 1e11:
        return round(number * 1_000)
    return int(number // _per_ms(size))


def _per_ms(size: float) -> int:
    return 1 if size < 1e14 else 1_000 if size < 1e17 else 1_000_000


def _read_iso(text: str) -> datetime | float:
    try:
        return float(text)  # first, for ISO 8601 also knows dates without hyphens
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f'event time "{text}" is neither a number nor ISO 8601 text') from None


def event_times(values: Sequence[Any]) -> tuple[Times, dict[int, InvalidInput]]:
    """The times of a micro-batch, and what is wrong with those that are none (their time is 0) by their place."""
    times = np.zeros(len(values), np.int64)
    wrong: dict[int, InvalidInput] = {}
    for at, value in enumerate(values):
        try:
            time = event_time(value)
            if abs(time) > _FARTHEST_MS:
                raise InvalidInput(f"event time {value!r} is no time")
            times[at] = time
        except InvalidInput as error:
            wrong[at] = error
    return times, wrong
