"""A running foretell server: plane, store, entrances and observations, started and drained together."""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from foretell import __version__
from foretell.app.background import background_of
from foretell.app.batches import Batches
from foretell.app.catalog import Catalog
from foretell.app.config import Config
from foretell.app.files import StoredFiles
from foretell.app.packages import is_path, open_target
from foretell.app.telemetry import Telemetry
from foretell.core.errors import ConfigError
from foretell.core.observation import Observation
from foretell.core.reference import Reference, parse_reference
from foretell.fleet.launcher import Launcher, LocalProcess
from foretell.plane.plane import Plane
from foretell.server.app import App
from foretell.server.grpc import GrpcServer
from foretell.server.listener import HttpServer
from foretell.store.package import Package
from foretell.store.store import Store
from foretell.telemetry.metrics import LiveVersion

log = logging.getLogger(__name__)


class Service:
    """`start` binds the ports, then loads the models; `stop` drains. One per process is usual, several work."""

    def __init__(self, config: Config, store: Store, launch: Launcher = LocalProcess) -> None:
        self.config = config
        self.http_port = self.grpc_port = 0
        self.telemetry = Telemetry(config.observations, self._live)
        self.plane = Plane(launch, self._record, config.observations.sample_rate)
        self._background = background_of(self.plane)
        self._scratch = tempfile.TemporaryDirectory(prefix="foretell-")
        wanted, fixed = _served(config, Path(self._scratch.name))
        self.catalog = Catalog(self.plane, store, config, wanted, fixed)
        self.plane.repository = self.catalog
        files = None if store.files.folder is None else StoredFiles(store.files)
        self._batches = None if files is None else Batches(self.plane, self._background, store)
        app = App(self.plane, self.telemetry.scrape, lambda: self.plane.table, __version__, files, self._batches)
        self._http = HttpServer(app, config.server.http)
        self._grpc: GrpcServer | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, then load. Until the models are loaded, readiness says no and inference 404."""
        server = self.config.server
        try:
            await self._http.start(server.host, server.port)
            self.http_port = self._http.port
            if server.grpc_port >= 0:
                self._grpc = GrpcServer(self.plane, server.grpc, __version__)
                self.grpc_port = await self._grpc.start(server.host, server.grpc_port)
            self.telemetry.start()
            await self.catalog.start()
        except BaseException:
            await self.stop(0.0)
            raise
        self._watch = asyncio.create_task(self.catalog.watch(server.poll_s))
        if self._batches is not None:
            self._batches.start()

    async def stop(self, grace_s: float | None = None) -> None:
        """Refuse new work, finish what was admitted within `grace_s`, then end replicas and writers."""
        grace = self.config.server.grace_s if grace_s is None else grace_s
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if self._batches is not None:
            await self._batches.stop()
        until = time.monotonic() + grace
        await asyncio.gather(self._http.drain(grace), self._grpc.drain(grace) if self._grpc else asyncio.sleep(0))
        await self.plane.close(max(0.0, until - time.monotonic()))
        await asyncio.to_thread(self.telemetry.close)
        self._scratch.cleanup()

    def _record(self, observation: Observation) -> None:
        self._background.record(observation)
        self.telemetry.record(observation)

    def _live(self) -> list[LiveVersion]:
        return [
            LiveVersion(
                deployment.spec.name,
                deployment.spec.version,
                deployment.queued,
                deployment.pool.states(),
                [(batch.rows, batch.count) for batch in deployment.snapshot().batches],
                deployment.pool.total_replica_seconds() * deployment.dollars_per_second,
                deployment.load(),
            )
            for deployment in self.plane.deployments
        ]


def _served(config: Config, scratch: Path) -> tuple[list[Reference], dict[str, Package]]:
    """Split what is to be served into references and packages made from files on the spot."""
    wanted: list[Reference] = []
    fixed: dict[str, Package] = {}
    for item in config.serve:
        if is_path(item):
            opened = open_target(item, None, scratch, config.server.trust_code)
            fixed[opened.name] = opened.package
        else:
            wanted.append(parse_reference(item))
    _refuse_twins(wanted, fixed)
    return wanted, fixed


def _refuse_twins(wanted: Iterable[Reference], fixed: dict[str, Package]) -> None:
    for reference in wanted:
        if reference.name in fixed:
            raise ConfigError(f'"{reference.name}" names both a file and a model of the store; rename the file')
