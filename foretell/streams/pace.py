"""How large a micro-batch may be, from what those before it cost. Pure."""

from foretell.streams.message import MOST_BYTES
from foretell.streams.protocol import Room

MOST = 1024
"""More gain nothing with the models that were measured, and are more to do again after a crash."""
LONGEST_S = 0.25
"""No micro-batch is made larger than what takes about this long: the messages behind it wait."""
DEPTH = 4
"""Micro-batches under way: one is published, two are with replicas, one is polled."""
BUFFER = 64 * 2**20
"""Bytes that the messages under way may have."""
_SHARE = 0.3


class Pace:
    """`most` begins small, so that a slow model is not given a thousand rows before anything is known of it.

    `buffer`: bytes of all micro-batches under way, of their messages and about as many of their answers; `largest`:
    of a message that is taken at all.
    """

    def __init__(self, limit: int = MOST, buffer: int = BUFFER, largest: int = MOST_BYTES) -> None:
        self._limit = limit
        self._buffer = buffer
        self._largest = largest
        self._row_s = 0.0
        self._row_bytes = 0.0
        self.most = min(limit, 64)

    def room(self, flights: int, held: int) -> Room:
        """For the next micro-batch beside so many with `held` bytes."""
        return Room(self.most if flights < DEPTH else 0, self._buffer - held, self._largest)

    def observe(self, rows: int, seconds: float) -> None:
        """A request of so many rows computed for so long."""
        self._row_s = _mean(self._row_s, seconds / rows)
        self.most = self._fits(self.most * 4)

    def weigh(self, rows: int, nbytes: int) -> None:
        """The answers to so many rows have so many bytes."""
        if rows:
            self._row_bytes = _mean(self._row_bytes, nbytes / rows)
            self.most = self._fits(self.most)

    def _fits(self, most: int) -> int:
        if self._row_s > 0.0:
            most = min(most, int(LONGEST_S / self._row_s))
        if self._row_bytes > 0.0:
            most = min(most, int(self._buffer / DEPTH / self._row_bytes))
        return max(1, min(self._limit, most))


def _mean(known: float, new: float) -> float:
    """Of the last few; the first one counts whole."""
    return known + _SHARE * (new - known) if known else new
