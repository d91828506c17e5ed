"""The batching policy: when a batch is cut, and how large. Pure; the dispatcher acts on it."""

import math
from typing import NamedTuple

from foretell.core.settings import BatchingSettings
from foretell.scheduling.service import ServiceTimes

LEAD_S = 0.001
"""How long before a replica frees up its next batch is cut: covers the gateway's own reaction time."""


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
    oldest_arrival: float,
    replicas: int,
    free_at: float | None,
    now: float,
) -> Decision:
    """Decide for the least loaded replica. `free_at`: when its running batch should end, None if it idles.

    Work-conserving: an idle replica takes what waits (`max_queue_delay_ms` may hold it). A busy one gets its
    next batch just before it frees up, so that batches keep growing while it works, yet it never starves.
    Several replicas share what waits evenly: a batch that leaves a neighbour idle gains nothing.
    """
    limit = batch_limit(settings, service)
    full = waiting_rows >= limit
    if not full:
        if free_at is not None and free_at - now > LEAD_S:
            return Decision(0, free_at - LEAD_S)
        hold_until = oldest_arrival + settings.max_queue_delay_ms / 1000.0
        if free_at is None and now < hold_until:
            return Decision(0, hold_until)
    share = -(-waiting_rows // replicas) if replicas > 1 else waiting_rows
    return Decision(min(limit, max(1, share)))
