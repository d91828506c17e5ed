"""The side of a deployment whose model generates: requests go to replicas at once, events come back as they happen."""

import asyncio
import time
from collections import deque

from foretell.core.errors import Cancelled, DeadlineExceeded, ForetellError, InvalidInput
from foretell.core.generation import Event, GenerateRequest, Load
from foretell.fleet.batches import Executed
from foretell.fleet.generating import GenerationLane
from foretell.fleet.replica import Replica
from foretell.plane.spec import DeploymentSpec
from foretell.scheduling.generations import Generations


class Generation:
    """One admitted request and its events so far. Take them with `next` until it is None; `close` in any case.

    Raises why the request is not admitted.
    """

    def __init__(self, scheduler: Generations, request: GenerateRequest) -> None:
        self._scheduler = scheduler
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: ForetellError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.stream = scheduler.submit(request, self)
        if request.deadline is not None:
            left = max(0.001, request.deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(left, self._expire)

    async def next(self) -> Event | None:
        """The next event, or None after the last. Raises why the request failed; one caller at a time."""
        while not self._events:
            if self._error is not None:
                raise self._error
            if self.stream.over:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._events.popleft()

    def close(self) -> None:
        """Nobody listens any more: a generation that has not ended is cancelled. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        self._scheduler.drop(self.stream, Cancelled("the client went away"))

    # The scheduler's listener

    def hear(self, event: Event) -> None:
        self._events.append(event)
        self._wake()

    def end(self, error: ForetellError | None) -> None:
        self._error = error
        self._wake()

    def _expire(self) -> None:
        self._scheduler.drop(self.stream, DeadlineExceeded("the deadline passed before the answer was complete"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Generating:
    """`begin` admits; `lane` carries generations to a new replica."""

    def __init__(self, spec: DeploymentSpec, executed: Executed) -> None:
        self.max_batch_size = spec.batching.max_batch_size
        self._timeout_s = spec.batching.timeout_ms / 1000.0
        self._lanes: list[GenerationLane] = []
        self._executed = executed
        self.scheduler = Generations(spec.batching, self._lanes, time.monotonic, spec.manifest.idempotent)

    def lane(self, replica: Replica) -> GenerationLane:
        return GenerationLane(replica, self.scheduler, self._lanes, self._executed)

    def begin(self, request: GenerateRequest) -> Generation:
        """Admit a request and send it on its way. Raises `InvalidInput`, `Overloaded` or `NotReady`."""
        if request.n < 1:
            raise InvalidInput(f"n is {request.n}; ask for at least one answer")
        if self._timeout_s and request.deadline is None:
            request.deadline = time.monotonic() + self._timeout_s
        return Generation(self.scheduler, request)

    @property
    def queued(self) -> int:
        """Sequences that have not started."""
        return self.scheduler.queued

    def load(self) -> Load:
        """What all ready replicas hold together, as of their last steps."""
        loads = [lane.load for lane in self._lanes]
        return Load(*(sum(getattr(load, field) for load in loads) for field in Load.__struct_fields__))

    def stop(self, error: ForetellError) -> None:
        """End everything with `error`."""
        self.scheduler.abandon(error)
