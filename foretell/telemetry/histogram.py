"""Counts by bucket, as Prometheus wants them. Knows no metric."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
)  # fmt: skip
"""Upper bounds of the latency buckets, in seconds, inclusive."""
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""Upper bounds of the batch-size buckets, in rows, inclusive."""


class Histogram:
    """Counts by bucket (the last is +Inf) and the sum of what was counted. `bounds` are inclusive upper bounds."""

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._names = [*(f"{bound:g}" for bound in bounds), "+Inf"]
        self._bounds = np.array(bounds)
        self.counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self.sum = 0.0

    def add(self, values: ArrayLike, times: NDArray[np.int64] | None = None) -> None:
        """Count values, each once or as often as `times` says."""
        array = np.asarray(values, dtype=np.float64)
        places = np.searchsorted(self._bounds, array)
        self.counts += np.bincount(places, weights=times, minlength=len(self.counts)).astype(np.int64)
        self.sum += float(array.sum() if times is None else array @ times)

    def buckets(self) -> list[tuple[str, float]]:
        """Prometheus buckets: for each upper bound, how many were at or below it."""
        return [(name, float(count)) for name, count in zip(self._names, np.cumsum(self.counts), strict=True)]
