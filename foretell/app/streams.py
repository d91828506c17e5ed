"""Streams: a plane of their own around the model, without a server. Composes store, plane and the streams room."""

import asyncio
from collections.abc import Sequence
from typing import Literal

import msgspec

from foretell.app.config import Config, ObservationSettings
from foretell.app.deployments import deployment_spec, generation_settings
from foretell.app.telemetry import Telemetry
from foretell.core.column_map import parse_column_map
from foretell.core.errors import Unsupported
from foretell.core.reference import parse_reference
from foretell.core.tensor import Signature
from foretell.fleet.launcher import Launcher, LocalProcess
from foretell.plane.plane import Plane
from foretell.store.store import Store
from foretell.streams.asking import Asker, Format
from foretell.streams.bytes_format import BytesFormat
from foretell.streams.ends import open_sink, open_source
from foretell.streams.json_format import JsonFormat
from foretell.streams.processor import MOST, Processor
from foretell.streams.progress import Progress
from foretell.streams.retry import Backoff

FormatName = Literal["json", "bytes"]


class StreamSpec(msgspec.Struct, frozen=True):
    """What the user asked for. `dead_letter`: where messages go that cannot be answered."""

    model: str
    source: str
    sink: str
    dead_letter: str
    columns: Sequence[str] = ()
    key: str = ""
    format: FormatName = "json"
    most: int = MOST


class StreamService:
    """Runs one stream. `stop` ends it with what was begun committed."""

    def __init__(self, config: Config, store: Store, spec: StreamSpec, launch: Launcher = LocalProcess) -> None:
        self.progress = Progress()
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
        """Until the source ends or `stop`."""
        spec = self._spec
        source, sink, dead = open_source(spec.source), open_sink(spec.sink), open_sink(spec.dead_letter)
        reference = parse_reference(spec.model)
        info = await asyncio.to_thread(self._store.resolve, reference)
        package = await asyncio.to_thread(self._store.fetch, info)
        if package.manifest.runtime == "llm":
            raise Unsupported(f"{info} generates text; a stream runs models that predict. Use foretell batch")
        form = make_format(spec, package.manifest.signature)
        generation = generation_settings(info.name, package, self._config)
        self._telemetry.start()
        try:
            await self._plane.deploy(deployment_spec(info.name, str(info.number), package, self._config, generation))
            asker = Asker(
                self._plane, parse_reference(str(info)), form, package.manifest.signature.batchable, Backoff()
            )
            self._processor = Processor(source, sink, dead, asker, self.progress, spec.most)
            if self._stopped:
                return
            await self._processor.run()
        finally:
            await self._plane.close(0.0)
            await asyncio.to_thread(self._telemetry.close)


def make_format(spec: StreamSpec, signature: Signature) -> Format:
    """How messages become tensors. Raises `InvalidInput` where that does not fit the model."""
    if spec.format == "bytes":
        return BytesFormat(signature)
    return JsonFormat(signature, parse_column_map(spec.columns), spec.key)
