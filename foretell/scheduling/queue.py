"""Requests that wait, ordered by priority, then deadline, then arrival."""

import heapq
import math
from typing import Any, Protocol

import msgspec

from foretell.core.request import Request, Timing
from foretell.core.tensor import Tensors

ShapeKey = tuple[tuple[str, tuple[int, ...]], ...]
"""Requests join one batch only if their tensors agree in all but the row axis: name and trailing shape of each."""


class Answer(msgspec.Struct, gc=False):
    """What a ticket's future resolves to."""

    outputs: Tensors
    timing: Timing


class Future(Protocol):
    """The part of asyncio's (or concurrent.futures') Future that scheduling completes."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


class Ticket:
    """An admitted request: ends exactly once, by `succeed` or `fail` (or by its waiter cancelling the future).

    `alone` marks a ticket that runs in a batch of its own, because a batch it was part of failed.
    `attempts` counts the replicas that died while this request was running.
    """

    __slots__ = ("alone", "arrived", "attempts", "future", "key", "nbytes", "queued", "request", "rows", "started")

    def __init__(self, request: Request, future: Future, arrived: float) -> None:
        self.request = request
        self.rows = request.rows
        self.future = future
        self.arrived = arrived
        self.started = arrived
        self.alone = False
        self.attempts = 0
        self.queued = False
        nbytes = 0
        key = []
        for name, array in request.inputs.items():
            nbytes += array.nbytes if array.dtype.kind != "O" else sum(map(len, array.flat)) + 4 * array.size
            key.append((name, array.shape[1:]))
        self.nbytes = nbytes
        self.key: ShapeKey = tuple(key)

    @property
    def finished(self) -> bool:
        return self.future.done()

    def succeed(self, outputs: Tensors, timing: Timing) -> None:
        if not self.future.done():
            self.future.set_result(Answer(outputs, timing))

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class RequestQueue:
    """Waiting tickets, one heap per shape key. `rows` counts the rows of tickets that still want an answer."""

    def __init__(self) -> None:
        self._heaps: dict[ShapeKey, list[tuple[int, float, int, Ticket]]] = {}
        self._retries: list[Ticket] = []
        self._sequence = 0
        self.rows = 0

    def __len__(self) -> int:
        return len(self._retries) + sum(map(len, self._heaps.values()))

    def push(self, ticket: Ticket) -> None:
        request = ticket.request
        self._sequence += 1
        deadline = math.inf if request.deadline is None else request.deadline
        heap = self._heaps.get(ticket.key)
        if heap is None:
            heap = self._heaps[ticket.key] = []
        heapq.heappush(heap, (request.priority, deadline, self._sequence, ticket))
        ticket.queued = True
        self.rows += ticket.rows

    def retry(self, ticket: Ticket) -> None:
        """Put a ticket before all others, to run alone."""
        ticket.alone = True
        ticket.queued = True
        self._retries.append(ticket)
        self.rows += ticket.rows

    def forget(self, ticket: Ticket) -> None:
        """The ticket ended while it waited: its rows no longer count. The cut skips it later."""
        if ticket.queued:
            ticket.queued = False
            self.rows -= ticket.rows

    def oldest_arrival(self) -> float:
        """When the ticket that the next cut starts with arrived; infinity if nothing waits."""
        if self._retries:
            return self._retries[0].arrived
        heap = self._next_heap()
        return heap[0][3].arrived if heap else math.inf

    def next_whole(self) -> int:
        """Rows of the ticket that the next cut starts with if that is a batch as it is, else 0."""
        if self._retries:
            return 0
        heap = self._next_heap()
        return heap[0][3].rows if heap and heap[0][3].request.whole else 0

    def cut(self, max_rows: int, max_bytes: int) -> list[Ticket]:
        """Take the most urgent tickets of one shape, up to the limits (always one, however large)."""
        while self._retries:
            ticket = self._retries.pop(0)
            if self._take(ticket):
                return [ticket]
        heap = self._next_heap()
        batch: list[Ticket] = []
        rows = nbytes = 0
        while heap:
            ticket = heap[0][3]
            if ticket.finished:
                heapq.heappop(heap)
                self.forget(ticket)
                continue
            if batch and (rows + ticket.rows > max_rows or nbytes + ticket.nbytes > max_bytes or ticket.request.whole):
                break
            heapq.heappop(heap)
            self._take(ticket)
            batch.append(ticket)
            rows += ticket.rows
            nbytes += ticket.nbytes
        if heap is not None and not heap:
            self._drop_empty()
        return batch

    def drain(self) -> list[Ticket]:
        """Take everything that waits."""
        tickets = self._retries + [entry[3] for heap in self._heaps.values() for entry in sorted(heap)]
        self._retries, self._heaps = [], {}
        return [ticket for ticket in tickets if self._take(ticket)]

    def _take(self, ticket: Ticket) -> bool:
        self.forget(ticket)
        return not ticket.finished

    def _next_heap(self) -> list[tuple[int, float, int, Ticket]] | None:
        if len(self._heaps) == 1:
            (heap,) = self._heaps.values()
            if heap and not heap[0][3].finished:
                return heap
        for heap in self._heaps.values():
            while heap and heap[0][3].finished:
                self.forget(heapq.heappop(heap)[3])
        self._drop_empty()
        return min(self._heaps.values(), key=lambda heap: heap[0][:3], default=None)

    def _drop_empty(self) -> None:
        for key in [key for key, heap in self._heaps.items() if not heap]:
            del self._heaps[key]
