"""What a batch of n rows costs in seconds, learned from the batches that ran."""

import math


class ServiceTimes:
    """Fits seconds ≈ fixed + per_row · rows by least squares with exponential forgetting.

    `half_life` is the number of batches after which an observation counts half. Until a batch has run,
    predictions are 0: the scheduler is optimistic and admits.
    """

    def __init__(self, half_life: float = 50.0) -> None:
        self._keep = 0.5 ** (1.0 / half_life)
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self._deviation = 0.0
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
        slope = (self._n * self._xy - self._x * self._y) / spread if spread > 1e-9 * self._xx * self._n else -1.0
        intercept = (self._y - slope * self._x) / self._n
        if slope < 0.0 or intercept < 0.0:
            # One size seen so far, or noise: the only line through the origin that keeps the mean.
            slope, intercept = self._y / self._x, 0.0
        self.fixed, self.per_row = intercept, slope

    def predict(self, rows: int) -> float:
        """Expected seconds of a batch of `rows`."""
        return self.fixed + self.per_row * rows

    def rows_within(self, seconds: float) -> int:
        """The largest batch whose service time, with three mean deviations of margin, stays within `seconds`.

        At least 1: a target no batch can meet must not stop the model from answering.
        """
        if not self.known or self.per_row <= 0.0:
            return 1 << 30
        room = seconds - self.fixed - 3.0 * self._deviation
        return max(1, math.floor(room / self.per_row + 1e-9))
