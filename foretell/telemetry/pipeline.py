"""One sink with metrics, access log and observation files behind it, made from settings. The only file here that
knows all consumers; doesn't know who records or who scrapes.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from foretell.core.clock import Clock
from foretell.core.observation import Observation
from foretell.telemetry.access import open_access_log
from foretell.telemetry.metrics import LiveVersion, Metrics
from foretell.telemetry.parquet import ParquetLog
from foretell.telemetry.sink import Consumer, Detached, Sink


class TelemetrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What watches the requests.

    access_log: a file, "-" for standard error, or "" for none. observations: the folder of Parquet files, or ""
    for none. capacity: observations that may wait between two drains; more are dropped and counted.
    """

    access_log: str = ""
    observations: str = ""
    capacity: int = 65_536


class Telemetry:
    """`record` is the plane's callable, `scrape` the /metrics route's. `start` and `close` own the threads."""

    def __init__(
        self,
        settings: TelemetrySettings,
        live: Callable[[], Iterable[LiveVersion]] = tuple,
        clock: Clock = time.monotonic,
    ) -> None:
        """Raises `ConfigError` if the access log can't be opened."""
        self._detached: dict[str, Detached] = {}
        self._parquet: ParquetLog | None = None
        if settings.access_log:
            self._detached["access_log"] = Detached(open_access_log(settings.access_log), settings.capacity, clock)
        if settings.observations:
            self._parquet = ParquetLog(Path(settings.observations), clock=clock)
            self._detached["observations"] = Detached(self._parquet, settings.capacity, clock)
        self.metrics = Metrics(live, self.dropped)
        consumers: list[Consumer] = [self.metrics, *self._detached.values()]
        self.sink = Sink(settings.capacity, consumers, clock)

    def record(self, observation: Observation) -> None:
        """Take one finished request; see `Sink.record`. On the hot path bind `telemetry.sink.record` instead."""
        self.sink.record(observation)

    def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics of everything recorded so far, and their content type. Takes 1 to 2 ms a model."""
        self.sink.drain()
        return self.metrics.render(accept)

    def dropped(self) -> Mapping[str, int]:
        """Observations lost so far: before everything ("sink"), or before one of the logs."""
        counts = {"sink": self.sink.dropped} | {name: lane.dropped for name, lane in self._detached.items()}
        if self._parquet is not None:
            counts["observations"] += self._parquet.lost_rows
        return counts

    def start(self) -> None:
        """Start the threads. Idempotent."""
        for lane in self._detached.values():
            lane.start()
        self.sink.start()

    def close(self) -> None:
        """Hand over and write what waits, then stop the threads; takes a few seconds at most."""
        self.sink.close()
