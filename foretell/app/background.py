"""The plane as batches of calls see it: behind all online traffic, and patient where the plane is full or not ready."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import msgspec

from foretell.batch.ending import Spent
from foretell.batch.spec import PROTOCOL
from foretell.core.errors import ForetellError, NotReady, Overloaded, ReplicaCrashed
from foretell.core.generation import Event, GenerateRequest
from foretell.core.observation import Observation
from foretell.core.reference import Reference
from foretell.core.request import Request, Response
from foretell.core.tensor import Signature
from foretell.plane.deployment import Deployment
from foretell.plane.info import ModelInfo
from foretell.plane.plane import Plane
from foretell.server.door import Inference

BEHIND = 1_000_000
"""Added to the priority of every request: smaller numbers run earlier."""
ROOM = 0.25
"""The share of a model's queue that batches may take, so that others find room. A larger request goes alone."""
FEW = 8
"""Generations that are begun beside others while somebody asks online: each one more makes all of them slower."""
QUIET_S = 10.0
"""After so long without anybody, batches take all that they may."""
MOST_TRIES = 3
"""A request whose replica dies is asked so often."""

_LONGEST_S = 7 * 86400.0
_PAUSE_S = 0.25


def deployment_of(plane: Plane, reference: Reference) -> Deployment:
    """What answers a reference now. Raises `NotFound`."""
    info = plane.describe(reference)
    return next(d for d in plane.deployments if (d.spec.name, d.spec.version) == (info.name, info.version))


def background_of(plane: Plane) -> "Background":
    """A plane from behind, with some room in its queues."""
    return Background(plane, lambda reference: int(ROOM * deployment_of(plane, reference).spec.batching.max_queue_rows))


class Background:
    """Implements `server.door.Inference` over a plane. What a request costs is kept until `spent` is asked for it.

    `room`: rows of predictions that may be under way, of the model that a reference leads to.
    """

    def __init__(self, plane: Inference, room: Callable[[Reference], int]) -> None:
        self._plane = plane
        self._most = room
        self._rows: Counter[str] = Counter()
        self._room = asyncio.Condition()
        self._speaking = 0
        self._heard_at = float("-inf")
        self._bill: dict[str, Spent] = {}

    async def infer(self, reference: Reference, request: Request) -> Response:
        crashes = 0
        while True:
            behind = msgspec.structs.replace(
                request, priority=request.priority + BEHIND, protocol=PROTOCOL, deadline=time.monotonic() + _LONGEST_S
            )
            try:
                async with self._taking(reference.name, request.rows, self._most(reference)):
                    return await self._plane.infer(reference, behind)
            except (Overloaded, NotReady, ReplicaCrashed) as error:
                crashes += isinstance(error, ReplicaCrashed)
                if crashes == MOST_TRIES:
                    raise
                await asyncio.sleep(pause_s(error))

    async def generate(self, reference: Reference, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """All events at once, when it is over: so it can begin anew if a replica dies in the middle of it."""
        crashes = 0
        while True:
            behind = msgspec.structs.replace(
                request, priority=request.priority + BEHIND, protocol=PROTOCOL, deadline=time.monotonic() + _LONGEST_S
            )
            try:
                async with self._turn(), contextlib.aclosing(self._plane.generate(reference, behind)) as stream:
                    events = [event async for event in stream]
                break
            except (Overloaded, NotReady, ReplicaCrashed) as error:
                crashes += isinstance(error, ReplicaCrashed)
                if crashes == MOST_TRIES:
                    raise
                await asyncio.sleep(pause_s(error))
        for event in events:
            yield event

    def refused(self, reference: Reference, error: ForetellError, protocol: str) -> None:
        self._plane.refused(reference, error, PROTOCOL)

    def signature(self, reference: Reference) -> Signature:
        return self._plane.signature(reference)

    def describe(self, reference: Reference) -> ModelInfo:
        return self._plane.describe(reference)

    def models(self) -> list[ModelInfo]:
        return self._plane.models()

    def ready(self, reference: Reference | None = None) -> bool:
        return self._plane.ready(reference)

    # What it costs

    def record(self, observation: Observation) -> None:
        """Hear of every finished request: what those of batches cost, and whether others generate."""
        if observation.protocol != PROTOCOL:
            if observation.tokens is not None:
                self._heard_at = time.monotonic()
        else:
            # A completion of several prompts is several requests, NAME-0, NAME-1, …
            spent = self._bill.setdefault(observation.request_id.partition("-")[0], Spent())
            spent.compute_s += observation.compute_s
            spent.dollars += observation.cost_dollars

    def spent(self, name: str) -> Spent:
        return self._bill.pop(name, Spent())

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait while somebody asks online and as many as may run beside that do so already."""
        while self._speaking >= FEW and time.monotonic() - self._heard_at < QUIET_S:
            await asyncio.sleep(_PAUSE_S)
        self._speaking += 1
        try:
            yield
        finally:
            self._speaking -= 1

    @contextlib.asynccontextmanager
    async def _taking(self, model: str, rows: int, most: int) -> AsyncIterator[None]:
        """Wait until there is room for so many rows of a model, and hold it."""
        taken = self._rows
        async with self._room:
            await self._room.wait_for(lambda: not taken[model] or taken[model] + rows <= most)
            taken[model] += rows
        try:
            yield
        finally:
            taken[model] -= rows
            async with self._room:
                self._room.notify_all()


def pause_s(error: ForetellError) -> float:
    """How long to stay away after a refusal."""
    return max(_PAUSE_S, error.retry_after_s) if isinstance(error, Overloaded) else _PAUSE_S
