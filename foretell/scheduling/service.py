"""What a batch of n rows costs in seconds, learned from the batches that ran."""

import math

_ALL_FIXED = 1e6
"""The ratio of fixed to per-row cost where rows seem to cost nothing."""


class ServiceTimes:
    """Fits seconds ≈ fixed + per_row · rows by least squares with exponential forgetting.

    `half_life` is the number of batches after which an observation counts half. Until a batch has run,
    predictions are 0: the scheduler is optimistic and admits.
    """

    def __init__(self, half_life: float = 50.0) -> None:
        self._keep = 0.5 ** (1.0 / half_life)
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self._deviation = 0.0
        self._ratio: float | None = None
        self.fixed = 0.0
        self.per_row = 0.0

    @property
    def known(self) -> bool:
        return self._n > 0

    def observe(self, rows: int, seconds: float) -> None:
        if self._n:
            miss = abs(seconds - self.predict(rows))
            self._deviation += (1.0 - self._keep) * (miss - self._deviation)
        k = self._keep
        self._n = self._n * k + 1.0
        self._x = self._x * k + rows
        self._y = self._y * k + seconds
        self._xx = self._xx * k + rows * rows
        self._xy = self._xy * k + rows * seconds
        spread = self._n * self._xx - self._x * self._x
        if spread > 1e-3 * self._x * self._x:
            slope = (self._n * self._xy - self._x * self._y) / spread
            intercept = (self._y - slope * self._x) / self._n
            self._ratio = max(0.0, intercept / slope) if slope > 0.0 else _ALL_FIXED
        # Batches of one size tell how long, not which part is fixed: that share is kept from before.
        ratio = self._ratio or 0.0
        self.per_row = self._y / (ratio * self._n + self._x)
        self.fixed = ratio * self.per_row

    def predict(self, rows: int) -> float:
        """Expected seconds of a batch of `rows`."""
        return self.fixed + self.per_row * rows

    def useful_rows(self) -> int:
        """The batch size beyond which a row gets less than 5 % cheaper; at least 2, so that there is something to
        learn from. Larger batches would only make everybody in them wait.
        """
        if self._ratio is None:
            return 1 << 30
        return max(2, math.ceil(20.0 * self._ratio - 1e-6))

    def rows_within(self, seconds: float) -> int:
        """The largest batch whose service time, with three mean deviations of margin, stays within `seconds`.

        At least 1: a target no batch can meet must not stop the model from answering.
        """
        if not self.known or self.per_row <= 0.0:
            return 1 << 30
        room = seconds - self.fixed - 3.0 * self._deviation
        return max(1, math.floor(room / self.per_row + 1e-9))
