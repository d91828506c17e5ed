"""How a stream goes: counted by the processor, read by the terminal view and by /metrics. Knows neither."""

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from foretell.streams.message import Record
from foretell.telemetry.histogram import Histogram

KEPT = 4096
"""Latencies that percentiles are of."""
RECENT_S = 5.0
"""Over which throughput is measured."""


class Progress:
    """Counts since the start. `trouble`: the fault that is being waited out, "" once things go on."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.answered = 0
        self.dead = 0
        self.commits = 0
        self.faults = 0
        self.lag = -1
        self.trouble = ""
        self.latency = Histogram()
        self._latencies: deque[int] = deque(maxlen=KEPT)
        self._recent: deque[tuple[float, int]] = deque()

    def opened(self) -> None:
        """All ends are there."""
        self.trouble = ""

    def fault(self, reason: str) -> None:
        """Something is away and is waited for."""
        self.faults += 1
        self.trouble = reason

    def buried(self, count: int) -> None:
        """So many messages became dead letters."""
        self.dead += count

    def done(self, records: Sequence[Record], messages: int, lag: int) -> None:
        """Micro-batches of so many messages are committed, with these answers."""
        now, at = int(time.time() * 1000), time.monotonic()
        self.answered += len(records)
        self.commits += 1
        self.lag = lag
        self.trouble = ""
        if not records:
            return
        waits = np.maximum(now - np.fromiter((record.message.time for record in records), np.int64, len(records)), 0)
        self.latency.add(waits / 1e3)
        self._latencies.extend(waits[-KEPT:].tolist())
        self._recent.append((at, self.answered))
        while self._recent[0][0] < at - RECENT_S:
            self._recent.popleft()

    def latency_ms(self, *percentiles: float) -> list[float]:
        """End to end, from when a message was made to its commit, of the last `KEPT` messages."""
        if not self._latencies:
            return [0.0] * len(percentiles)
        return [float(value) for value in np.percentile(np.array(self._latencies), percentiles)]

    def per_s(self) -> float:
        """Answers a second, lately."""
        if len(self._recent) < 2 or self._recent[-1][0] < time.monotonic() - RECENT_S:
            return 0.0
        (since, before), (until, after) = self._recent[0], self._recent[-1]
        return (after - before) / max(until - since, 1e-9)
