"""The observation pipe of one server: a sink with metrics behind it, and the process that writes files, as
configured.
"""

from collections.abc import Callable, Iterable

from foretell.app.config import ObservationSettings
from foretell.core.observation import Observation
from foretell.telemetry.access import open_access_log
from foretell.telemetry.metrics import LiveVersion, Metrics
from foretell.telemetry.sink import Consumer, Detached, Sink
from foretell.telemetry.writer import Targets, WriterProcess


class Telemetry:
    """`record` is what the plane calls, `scrape` what /metrics calls. `start` and `close` own the threads."""

    def __init__(self, settings: ObservationSettings, live: Callable[[], Iterable[LiveVersion]]) -> None:
        targets = Targets(settings.access_log, settings.folder) if settings.enabled else Targets()
        if targets.access_log:
            open_access_log(targets.access_log).close()  # a file that can't be had is told now, not by a process later
        self._writer = WriterProcess(targets)
        self._detached = Detached(self._writer)
        self._metrics = Metrics(live, self._dropped)
        self._writing = bool(targets.names())
        consumers: list[Consumer] = [self._metrics, self._detached] if self._writing else [self._metrics]
        self._sink = Sink(settings.capacity, consumers)
        self.record: Callable[[Observation], None] = self._sink.record if settings.enabled else _ignore

    def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """The Prometheus exposition, exact up to this call, and its content type."""
        self._sink.drain()
        return self._metrics.render(accept)

    def start(self) -> None:
        if self._writing:
            self._detached.start()
        self._sink.start()

    def close(self) -> None:
        """Write out what is waiting (blocks for a few seconds at most)."""
        self._sink.close()

    def _dropped(self) -> dict[str, int]:
        return {"sink": self._sink.dropped + self._detached.overflow, **self._writer.losses}


def _ignore(observation: Observation) -> None:
    """The null twin of the sink: observations are off."""
