"""The batching policy: when a batch is cut, and how large. Pure; the dispatcher acts on it."""

import math
from typing import NamedTuple

from foretell.core.settings import BatchingSettings
from foretell.scheduling.service import ServiceTimes

LEAD_S = 0.001
"""How long before a replica frees up its next batch is cut: covers the gateway's own reaction time."""


RETURN_S = 0.001
"""How long an idle replica waits for clients that were just answered: what a client nearby takes to ask again."""

RETURN_SHARE = 0.05
"""It waits only where that is at most this share of the batch: a quick model answers first and asks later."""


class Returning:
    """Rows of clients that were just answered and have not asked again."""

    __slots__ = ("_rows", "until")

    def __init__(self) -> None:
        self._rows = 0
        self.until = -math.inf

    def answered(self, rows: int, now: float) -> None:
        self._rows = rows + (self._rows if now < self.until else 0)
        self.until = now + RETURN_S

    def came(self, rows: int) -> None:
        self._rows -= rows

    def rows(self, now: float) -> int:
        """Rows that may still come by `until`."""
        return max(0, self._rows) if now < self.until else 0


NOBODY = Returning()


class Decision(NamedTuple):
    """Cut up to `rows` now, or (rows 0) look again at `again_at`."""

    rows: int
    again_at: float = math.inf


def batch_limit(settings: BatchingSettings, service: ServiceTimes) -> int:
    """The most rows that a batch should have now.

    No batch grows beyond the size where rows stop getting cheaper: a model that gains nothing from batching answers
    sooner in small ones.
    """
    limit = min(settings.max_batch_size, service.useful_rows())
    if settings.target_p99_ms is not None:
        # A request waits for at most one batch before its own, so half of the target is one batch's share.
        limit = min(limit, service.rows_within(settings.target_p99_ms / 2000.0))
    return limit


def decide(
    settings: BatchingSettings,
    service: ServiceTimes,
    *,
    waiting_rows: int,
    running_rows: int = 0,
    oldest_arrival: float,
    replicas: int,
    free_at: float | None,
    returning: Returning = NOBODY,
    now: float,
) -> Decision:
    """Decide for the least loaded replica. `free_at`: when its running batch should end, None if it idles.

    Work-conserving: an idle replica takes what waits (`max_queue_delay_ms` may hold it). A busy one gets its
    next batch just before it frees up, so that batches keep growing while it works, yet it never starves.
    Several replicas share all rows evenly, `running_rows` (of all replicas) included: a batch that leaves a
    neighbour idle gains nothing, and one that is cut in two because the neighbour is busy loses.
    A replica that has just answered expects its clients back (`returning`): it lets them come rather than run the
    quickest of them alone while the others wait for that.
    """
    limit = batch_limit(settings, service)
    full = waiting_rows >= limit
    if not full:
        if free_at is not None and free_at - now > LEAD_S:
            return Decision(0, free_at - LEAD_S)
        hold_until = oldest_arrival + settings.max_queue_delay_ms / 1000.0
        expected = returning.rows(now)
        if expected and service.predict(waiting_rows + expected) * RETURN_SHARE > RETURN_S:
            hold_until = max(hold_until, returning.until)
        if free_at is None and now < hold_until:
            return Decision(0, hold_until)
    share = -(-(waiting_rows + running_rows) // replicas)
    return Decision(min(limit, waiting_rows, share))
