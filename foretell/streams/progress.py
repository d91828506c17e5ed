"""How a stream goes: counted by the processor, read by the terminal view and by /metrics. Knows neither."""

import time
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from foretell.streams.message import Record
from foretell.telemetry.histogram import Histogram

KEPT = 4096
"""Latencies that percentiles are of."""
RECENT_S = 5.0
"""Over which throughput is measured."""


class Counts(msgspec.Struct, frozen=True):
    """How a stream goes, at a moment. Counts are since the start; `lag` is -1 where nobody can say, `trouble` the fault
    that is being waited out, `held` the bytes of messages under way. `seconds` and `buckets` are the sum and the
    histogram of all latencies.
    """

    answered: int = 0
    dead: int = 0
    late: int = 0
    ahead: int = 0
    faults: int = 0
    lag: int = -1
    per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    seconds: float = 0.0
    buckets: tuple[int, ...] = ()
    trouble: str = ""
    held: int = 0


def together(parts: Iterable[Counts]) -> Counts:
    """Several workers as one stream. Percentiles are those of the slowest."""
    found = list(parts)
    if not found:
        return Counts()
    buckets = [part.buckets for part in found if part.buckets]
    lags = [part.lag for part in found if part.lag >= 0]
    return Counts(
        sum(part.answered for part in found),
        sum(part.dead for part in found),
        sum(part.late for part in found),
        sum(part.ahead for part in found),
        sum(part.faults for part in found),
        sum(lags) if lags else -1,
        sum(part.per_s for part in found),
        max(part.p50_ms for part in found),
        max(part.p99_ms for part in found),
        sum(part.seconds for part in found),
        tuple(map(sum, zip(*buckets, strict=True))),
        next((part.trouble for part in found if part.trouble), ""),
        sum(part.held for part in found),
    )


class Progress:
    """Counts since the start. `trouble`: the fault that is being waited out, "" once things go on."""

    def __init__(self) -> None:
        self.answered = 0
        self.dead = 0
        self.late = 0
        self.ahead = 0
        self.faults = 0
        self.lag = -1
        self.held = 0
        self.trouble = ""
        self._latency = Histogram()
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

    def untimely(self, late: int, ahead: int) -> None:
        """So many events came too late for their window, or from a future that is not believed."""
        self.late += late
        self.ahead += ahead

    def done(self, records: Sequence[Record], lag: int) -> None:
        """Micro-batches are committed, with these answers."""
        now, at = int(time.time() * 1000), time.monotonic()
        self.answered += len(records)
        self.lag = lag
        self.trouble = ""
        if not records:
            return
        waits = np.maximum(now - np.fromiter((record.message.time for record in records), np.int64, len(records)), 0)
        self._latency.add(waits / 1e3)
        self._latencies.extend(waits[-KEPT:].tolist())
        self._recent.append((at, self.answered))
        while self._recent[0][0] < at - RECENT_S:
            self._recent.popleft()

    def counts(self) -> Counts:
        """Latency is end to end: from when a message was made to its commit, percentiles of the last `KEPT`."""
        latencies = np.array(self._latencies or [0])
        p50, p99 = (float(value) for value in np.percentile(latencies, (50, 99)))
        buckets = tuple(self._latency.counts.tolist())
        return Counts(
            self.answered,
            self.dead,
            self.late,
            self.ahead,
            self.faults,
            self.lag,
            self._per_s(),
            p50,
            p99,
            self._latency.sum,
            buckets,
            self.trouble,
            self.held,
        )

    def _per_s(self) -> float:
        if len(self._recent) < 2 or self._recent[-1][0] < time.monotonic() - RECENT_S:
            return 0.0
        (since, before), (until, after) = self._recent[0], self._recent[-1]
        return (after - before) / max(until - since, 1e-9)
