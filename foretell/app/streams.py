"""Streams: a plane of their own around the model, without a server. Composes store, plane and the streams room."""

import asyncio
import gc
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from foretell.app.config import Config, ObservationSettings
from foretell.app.deployments import deployment_spec, generation_settings
from foretell.app.telemetry import Telemetry
from foretell.core.column_map import ColumnMap, parse_column_map
from foretell.core.errors import ConfigError, Unsupported, did_you_mean
from foretell.core.reference import parse_reference
from foretell.core.settings import CacheSettings
from foretell.core.tensor import Signature
from foretell.fleet.launcher import Launcher, LocalProcess
from foretell.plane.plane import Plane
from foretell.store.package import Package
from foretell.store.store import Store
from foretell.streams.answering import Answerer, Plain, Reading
from foretell.streams.asking import Asker
from foretell.streams.bytes_format import FIELD
from foretell.streams.ends import open_sink, open_source, parse_end, scheme_of
from foretell.streams.formats import FormatName, open_format
from foretell.streams.message import MOST_BYTES
from foretell.streams.pace import BUFFER, MOST, Pace
from foretell.streams.processor import Ends, Processor
from foretell.streams.progress import Progress
from foretell.streams.recurrent import Recurrent
from foretell.streams.rows import Columns, Format, fields_of
from foretell.streams.state import CACHE_BYTES, StateStore
from foretell.streams.stateful import Making, Stateful
from foretell.streams.table import Kind
from foretell.streams.transform import Transform
from foretell.streams.watermark import Watermark


class Route(msgspec.Struct, frozen=True):
    """Where messages come from, where answers go, and where messages go that cannot be answered: URLs."""

    source: str
    sink: str
    dead_letter: str

    def of_worker(self, number: int) -> "Route":
        """The route of one of several workers: a file of dead letters is each one's own."""
        end = parse_end(self.dead_letter)
        if end.scheme != "file":
            return self
        path = Path(end.host + end.path)
        return msgspec.structs.replace(self, dead_letter=str(path.with_name(f"{path.stem}.{number}{path.suffix}")))

    def ends(self, owner: str) -> Ends:
        """Those that the URLs name, for the stream `owner`; not open yet."""
        return Ends(
            open_source(self.source), open_sink(self.sink, owner), open_sink(self.dead_letter, owner, letters=True)
        )

    def check_shared(self) -> None:
        """Raises `ConfigError` where several workers cannot share the source and the sink."""
        if not scheme_of(self.source).groups:
            raise ConfigError(f'"{self.source}" has one reader; several workers need a source that shares itself out')
        if parse_end(self.sink).scheme in ("file", "std"):
            raise ConfigError(f'"{self.sink}" has one writer; several workers need a sink that takes answers of all')


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
    """What the user asked for. `most`: messages of a micro-batch; `buffer`: bytes of all that are under way."""

    model: str
    route: Route
    reads: Reads = Reads()
    keeps: Keeps = Keeps()
    most: int = MOST
    buffer: int = BUFFER


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
        """Until the source ends or `stop`. Raises what is wrong with the spec before anything is loaded."""
        spec = self._spec
        ends = spec.route.ends(parse_reference(spec.model).name)
        info = await asyncio.to_thread(self._store.resolve, parse_reference(spec.model))
        package = await asyncio.to_thread(self._store.fetch, info)
        if package.manifest.runtime == "llm":
            raise Unsupported(f"{info} generates text; a stream runs models that predict. Use foretell batch")
        pace = Pace(spec.most, spec.buffer, spec.reads.most_bytes)
        signature = package.manifest.signature
        asker = Asker(self._plane, parse_reference(str(info)), signature, pace)
        answerer = make_answerer(spec, signature, asker, self._config.server.trust_code, self.progress)
        memory = answerer if isinstance(answerer, Stateful) else None
        self._processor = Processor(ends, answerer, pace, self.progress, memory)
        self._telemetry.start()
        try:
            await self._deploy(info.name, str(info.number), package)
            if not self._stopped:
                gc.freeze()  # what start-up made stays for good and need not be scanned again while messages wait
                await self._processor.run()
        finally:
            await self._plane.close(0.0)
            await asyncio.to_thread(self._telemetry.close)

    @property
    def guarantee(self) -> str:
        """What this stream promises, once it is known."""
        return "" if self._processor is None else self._processor.guarantee

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
    feeds = parse_column_map(reads.columns)
    if reads.format == "bytes" and not feeds.feeds and len(signature.inputs) == 1:
        feeds = ColumnMap({signature.inputs[0].name: (FIELD,)})
    transform = Transform.load(keeps.transform, trust_code) if keeps.transform else None
    recurrent = Recurrent(keeps.recurrent, signature) if keeps.recurrent else None
    if transform is not None and feeds.feeds:
        raise ConfigError("--map and --state both say what feeds the model; let transform.py return the inputs")
    if keeps.time and not keeps.any:
        raise ConfigError("--event-time says when an event was, which only --state and --recurrent ask")
    fed = recurrent.inputs if recurrent is not None else frozenset()
    plain = Signature(tuple(each for each in signature.inputs if each.name not in fed), signature.outputs)
    read = () if transform else (*fields_of(plain, feeds), *filter(None, (reads.key, keeps.time)))
    form = open_format(reads.format, reads.schema, read)
    check_fields(form, reads.key, keeps.time)
    reading = Reading(form, reads.key, reads.most_bytes)
    columns = None if transform else Columns(form, signature, feeds, fed)
    if columns is not None and recurrent is None:
        return Plain(asker, reading, columns)
    making = Making(transform, columns, recurrent, keeps.time)
    return Stateful(asker, reading, making, signature, _store_opener(keeps, transform, recurrent), progress.untimely)


def check_fields(form: Format, *names: str) -> None:
    """Raises `ConfigError` where a schema lacks a field that messages are to have; "" is none."""
    for name in filter(None, names):
        if form.fields and name not in form.fields:
            raise ConfigError(f'a message has no field "{name}". {did_you_mean(name, form.fields)}')


def _store_opener(keeps: Keeps, transform: Transform | None, recurrent: Recurrent | None) -> Callable[[], StateStore]:
    kinds: dict[str, Kind] = {}
    version = hashlib.sha256("\n".join(keeps.recurrent).encode()).hexdigest()
    if transform is not None:
        kinds |= transform.kinds
        version = transform.version if recurrent is None else f"{transform.version}+{version}"
    if recurrent is not None:
        kinds |= recurrent.kinds
    rule = transform.watermark if transform is not None else Watermark()
    reset = [keeps.reset]  # once: what the stream wrote since must survive that its ends are opened anew

    def open_store() -> StateStore:
        first = reset.pop() if reset else False
        return StateStore.open(keeps.file, version, kinds, rule, keeps.cache_bytes, first)

    return open_store
