"""One replica as the gateway holds it: a process and its connection, from start to end. What it works on is its
lane's business.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from foretell.core.errors import ReplicaCrashed
from foretell.fleet import wire
from foretell.fleet.faults import revive
from foretell.fleet.launcher import Process


class Lane(Protocol):
    """The work of one replica: the scheduler's end of it."""

    @property
    def busy_since(self) -> float | None:
        """When what runs now began to run (monotonic seconds); None when nothing is in hand."""
        ...

    def join(self, ready: wire.Ready) -> None:
        """The replica is warm: work may be sent."""

    def leave(self) -> None:
        """No more work may be sent; what is in hand goes on."""

    def handle(self, header: wire.Header, body: memoryview) -> None:
        """A frame came. Takes over `replica.rss`."""

    def lost(self, reason: str) -> None:
        """The replica died with what was in hand."""


class ReplicaEvents(Protocol):
    """Who hears what happens to a replica (the pool)."""

    def worked(self, replica: "Replica") -> None: ...
    def gone(self, replica: "Replica") -> None: ...
    def lost(self, replica: "Replica") -> None: ...
    def retired(self, replica: "Replica") -> None: ...


class Replica(asyncio.BufferedProtocol):
    """`connect` first; then its lane gets every frame and sends through `write`."""

    def __init__(self, process: Process, events: ReplicaEvents, lane: "Callable[[Replica], Lane]") -> None:
        self.process = process
        self.rss = 0
        self.started_at = time.monotonic()
        self.answered = False
        self.closing = False
        self.reason = ""
        self.lane = lane(self)
        self.ended = asyncio.Event()
        self._retiring = False
        self._warm = False
        self._events = events
        self._reader = wire.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._ready: asyncio.Future[wire.Ready] = asyncio.get_running_loop().create_future()

    async def connect(self, timeout_s: float) -> wire.Ready:
        """Wait until the model is loaded and warm. Raises what loading raised, or `ReplicaCrashed`."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=self.process.sock)
        try:
            return await asyncio.wait_for(self._ready, timeout_s)
        except TimeoutError:
            self.kill(f"loading and warm-up took longer than {timeout_s:.0f} s (replicas.start_timeout_s)")
            raise ReplicaCrashed(self.reason) from None

    @property
    def connected(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def write(self, buffers: Sequence[wire.Buffer]) -> None:
        """Send the buffers of a frame. Never blocks."""
        assert self._transport is not None
        self._transport.writelines(buffers)

    def kill(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.process.kill()

    def retire(self) -> None:
        """Hang up once what is in hand is done."""
        self._retiring = True
        if self.lane.busy_since is None:
            self.close()

    def close(self) -> None:
        """Hang up: the process ends by itself once the batch or step in hand is done."""
        self.closing = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.received(nbytes)
        while (received := self._reader.next()) is not None:
            self._handle(*received)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ready.done() and not self.closing:
            self._events.gone(self)
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, self._reap).add_done_callback(self._reaped)

    def _reap(self) -> str:
        how = self.process.wait(2.0)
        if how is None:
            self.process.kill()
            how = self.process.wait(2.0)
        return how or "it would not end"

    def _reaped(self, how: asyncio.Future[str]) -> None:
        self.reason = self.reason or f"the replica died: {how.result()}"
        if not self._ready.done():
            self._ready.set_exception(ReplicaCrashed(f"{self.reason} while it loaded the model"))
        elif self.closing:
            self._events.retired(self)
        else:
            self._events.lost(self)
        self.ended.set()

    def _handle(self, header: wire.Header, body: memoryview) -> None:
        if self._warm:
            self.lane.handle(header, body)
            if not self.reason:  # with one, it is being killed
                self._events.worked(self)
            if self._retiring and self.lane.busy_since is None:
                self.close()
        elif isinstance(header, wire.Ready):
            self._warm = True
            self._ready.set_result(header)
        elif isinstance(header, wire.Failed) and not self._ready.done():
            self.reason = header.message
            self._ready.set_exception(revive(header.error, header.message))
