"""Streams: a plane of their own around the model, without a server. Composes store, plane and the streams room."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from foretell.app.config import Config, ObservationSettings
from foretell.app.deployments import deployment_spec, generation_settings
from foretell.app.telemetry import Telemetry
from foretell.core.column_map import ColumnMap, parse_column_map
from foretell.core.errors import ConfigError, Unsupported
from foretell.core.reference import parse_reference
from foretell.core.settings import CacheSettings
from foretell.core.tensor import Signature
from foretell.fleet.launcher import Launcher, LocalProcess
from foretell.plane.plane import Plane
from foretell.store.package import Package
from foretell.store.store import Store
from foretell.streams.answering import MOST_BYTES, Answerer, Plain, Reading
from foretell.streams.asking import Asker
from foretell.streams.ends import open_sink, open_source, scheme_of
from foretell.streams.formats import open_format
from foretell.streams.metrics import StreamMetrics
from foretell.streams.pace import MOST, Pace
from foretell.streams.processor import Ends, Processor
from foretell.streams.progress import Progress
from foretell.streams.recurrent import Recurrent
from foretell.streams.rows import Columns, fields_of
from foretell.streams.state import CACHE_BYTES, StateStore
from foretell.streams.stateful import Making, Stateful
from foretell.streams.transform import Transform
from foretell.streams.watermark import Watermark

FormatName = Literal["json", "bytes", "avro", "protobuf"]


class Route(msgspec.Struct, frozen=True):
    """Where messages come from, where answers go, and where messages go that cannot be answered: URLs."""

    source: str
    sink: str
    dead_letter: str


class Reads(msgspec.Struct, frozen=True):
    """How messages are read. `schema`: FILE or FILE#MESSAGE, for Avro and Protobuf. `columns`: FIELD=INPUT."""

    format: FormatName = "json"
    schema: str = ""
    columns: Sequence[str] = ()
    key: str = ""
    most_bytes: int = MOST_BYTES


class Keeps(msgspec.Struct, frozen=True):
    """State between messages: a transform.py, inputs fed from outputs of the same key, and where it is kept."""

    transform: str = ""
    recurrent: Sequence[str] = ()
    time: str = ""
    file: str = ""
    reset: bool = False
    cache_bytes: int = CACHE_BYTES

    @property
    def any(self) -> bool:
        return bool(self.transform or self.recurrent)


class StreamSpec(msgspec.Struct, frozen=True):
    """What the user asked for. `most`: messages of a micro-batch."""

    model: str
    route: Route
    reads: Reads = Reads()
    keeps: Keeps = Keeps()
    most: int = MOST


class StreamService:
    """Runs one stream. `stop` ends it with what was begun committed."""

    def __init__(self, config: Config, store: Store, spec: StreamSpec, launch: Launcher = LocalProcess) -> None:
        self.progress = Progress()
        self.guarantee = ""
        self._config = config
        self._store = store
        self._spec = spec
        self._telemetry = Telemetry(ObservationSettings(access_log="", folder=config.observations.folder), tuple)
        self._plane = Plane(launch, self._telemetry.record)
        self._processor: Processor | None = None
        self._stopped = False

    def stop(self) -> None:
        """At any time, also before it runs."""
        self._stopped = True
        if self._processor is not None:
            self._processor.stop()

    async def run(self) -> None:
        """Until the source ends or `stop`. Raises what is wrong with the spec before anything is loaded."""
        spec = self._spec
        ends = Ends(open_source(spec.route.source), open_sink(spec.route.sink), open_sink(spec.route.dead_letter))
        info = await asyncio.to_thread(self._store.resolve, parse_reference(spec.model))
        package = await asyncio.to_thread(self._store.fetch, info)
        if package.manifest.runtime == "llm":
            raise Unsupported(f"{info} generates text; a stream runs models that predict. Use foretell batch")
        pace = Pace(spec.most)
        signature = package.manifest.signature
        asker = Asker(self._plane, parse_reference(str(info)), signature, pace)
        answerer = make_answerer(spec, signature, asker, self._config.server.trust_code, self.progress)
        memory = answerer if isinstance(answerer, Stateful) else None
        processor = Processor(ends, answerer, pace, self.progress, memory)
        self.guarantee = processor.guarantee
        self._telemetry.start()
        try:
            await self._deploy(info.name, str(info.number), package)
            self._processor = processor
            if not self._stopped:
                await processor.run()
        finally:
            await self._plane.close(0.0)
            await asyncio.to_thread(self._telemetry.close)

    def metrics(self) -> StreamMetrics:
        """For /metrics."""
        return StreamMetrics(self.progress, self._spec.model)

    async def _deploy(self, name: str, version: str, package: Package) -> None:
        """As it is served, but nothing is cached, timed out or refused for want of room."""
        spec = deployment_spec(name, version, package, self._config, generation_settings(name, package, self._config))
        batching = msgspec.structs.replace(spec.batching, timeout_ms=0.0, max_queue_rows=2**40)
        await self._plane.deploy(msgspec.structs.replace(spec, batching=batching, cache=CacheSettings()))


def make_answerer(
    spec: StreamSpec, signature: Signature, asker: Asker, trust_code: bool, progress: Progress
) -> Answerer:
    """How messages become answers. Raises `ConfigError` or `InvalidInput` where that does not fit the model."""
    reads, keeps = spec.reads, spec.keeps
    columns = parse_column_map(reads.columns)
    if not keeps.any:
        fields = fields_of(signature, columns)
        form = open_format(reads.format, reads.schema, [*fields, *([reads.key] if reads.key else [])])
        return Plain(asker, Reading(form, reads.key, reads.most_bytes), Columns(form, signature, _sole(columns, reads, signature)))
    return _stateful(spec, signature, asker, trust_code, progress)
