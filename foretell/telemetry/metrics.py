"""Prometheus metrics of the gateway: a fold over observations, plus live values that a callable brings.

Knows the names and the buckets; doesn't know the plane, the sink or HTTP.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from foretell.core.generation import Load
from foretell.core.observation import Observation
from foretell.telemetry import tokens
from foretell.telemetry.histogram import ROWS, Histogram

OTHER = "_other"
"""The model label of observations beyond `max_series`: names come from clients, so labels are bounded."""

_LABELS = tokens.LABELS
_key = attrgetter("model", "version")
_fields = attrgetter("outcome", "total_s", "queue_s", "compute_s", "rows", "batch_rows", "cached", "cost_dollars")


class LiveVersion(msgspec.Struct, frozen=True):
    """What only the plane knows about a version, at the moment of a scrape.

    `batches`: (rows of the batch, how many such batches ran) since the version was loaded. A batch holds several
    requests, so it is counted where it is cut and not by observations. `provisioned_dollars`: price × replica
    time since the version was loaded, idle time included. `replicas`: state → number. `load`: what the replicas of a
    model that generates hold, None of any other.
    """

    model: str
    version: str
    queue_rows: int = 0
    replicas: Mapping[str, int] = {}
    batches: Sequence[tuple[int, int]] = ()
    provisioned_dollars: float = 0.0
    load: Load | None = None


class Metrics(Collector):
    """Folds observations (a `Consumer`) and renders them. Each instance has its own registry.

    live: the plane's values, asked at each scrape. dropped: where observations were lost → how many.
    """

    def __init__(
        self,
        live: Callable[[], Iterable[LiveVersion]] = tuple,
        dropped: Callable[[], Mapping[str, int]] = dict,
        max_series: int = 1000,
    ) -> None:
        self._live = live
        self._losses = dropped
        self._max_series = max_series
        self._series: dict[tuple[str, str], _Series] = {}
        self._lock = threading.Lock()
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def consume(self, batch: Sequence[Observation]) -> None:
        """Add a drained batch to the totals: about 0.5 µs an observation, whatever its size."""
        groups: dict[tuple[str, str], list[Observation]] = {}
        for key, observation in zip(map(_key, batch), batch, strict=True):
            try:
                groups[key].append(observation)
            except KeyError:
                groups[key] = [observation]
        with self._lock:
            for key, observations in groups.items():
                self._series_of(key).fold(observations)

    @property
    def dropped(self) -> int:
        """None: a fold keeps everything."""
        return 0

    def tick(self) -> None:
        """Nothing here goes by age."""

    def close(self) -> None:
        """Nothing to release."""

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition text and its content type; OpenMetrics if the Accept header asks for it."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """prometheus-client's side: every family with its samples, read under one lock."""
        live = list(self._live())
        with self._lock:
            yield from _observed(self._series)
            yield from tokens.observed({k: s.tokens for k, s in self._series.items() if s.tokens is not None})
        yield from _living(live, self._series)
        yield from tokens.living({(v.model, v.version): v.load for v in live if v.load is not None})
        lost = CounterMetricFamily(
            "foretell_observations_dropped", "Observations lost, by where they were lost.", labels=["where"]
        )
        for where, count in self._losses().items():
            lost.add_metric([where], count)
        yield lost

    def _series_of(self, key: tuple[str, str]) -> "_Series":
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= self._max_series:
                key = (OTHER, "")
            series = self._series.setdefault(key, _Series())
        return series


class _Series:
    """The totals of one (model, version)."""

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.request = Histogram()
        self.queue = Histogram()
        self.compute = Histogram()
        self.tokens: tokens.TokenSeries | None = None
        self.inferences = 0
        self.cache_hits = 0
        self.busy_dollars = 0.0

    def fold(self, observations: Sequence[Observation]) -> None:
        outcome, total, queue, compute, rows, batch_rows, cached, dollars = zip(
            *map(_fields, observations), strict=True
        )
        answered = outcome.count("done")
        self.busy_dollars += sum(dollars)
        self.cache_hits += sum(cached)
        if answered == len(outcome):
            # The usual case: everything was answered, so no mask is needed to tell who counts.
            self.outcomes["done"] = self.outcomes.get("done", 0) + answered
            self.inferences += sum(rows)
            self.request.add(np.array(total))
        else:
            for name in set(outcome):
                self.outcomes[name] = self.outcomes.get(name, 0) + outcome.count(name)
            self.inferences += sum(n for n, name in zip(rows, outcome, strict=True) if name == "done")
            # Expired and failed requests stay in: without them a server that times out would look quick.
            admitted = np.array([name not in ("rejected", "cancelled") for name in outcome])
            self.request.add(np.array(total)[admitted])
        ran = np.array(batch_rows) > 0
        if ran.all():
            self.queue.add(np.array(queue))
            self.compute.add(np.array(compute))
        else:
            self.queue.add(np.array(queue)[ran])
            self.compute.add(np.array(compute)[ran])
        generated = [o.tokens for o in observations if o.tokens is not None]
        if generated:
            self.tokens = self.tokens or tokens.TokenSeries()
            self.tokens.fold(generated, sum(dollars))


def _observed(all_series: Mapping[tuple[str, str], _Series]) -> list[Metric]:
    requests = CounterMetricFamily("foretell_requests", "Finished requests, by outcome.", labels=[*_LABELS, "outcome"])
    request = HistogramMetricFamily(
        "foretell_request_seconds",
        "Time in the gateway of requests that were admitted and not cancelled.",
        labels=_LABELS,
    )
    queue = HistogramMetricFamily(
        "foretell_queue_seconds",
        "Time a request waited for its batch to start; requests that ran.",
        labels=_LABELS,
    )
    compute = HistogramMetricFamily(
        "foretell_compute_seconds",
        "Time the request's batch ran in the replica; requests that ran.",
        labels=_LABELS,
    )
    inferences = CounterMetricFamily(
        "foretell_inferences", "Rows answered, from the cache or by a replica.", labels=_LABELS
    )
    hits = CounterMetricFamily("foretell_cache_hits", "Requests answered without running.", labels=_LABELS)
    for key, series in all_series.items():
        for outcome, count in series.outcomes.items():
            requests.add_metric([*key, outcome], count)
        for family, histogram in ((request, series.request), (queue, series.queue), (compute, series.compute)):
            family.add_metric(key, histogram.buckets(), histogram.sum)
        inferences.add_metric(key, series.inferences)
        hits.add_metric(key, series.cache_hits)
    return [requests, request, queue, compute, inferences, hits]


def _living(live: Sequence[LiveVersion], all_series: Mapping[tuple[str, str], _Series]) -> list[Metric]:
    batches = HistogramMetricFamily("foretell_batch_rows", "Rows of each batch that ran.", labels=_LABELS)
    queue = GaugeMetricFamily("foretell_queue_rows", "Rows that wait for a replica now.", labels=_LABELS)
    replicas = GaugeMetricFamily("foretell_replicas", "Replica processes, by state.", labels=[*_LABELS, "state"])
    cost = CounterMetricFamily(
        "foretell_cost_dollars",
        "Price of replica time: busy (while batches ran) or provisioned (idle included).",
        labels=[*_LABELS, "kind"],
    )
    for key, series in all_series.items():
        cost.add_metric([*key, "busy"], series.busy_dollars)
    for version in live:
        key = (version.model, version.version)
        sizes = Histogram(ROWS)
        sizes.add([rows for rows, _ in version.batches], np.array([count for _, count in version.batches], np.int64))
        batches.add_metric(key, sizes.buckets(), sizes.sum)
        queue.add_metric(key, version.queue_rows)
        for state, number in version.replicas.items():
            replicas.add_metric([*key, state], number)
        cost.add_metric([*key, "provisioned"], version.provisioned_dollars)
    return [batches, queue, replicas, cost]
