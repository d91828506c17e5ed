"""From finished requests to observations and statistics: one observation each, whatever became of it."""

import random
import time
from collections.abc import Callable

from foretell.core.observation import Observation
from foretell.core.request import Request
from foretell.plane.deployment import Deployment
from foretell.scheduling.queue import Answer

Record = Callable[[Observation], object]


class Observer:
    """`record` gets every observation; `sample_rate` is the share of them that carry inputs and outputs."""

    def __init__(self, record: Record, sample_rate: float = 0.0) -> None:
        self.record = record
        self._sample_rate = sample_rate

    def sampled(self) -> bool:
        """Whether the next observation carries inputs and outputs."""
        return bool(self._sample_rate) and random.random() < self._sample_rate

    def done(self, deployment: Deployment, request: Request, answer: Answer, at: float, began: float) -> None:
        """Observe an answered request that arrived at `at` (Unix) and `began` (monotonic)."""
        total_s = time.monotonic() - began
        timing = answer.timing
        share = request.rows / timing.batch_rows if timing.batch_rows else 0.0
        statistics = deployment.statistics
        statistics.succeeded += 1
        statistics.inferences += request.rows
        statistics.queue_s += timing.queue_s
        statistics.compute_s += timing.compute_s
        statistics.total_s += total_s
        statistics.last_inference_ms = int(at * 1000)
        statistics.cache_hits += timing.cached
        observation = Observation(
            deployment.spec.name,
            deployment.spec.version,
            "done",
            at,
            total_s,
            timing.queue_s,
            timing.compute_s,
            request.rows,
            timing.batch_rows,
            timing.cached,
            request.protocol,
            request.id,
            timing.compute_s * share * deployment.dollars_per_second,
        )
        if self._sample_rate and self.sampled():
            observation.inputs, observation.outputs = request.inputs, answer.outputs
        self.record(observation)

    def failed(
        self,
        deployment: Deployment | None,
        request: Request,
        at: float,
        began: float,
        outcome: str,
        message: str,
    ) -> None:
        """Observe a request that got no answer. Without a deployment it has no model: names that clients invent must
        not become metric labels.
        """
        name = version = ""
        if deployment is not None:
            name, version = deployment.spec.name, deployment.spec.version
            count_failure(deployment, outcome)
        self.record(
            Observation(
                name,
                version,
                outcome,
                at,
                time.monotonic() - began,
                0.0,
                0.0,
                request.rows,
                0,
                False,
                request.protocol,
                request.id,
                error=message,
            )
        )


def count_failure(deployment: Deployment, outcome: str) -> None:
    """Add an unanswered request to the statistics."""
    if outcome == "rejected":
        deployment.statistics.rejected += 1
    elif outcome != "cancelled":
        deployment.statistics.failed += 1
