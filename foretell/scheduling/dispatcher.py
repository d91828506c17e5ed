"""Moves tickets from the queue to replicas and back: cuts batches, splits answers, isolates failures.

It reacts to four events (submit, finished, lost, changed) and never blocks; every admitted ticket ends once.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from foretell.core.clock import Clock
from foretell.core.errors import Cancelled, DeadlineExceeded, ForetellError, ModelFailed, NotReady, ReplicaCrashed
from foretell.core.request import Request, Timing
from foretell.core.settings import BatchingSettings
from foretell.core.tensor import Tensors
from foretell.scheduling.admission import admit
from foretell.scheduling.batcher import Returning, batch_limit, decide
from foretell.scheduling.queue import RequestQueue, Ticket
from foretell.scheduling.service import ServiceTimes

PIPELINE_DEPTH = 2
"""Batches a replica may hold: one runs, the next is already in its socket."""

MAX_ATTEMPTS = 2
"""A request that was running when a replica died is run once more, alone; then it is the suspect."""


class Batch:
    """Tickets of one shape that run together, in order."""

    __slots__ = ("rows", "sent_at", "tickets")

    def __init__(self, tickets: list[Ticket], now: float) -> None:
        self.tickets = tickets
        self.rows = sum(ticket.rows for ticket in tickets)
        self.sent_at = now


class Lane(Protocol):
    """A ready replica as the scheduler sees it. `batches` are those it holds, oldest (running) first."""

    @property
    def batches(self) -> Sequence[Batch]: ...

    @property
    def running_since(self) -> float:
        """When the oldest batch began to run (monotonic seconds)."""
        ...

    def send(self, batch: Batch) -> None: ...


class Timers(Protocol):
    """How the scheduler is called back. One `at` timer: a new setting replaces the earlier one."""

    def soon(self, action: Callable[[], None], /) -> object:
        """Call after the events that are already at hand, so that requests which arrived together join a batch."""
        ...

    def at(self, when: float, action: Callable[[], None], /) -> None: ...


class Dispatcher:
    """One deployment's scheduler. `lanes` is the pool's live list of ready replicas."""

    def __init__(
        self,
        settings: BatchingSettings,
        lanes: Sequence[Lane],
        clock: Clock,
        timers: Timers,
        idempotent: bool = True,
    ) -> None:
        self._settings = settings
        self._lanes = lanes
        self._clock = clock
        self._timers = timers
        self._max_attempts = MAX_ATTEMPTS if idempotent else 1
        self.queue = RequestQueue()
        self.service = ServiceTimes()
        self.unavailable: ForetellError | None = None
        self._returning = Returning()
        self._pump_is_due = False
        self._running: set[Batch] = set()
        self._stopped = False

    @property
    def outstanding(self) -> int:
        """Tickets that wait or run."""
        return len(self.queue) + sum(len(batch.tickets) for batch in self._running)

    def admit(self, request: Request, now: float) -> None:
        """Raise why a request that arrives now may not wait (`Overloaded`, `DeadlineExceeded`, `NotReady`)."""
        if self.unavailable is not None:
            raise self.unavailable
        rows = self.queue.rows
        # Only these can be refused; estimating the wait for everybody else would cost each request its share.
        if request.deadline is not None or rows + request.rows > self._settings.max_queue_rows:
            admit(request, self._settings, queued_rows=rows, wait_s=self.estimated_wait(now), now=now)

    def submit(self, ticket: Ticket) -> None:
        """Admit a ticket and let it wait, or raise why not."""
        self.admit(ticket.request, ticket.arrived)
        self.queue.push(ticket)
        self._returning.came(ticket.rows)
        if not self._pump_is_due:
            self._pump_is_due = True
            self._timers.soon(self.pump)

    def estimated_wait(self, now: float) -> float:
        """Seconds until a request that arrives now would start to run, 0 while nothing was learned."""
        if not self.service.known or not self._lanes:
            return 0.0
        rows = self.queue.rows
        batch = min(batch_limit(self._settings, self.service), max(rows, 1))
        queued = self.service.predict(batch) * rows / batch
        running = min(self._free_at(lane) for lane in self._lanes) - now
        return queued / len(self._lanes) + max(0.0, running)

    def cancel(self, ticket: Ticket) -> None:
        """The client went away: a waiting ticket leaves the queue, a running one's answer is dropped."""
        self.queue.forget(ticket)
        ticket.fail(Cancelled("the client went away"))

    def expire(self, ticket: Ticket) -> None:
        where = "waited" if ticket.queued else "ran"
        self.queue.forget(ticket)
        ticket.fail(DeadlineExceeded(f"the deadline passed while the request {where}; raise its timeout"))

    def pump(self) -> None:
        """Send every batch that should leave now. Called after each event; cheap when there is nothing to do."""
        self._pump_is_due = False
        while self.queue.rows and self._send_one():
            pass

    def _send_one(self) -> bool:
        lane = self._least_loaded()
        if lane is None:
            return False
        now = self._clock()
        rows = self.queue.next_whole() or self._decide(lane, now)
        if not rows:
            return False
        tickets = self.queue.cut(rows, self._settings.max_batch_bytes)
        if not tickets:
            return False
        for ticket in tickets:
            ticket.started = now
        batch = Batch(tickets, now)
        self._running.add(batch)
        try:
            lane.send(batch)
        except Exception as error:  # nothing of it left: only its own requests may pay for that
            self.failed(batch, ModelFailed(f"the request could not be sent to a replica: {error}"))
        return True

    def _decide(self, lane: Lane, now: float) -> int:
        """How many rows to cut for `lane` now; 0 asks to be called again later."""
        decision = decide(
            self._settings,
            self.service,
            waiting_rows=self.queue.rows,
            running_rows=sum(batch.rows for batch in self._running),
            oldest_arrival=self.queue.oldest_arrival() if self._settings.max_queue_delay_ms else now,
            replicas=len(self._lanes),
            free_at=self._free_at(lane) if lane.batches else None,
            returning=self._returning,
            now=now,
        )
        if not decision.rows:
            self._timers.at(decision.again_at, self.pump)
        return decision.rows

    def _least_loaded(self) -> Lane | None:
        best, load = None, math.inf
        for lane in self._lanes:
            held = lane.batches
            if len(held) < PIPELINE_DEPTH:
                rows = sum(batch.rows for batch in held)
                if rows < load:
                    best, load = lane, rows
        return best

    def _free_at(self, lane: Lane) -> float:
        batches = lane.batches
        if not batches:
            return 0.0
        return lane.running_since + sum(self.service.predict(batch.rows) for batch in batches)

    def finished(self, batch: Batch, outputs: Tensors, compute_s: float, took_s: float) -> None:
        """A replica answered. `compute_s`: inside the model; `took_s`: the replica's whole turn-around."""
        self._running.discard(batch)
        self.service.observe(batch.rows, took_s)
        self._returning.answered(batch.rows, self._clock())
        tickets = batch.tickets
        # The next batch leaves before the answers are written: the replica must not wait for the gateway.
        self.pump()
        if len(tickets) == 1:
            ticket = tickets[0]
            ticket.succeed(outputs, Timing(ticket.started - ticket.arrived, compute_s, batch.rows))
            return
        named = list(outputs.items())
        start = 0
        for ticket in tickets:
            stop = start + ticket.rows
            ticket.succeed(
                {name: array[start:stop] for name, array in named},
                Timing(ticket.started - ticket.arrived, compute_s, batch.rows),
            )
            start = stop

    def failed(self, batch: Batch, error: ForetellError) -> None:
        """The model raised. Alone, that is the answer; in company, each request is run again by itself."""
        self._running.discard(batch)
        if len(batch.tickets) == 1:
            batch.tickets[0].fail(error)
        else:
            for ticket in batch.tickets:
                self._again(ticket, alone=True)
        self.pump()

    def lost(self, running: Batch | None, waiting: Sequence[Batch], reason: str) -> None:
        """A replica died. What it ran is run again alone (once, if idempotent); what it had not begun, again."""
        for ticket in running.tickets if running else ():
            ticket.attempts += 1
            if ticket.attempts < self._max_attempts:
                self._again(ticket, alone=True)
            else:
                ticket.fail(ReplicaCrashed(f"{reason} while it ran this request ({ticket.attempts} times)"))
        for batch in waiting:
            for ticket in batch.tickets:
                self._again(ticket, alone=ticket.alone)
        self._running.difference_update(waiting, (running,) if running else ())
        self.pump()

    def _again(self, ticket: Ticket, *, alone: bool) -> None:
        if ticket.finished:
            return
        if self._stopped and self.unavailable is not None:
            ticket.fail(self.unavailable)
        elif alone:
            self.queue.retry(ticket)
        else:
            self.queue.push(ticket)

    def stop(self, error: ForetellError) -> None:
        """Refuse new requests with `error` and fail those that wait (the running ones end by themselves)."""
        self.unavailable = error
        self._stopped = True
        for ticket in self.queue.drain():
            ticket.fail(error)

    def resume(self) -> None:
        """A replica is ready (again): take requests, unless the version is draining."""
        if self._stopped:
            self._stopped, self.unavailable = False, None
        self.pump()

    def refuse(self) -> None:
        """Refuse new requests; those admitted are still answered (graceful drain)."""
        self.unavailable = NotReady("this version is being replaced; retry")

    def abandon(self, error: ForetellError) -> None:
        """End everything now: what waits and what runs fails with `error`."""
        self.stop(error)
        for batch in self._running:
            for ticket in batch.tickets:
                ticket.fail(error)
