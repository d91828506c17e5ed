"""Prometheus metrics of a stream: its counts, asked at each scrape. Knows no processor and no HTTP."""

from collections.abc import Callable, Iterator

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from foretell.streams.progress import Counts
from foretell.telemetry.histogram import SECONDS

_NAMES = [*(f"{bound:g}" for bound in SECONDS), "+Inf"]


class StreamMetrics(Collector):
    """`read` gives the counts of now; `model` is the label of every sample."""

    def __init__(self, read: Callable[[], Counts], model: str) -> None:
        self._read = read
        self._model = model
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """prometheus-client's side."""
        now, label = self._read(), [self._model]
        for name, told, count in (
            ("answers", "Messages answered and committed.", now.answered),
            ("dead_letters", "Messages that went to the dead-letter sink.", now.dead),
            ("late_events", "Events that came too late for their window.", now.late),
            ("early_events", "Events whose time is too far in the future to be believed.", now.ahead),
            ("faults", "Times that an end refused and was waited for.", now.faults),
        ):
            counter = CounterMetricFamily(f"foretell_stream_{name}", told, labels=["model"])
            counter.add_metric(label, count)
            yield counter
        for name, told, value in (
            ("lag", "What waits at the source, in its own unit; -1 where it cannot say.", float(now.lag)),
            ("buffered_bytes", "Bytes of the messages that were polled and are not committed.", float(now.held)),
            ("answers_per_second", "Answers a second over the last seconds.", now.per_s),
        ):
            gauge = GaugeMetricFamily(f"foretell_stream_{name}", told, labels=["model"])
            gauge.add_metric(label, value)
            yield gauge
        seconds = HistogramMetricFamily(
            "foretell_stream_seconds",
            "From when a message was made to when its answer is committed.",
            labels=["model"],
        )
        counts = np.cumsum(now.buckets or [0] * len(_NAMES))
        seconds.add_metric(label, [(n, float(c)) for n, c in zip(_NAMES, counts, strict=True)], now.seconds)
        yield seconds
