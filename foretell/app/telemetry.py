"""The observation pipe of one server: a sink with metrics, access log and Parquet behind it, as configured."""

from collections.abc import Callable, Iterable

from foretell.app.config import ObservationSettings
from foretell.core.observation import Observation
from foretell.telemetry.access import open_access_log
from foretell.telemetry.metrics import LiveVersion, Metrics
from foretell.telemetry.parquet import ParquetWriter
from foretell.telemetry.sink import Detached, Sink


class Telemetry:
    """`record` is what the plane calls, `scrape` what /metrics calls. `start` and `close` own the threads."""

    def __init__(self, settings: ObservationSettings, live: Callable[[], Iterable[LiveVersion]]) -> None:
        self._writers: list[Detached] = []
        if settings.enabled and settings.access_log:
            self._writers.append(Detached(open_access_log(settings.access_log)))
        if settings.enabled and settings.folder:
            self._writers.append(Detached(ParquetWriter(settings.folder)))
        self._metrics = Metrics(live, self._dropped)
        self._sink = Sink(settings.capacity, [self._metrics, *self._writers])
        self.record: Callable[[Observation], None] = self._sink.record if settings.enabled else _ignore

    def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """The Prometheus exposition, exact up to this call, and its content type."""
        self._sink.drain()
        return self._metrics.render(accept)

    def start(self) -> None:
        for writer in self._writers:
            writer.start()
        self._sink.start()

    def close(self) -> None:
        """Write out what is waiting (blocks for a few seconds at most)."""
        self._sink.close()

    def _dropped(self) -> dict[str, int]:
        return {"sink": self._sink.dropped} | {writer.name: writer.dropped for writer in self._writers}


def _ignore(observation: Observation) -> None:
    """The null twin of the sink: observations are off."""
