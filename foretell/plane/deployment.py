"""One version in service: its scheduler, its replicas, its cache, its limits."""

import asyncio
import time
from collections.abc import Callable

import msgspec

from foretell.core.errors import DeadlineExceeded, NotReady
from foretell.core.request import Request, Timing
from foretell.core.settings import BatchingSettings, CacheSettings, ReplicaSettings
from foretell.core.tensor import Signature
from foretell.fleet.launcher import Launcher
from foretell.fleet.pool import Pool
from foretell.fleet.spec import WorkerSpec, replicas_for
from foretell.fleet.wire import Ready
from foretell.plane.info import BatchStatistics, ModelInfo, VersionStatistics
from foretell.scheduling.cache import ResponseCache, request_digest
from foretell.scheduling.dispatcher import Dispatcher
from foretell.scheduling.queue import Answer, Ticket
from foretell.store.manifest import Manifest


class DeploymentSpec(msgspec.Struct, frozen=True):
    """Everything a deployment needs. `package` is the folder its replicas load.

    `replicas.threads` is not 0 and `cores` is how many there are to divide (see `fleet.spec`).
    `replica_dollars_per_hour` is the share of the machine's price that one replica occupies.
    """

    name: str
    version: str
    package: str
    manifest: Manifest
    batching: BatchingSettings
    cache: CacheSettings
    replicas: ReplicaSettings
    cores: int
    trust_code: bool = False
    replica_dollars_per_hour: float = 0.0


class _Flight:
    """A computation that several equal requests wait for."""

    __slots__ = ("ticket", "waiters")

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.waiters = 0


class LoopTimers:
    """The scheduler's timers on an asyncio loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.soon: Callable[[Callable[[], None]], object] = self._loop.call_soon
        self._handle: asyncio.TimerHandle | None = None

    def at(self, when: float, action: Callable[[], None]) -> None:
        if self._handle is not None:
            self._handle.cancel()
        # The loop's timers tick in milliseconds; a shorter delay would spin.
        self._handle = self._loop.call_later(max(0.001, when - time.monotonic()), action)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


class Deployment:
    """Answers requests for one version. `start` before `infer`; `drain` at the end."""

    def __init__(self, spec: DeploymentSpec, launch: Launcher) -> None:
        self.spec = spec
        self.signature: Signature = spec.manifest.signature
        self.statistics = VersionStatistics(spec.name, spec.version)
        self.dollars_per_second = spec.replica_dollars_per_hour / 3600.0
        batching = spec.batching
        if not self.signature.batchable:
            batching = msgspec.structs.replace(batching, max_batch_size=1)
        worker = WorkerSpec(spec.package, spec.replicas, spec.trust_code, batching.max_batch_size)
        self._timers = LoopTimers()
        self._timeout_s = batching.timeout_ms / 1000.0
        self._batches: dict[int, BatchStatistics] = {}
        self.pool = Pool(f"{spec.name}@{spec.version}", worker, launch)
        self.pool.executions = self._executed
        self.dispatcher = Dispatcher(batching, self.pool.lanes, time.monotonic, self._timers, spec.manifest.idempotent)
        self.pool.dispatcher = self.dispatcher
        self.cache = ResponseCache(spec.cache, time.monotonic) if spec.cache.max_bytes else None
        self._flights: dict[bytes, _Flight] = {}

    async def start(self) -> None:
        """Load and warm up; returns when the first replica can answer. Raises why it cannot."""
        try:
            await self.pool.start(self._count)
        except BaseException:
            await self.pool.close()
            raise

    def _count(self, ready: Ready) -> int:
        return replicas_for(self.spec.replicas, ready.warmup, self.spec.cores)

    @property
    def ready(self) -> bool:
        return bool(self.pool.lanes) and self.dispatcher.unavailable is None

    @property
    def reason(self) -> str:
        """Why it is not ready."""
        if self.dispatcher.unavailable is not None:
            return self.dispatcher.unavailable.message
        return "" if self.pool.lanes else "its replicas are starting"

    async def infer(self, request: Request) -> Answer:
        """Queue, run, answer. Cancelling the caller drops the request wherever it is."""
        if self._timeout_s and request.deadline is None:
            request.deadline = time.monotonic() + self._timeout_s
        if self.cache is not None:
            return await self._infer_cached(self.cache, request)
        ticket = self._submit(request)
        if request.deadline is None:
            timer = None
        else:
            timer = asyncio.get_running_loop().call_later(
                max(0.001, request.deadline - time.monotonic()), self.dispatcher.expire, ticket
            )
        try:
            answer: Answer = await ticket.future  # type: ignore[misc]
            return answer
        except asyncio.CancelledError:
            self.dispatcher.cancel(ticket)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _submit(self, request: Request) -> Ticket:
        ticket = Ticket(request, asyncio.get_running_loop().create_future(), time.monotonic())
        self.dispatcher.submit(ticket)
        return ticket

    async def _infer_cached(self, cache: ResponseCache, request: Request) -> Answer:
        digest = request_digest(request.inputs)
        outputs = cache.get(digest)
        if outputs is not None:
            return Answer(outputs, Timing(cached=True))
        flight = self._flights.get(digest)
        joined = flight is not None
        if flight is None:
            self.dispatcher.admit(request, time.monotonic())
            # The computation outlives any one of its waiters, so it carries no deadline; each waiter has its own.
            flight = _Flight(self._submit(msgspec.structs.replace(request, deadline=None)))
            self._flights[digest] = flight
            self._future(flight).add_done_callback(lambda future: self._landed(cache, digest, flight, future))
        flight.waiters += 1
        left = None if request.deadline is None else request.deadline - time.monotonic()
        try:
            answer = await asyncio.wait_for(asyncio.shield(self._future(flight)), left)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the answer came; raise its timeout") from None
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.ticket.finished:
                self._forget(digest, flight)  # at once: an equal request must not join what is being cancelled
                self.dispatcher.cancel(flight.ticket)
        return Answer(answer.outputs, Timing(cached=True)) if joined else answer

    @staticmethod
    def _future(flight: _Flight) -> "asyncio.Future[Answer]":
        return flight.ticket.future  # type: ignore[return-value]

    def _landed(self, cache: ResponseCache, digest: bytes, flight: _Flight, future: "asyncio.Future[Answer]") -> None:
        self._forget(digest, flight)
        if not future.cancelled() and future.exception() is None:
            cache.put(digest, future.result().outputs)

    def _forget(self, digest: bytes, flight: _Flight) -> None:
        if self._flights.get(digest) is flight:
            del self._flights[digest]

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, let the admitted ones end within `grace_s`, then stop the replicas."""
        self.dispatcher.refuse()
        until = time.monotonic() + grace_s
        try:
            while self.dispatcher.outstanding and time.monotonic() < until:
                await asyncio.sleep(0.005)
        finally:
            self.dispatcher.abandon(NotReady("the server stopped before the answer came; retry elsewhere"))
            self._timers.cancel()
            await self.pool.close()

    def info(self, versions: tuple[str, ...]) -> ModelInfo:
        manifest = self.spec.manifest
        return ModelInfo(
            name=self.spec.name,
            version=self.spec.version,
            versions=versions,
            runtime=manifest.runtime,
            signature=self.signature,
            max_batch_size=self.spec.batching.max_batch_size if self.signature.batchable else 0,
            description=manifest.description,
            tags=("embeddings",) if _embeds_text(self.signature) else (),
        )

    def snapshot(self) -> VersionStatistics:
        """Statistics up to now."""
        return msgspec.structs.replace(self.statistics, batches=[self._batches[rows] for rows in sorted(self._batches)])

    def _executed(self, rows: int, compute_s: float) -> None:
        self.statistics.executions += 1
        entry = self._batches.get(rows)
        if entry is None:
            entry = self._batches[rows] = BatchStatistics(rows)
        entry.count += 1
        entry.compute_s += compute_s


def _embeds_text(signature: Signature) -> bool:
    if len(signature.inputs) != 1 or len(signature.outputs) != 1:
        return False
    text, vector = signature.inputs[0], signature.outputs[0]
    return text.datatype == "BYTES" and len(text.shape) == 1 and vector.datatype == "FP32" and len(vector.shape) == 2
