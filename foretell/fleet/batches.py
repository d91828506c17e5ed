"""The lane of a replica that predicts: carries batches of the dispatcher to it, and their answers back."""

import time
from collections import deque
from collections.abc import Callable

from foretell.fleet import wire
from foretell.fleet.faults import revive
from foretell.fleet.replica import Replica
from foretell.scheduling.dispatcher import Batch, Dispatcher

Executed = Callable[[int, float], None]
"""Told of everything that ran: rows (or sequences), seconds."""


class BatchLane:
    """Holds up to two batches: one runs, one waits in the socket. `lanes` is the dispatcher's list, kept by it."""

    def __init__(self, replica: Replica, dispatcher: Dispatcher, lanes: "list[BatchLane]", executed: Executed) -> None:
        self.batches: deque[Batch] = deque()
        self.running_since = 0.0
        self._replica = replica
        self._dispatcher = dispatcher
        self._lanes = lanes
        self._executed = executed

    @property
    def busy_since(self) -> float | None:
        return self.running_since if self.batches else None

    def join(self, ready: wire.Ready) -> None:
        for rows, seconds in ready.warmup:
            self._dispatcher.service.observe(rows, seconds)
        self._lanes.append(self)
        self._dispatcher.resume()

    def leave(self) -> None:
        if self in self._lanes:
            self._lanes.remove(self)

    def send(self, batch: Batch) -> None:
        tensors, body = wire.tensors_body([ticket.request.inputs for ticket in batch.tickets])
        if not self.batches:
            self.running_since = batch.sent_at
        self.batches.append(batch)
        self._replica.write(wire.frame(wire.Run(batch.rows, tensors), body))

    def handle(self, header: wire.Header, body: memoryview) -> None:
        now = time.monotonic()
        if isinstance(header, wire.Done):
            outputs = wire.read_tensors(header.tensors, body)
            batch = self.batches.popleft()
            took_s, self.running_since = now - self.running_since, now
            self._replica.rss = header.rss or self._replica.rss
            self._executed(batch.rows, header.compute_s)
            self._dispatcher.finished(batch, outputs, header.compute_s, took_s)
        elif isinstance(header, wire.Failed):
            self.running_since = now
            self._dispatcher.failed(self.batches.popleft(), revive(header.error, header.message))

    def lost(self, reason: str) -> None:
        held = list(self.batches)
        self._dispatcher.lost(held[0] if held else None, held[1:], reason)
