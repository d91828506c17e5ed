"""How many rows a request and a part should have, from what requests of different sizes take. Pure."""

from collections.abc import Generator

import msgspec

SIZES = (16, 64, 256, 1024, 4096)
"""Sizes of requests that are tried, while they pay."""
TRIED = 50
"""One row of so many is tried, at most, before a job begins."""
MOST_TRIED = 8192
"""So many rows are, whatever there are."""
GAIN = 0.95
"""A larger request pays where a row takes at most this share of what it took before."""
LONGEST_S = 0.5
"""No request is made larger than what took this long."""
PART_S = 15.0
"""About how much work a kill may lose."""
PART_BYTES = 64 * 2**20
MOST_ROWS = 2**16
MOST_BYTES = 16 * 2**20
"""Input of a request, and output of one."""
_UNTRIED_ROWS, _UNTRIED_S = 64, 0.001


class Sizes(msgspec.Struct, frozen=True):
    """Rows of a request and of a part."""

    batch_rows: int
    part_rows: int


def sizes(rows: int, row_bytes: float, most_bytes: int) -> Generator[int, float, int]:
    """Yields sizes to try and is sent the seconds that such a request took; returns the size to use.

    About `rows` rows are tried in all; a request stays below `most_bytes`.
    """
    fits = max(1, int(most_bytes / max(row_bytes, 1.0)))
    best = min(SIZES[0], fits)
    first = max(1, min(best, rows // 2))
    left = rows - first
    seconds = yield first
    if seconds <= LONGEST_S:  # the first time memory was new
        left -= first
        seconds = yield first
    best_s = seconds / first
    for size in SIZES[1:]:
        size = min(size, fits)
        if size <= best or size > left or seconds > LONGEST_S:
            break
        left -= size
        seconds = yield size
        if seconds / size > best_s * GAIN:
            break
        best, best_s = size, seconds / size
    return best


def untried(row_bytes: float) -> Sizes:
    """What is used where there is no row to try: as if one took a millisecond."""
    size = max(1, min(_UNTRIED_ROWS, int(MOST_BYTES / max(row_bytes, 1.0))))
    return Sizes(size, part_rows(size, _UNTRIED_S, row_bytes))


def part_rows(batch_rows: int, row_s: float, row_bytes: float) -> int:
    """Rows of a part: whole requests, as many as a kill may cost and as fit into memory several times with all that
    is made of them (`row_bytes`).
    """
    rows = min(PART_S / max(row_s, 1e-9), PART_BYTES / max(row_bytes, 1.0), MOST_ROWS)
    return max(1, round(rows / batch_rows)) * batch_rows
