"""One replica as the gateway holds it: sends batches, receives answers, notices its death."""

import asyncio
import time
from collections import deque
from typing import Protocol, cast

from foretell.core.errors import (
    ConfigError,
    ForetellError,
    InvalidInput,
    ModelFailed,
    PackageError,
    ReplicaCrashed,
    Unsupported,
    UntrustedCode,
)
from foretell.core.tensor import Tensors
from foretell.fleet import wire
from foretell.fleet.launcher import Process
from foretell.scheduling.dispatcher import Batch

_ERRORS: dict[str, type[ForetellError]] = {
    kind.__name__: kind for kind in (ConfigError, InvalidInput, ModelFailed, PackageError, Unsupported, UntrustedCode)
}
"""What a replica may report, by the name it travels under; anything else is the model's failure."""


class ReplicaEvents(Protocol):
    """Who hears what happens to a replica (the pool)."""

    def done(self, replica: "Replica", batch: Batch, outputs: Tensors, compute_s: float, took_s: float) -> None: ...
    def failed(self, replica: "Replica", batch: Batch, error: ForetellError) -> None: ...
    def gone(self, replica: "Replica") -> None: ...
    def lost(self, replica: "Replica") -> None: ...
    def retired(self, replica: "Replica") -> None: ...


class Replica(asyncio.BufferedProtocol):
    """A lane of the scheduler over one process. Holds up to two batches: one runs, one waits in the socket."""

    def __init__(self, process: Process, events: ReplicaEvents) -> None:
        self.process = process
        self.batches: deque[Batch] = deque()
        self.running_since = 0.0
        self.rss = 0
        self.started_at = time.monotonic()
        self.answered = False
        self.closing = False
        self._retiring = False
        self.reason = ""
        self._events = events
        self._reader = wire.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._ready: asyncio.Future[wire.Ready] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()

    async def connect(self, timeout_s: float) -> wire.Ready:
        """Wait until the model is loaded and warm. Raises what loading raised, or `ReplicaCrashed`."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=self.process.sock)
        try:
            return await asyncio.wait_for(self._ready, timeout_s)
        except TimeoutError:
            self.kill(f"loading and warm-up took longer than {timeout_s:.0f} s (replicas.start_timeout_s)")
            raise ReplicaCrashed(self.reason) from None

    def send(self, batch: Batch) -> None:
        assert self._transport is not None
        tensors, body = wire.tensors_body([ticket.request.inputs for ticket in batch.tickets])
        if not self.batches:
            self.running_since = batch.sent_at
        self.batches.append(batch)
        self._transport.writelines(wire.frame(wire.Run(batch.rows, tensors), body))

    def kill(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.process.kill()

    def retire(self) -> None:
        """Hang up once the batches in hand are done."""
        self._retiring = True
        if not self.batches:
            self.close()

    def close(self) -> None:
        """Hang up: the process ends by itself once the batch in hand is done."""
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
        if isinstance(header, wire.Done):
            now = time.monotonic()
            outputs = wire.read_tensors(header.tensors, body)
            batch = self.batches.popleft()
            took_s, self.running_since = now - self.running_since, now
            self.rss = header.rss or self.rss
            self._events.done(self, batch, outputs, header.compute_s, took_s)
        elif isinstance(header, wire.Failed):
            error = _ERRORS.get(header.error, ModelFailed)(header.message)
            if not self._ready.done():
                self.reason = header.message
                self._ready.set_exception(error)
                return
            self.running_since = time.monotonic()
            self._events.failed(self, self.batches.popleft(), error)
        elif isinstance(header, wire.Ready):
            self._ready.set_result(header)
            return
        if self._retiring and not self.batches:
            self.close()
