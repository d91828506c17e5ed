"""How a stream goes: counted by the processor, read by the terminal view and by /metrics."""

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from foretell.streams.message import Record

KEPT = 4096
"""Latencies that percentiles are of."""


class Progress:
    """Counts since the start. `trouble`: the last fault that was waited out."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.answered = 0
        self.dead = 0
        self.lag = -1
        self.trouble = ""
        self._latencies: deque[int] = deque(maxlen=KEPT)

    def done(self, records: Sequence[Record], lag: int) -> None:
        """A micro-batch is committed."""
        now = int(time.time() * 1000)
        self.answered += len(records)
        self.lag = lag
        self._latencies.extend(max(0, now - record.message.time) for record in records[-KEPT:])

    def latency_ms(self, *percentiles: float) -> list[float]:
        """End to end, from when a message was made to its commit, of the last `KEPT` messages."""
        if not self._latencies:
            return [0.0] * len(percentiles)
        return [float(value) for value in np.percentile(np.array(self._latencies), percentiles)]

    def per_s(self) -> float:
        """Answers a second since the start."""
        return self.answered / max(time.monotonic() - self.began, 1e-9)
