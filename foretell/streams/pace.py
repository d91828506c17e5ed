"""How many messages a micro-batch may have, from what those before it cost. Pure."""

MOST = 1024
"""More gain nothing with the models that were measured, and are more to do again after a crash."""
LONGEST_S = 0.25
"""No micro-batch is made larger than what takes about this long: the messages behind it wait."""
_SHARE = 0.3


class Pace:
    """`most` begins small, so that a slow model is not given a thousand rows before anything is known of it."""

    def __init__(self, limit: int = MOST) -> None:
        self._limit = limit
        self._row_s: float | None = None
        self.most = min(limit, 64)

    def observe(self, rows: int, seconds: float) -> None:
        """A request of so many rows computed for so long."""
        row_s = seconds / rows
        self._row_s = row_s if self._row_s is None else self._row_s + _SHARE * (row_s - self._row_s)
        fits = int(LONGEST_S / self._row_s) if self._row_s > 0.0 else self._limit
        self.most = max(1, min(self._limit, fits, self.most * 4))
