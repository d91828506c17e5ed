"""Time as a value: policy code takes a `Clock` so that tests decide what time it is."""

from collections.abc import Callable

Clock = Callable[[], float]
"""Returns seconds on a monotonic scale (`time.monotonic` in production)."""
