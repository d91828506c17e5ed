"""The side of a deployment whose model predicts: rows wait, are batched and answered; equal requests share."""

import asyncio
import time
from collections.abc import Callable

import msgspec

from foretell.core.errors import DeadlineExceeded, ForetellError
from foretell.core.request import Request, Timing
from foretell.fleet.batches import BatchLane, Executed
from foretell.fleet.replica import Replica
from foretell.plane.spec import DeploymentSpec
from foretell.scheduling.cache import ResponseCache, request_digest
from foretell.scheduling.dispatcher import Dispatcher
from foretell.scheduling.queue import Answer, Ticket


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


class Inferring:
    """`infer` answers; `lane` carries batches to a new replica."""

    def __init__(self, spec: DeploymentSpec, executed: Executed) -> None:
        batching = spec.batching
        if not spec.manifest.signature.batchable:
            batching = msgspec.structs.replace(batching, max_batch_size=1)
        self.max_batch_size = batching.max_batch_size
        self._timeout_s = batching.timeout_ms / 1000.0
        self._timers = LoopTimers()
        self._lanes: list[BatchLane] = []
        self._executed = executed
        self.scheduler = Dispatcher(batching, self._lanes, time.monotonic, self._timers, spec.manifest.idempotent)
        self.cache = ResponseCache(spec.cache, time.monotonic) if spec.cache.max_bytes else None
        self._flights: dict[bytes, _Flight] = {}

    def lane(self, replica: Replica) -> BatchLane:
        return BatchLane(replica, self.scheduler, self._lanes, self._executed)

    @property
    def queued(self) -> int:
        return self.scheduler.queue.rows

    def stop(self, error: ForetellError) -> None:
        self.scheduler.abandon(error)
        self._timers.cancel()

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
                max(0.001, request.deadline - time.monotonic()), self.scheduler.expire, ticket
            )
        try:
            answer: Answer = await ticket.future  # type: ignore[misc]
            return answer
        except asyncio.CancelledError:
            self.scheduler.cancel(ticket)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _submit(self, request: Request) -> Ticket:
        ticket = Ticket(request, asyncio.get_running_loop().create_future(), time.monotonic())
        self.scheduler.submit(ticket)
        return ticket

    async def _infer_cached(self, cache: ResponseCache, request: Request) -> Answer:
        digest = request_digest(request.inputs)
        outputs = cache.get(digest)
        if outputs is not None:
            return Answer(outputs, Timing(cached=True))
        flight = self._flights.get(digest)
        joined = flight is not None
        if flight is None:
            self.scheduler.admit(request, time.monotonic())
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
                self.scheduler.cancel(flight.ticket)
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
