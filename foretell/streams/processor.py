"""The loop: poll → decode → map → ask → encode → publish → commit, several micro-batches under way at a time.

Answers leave in the order in which their messages were polled, so order is kept by partition and by key. While
there are as many micro-batches or bytes in memory as `pace.py` allows, nothing is polled.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, NamedTuple, TypeVar

from foretell.core.errors import ForetellError, StateUnwritable, StreamError
from foretell.streams.answering import Answered, Answerer
from foretell.streams.answers import encode_refusal
from foretell.streams.commit import Guarantee, Step, guarantee, steps
from foretell.streams.message import Message, Record, Refusal, positions, weight
from foretell.streams.moves import Memory, Moves
from foretell.streams.pace import Pace
from foretell.streams.progress import Progress
from foretell.streams.protocol import ChangeLog, Renumbering, Resume, Room, Sink, Source, StreamReset, TransactionalSink
from foretell.streams.retry import Backoff

T = TypeVar("T")


class Ends(NamedTuple):
    """Where messages come from, where answers go, and where messages go that have none."""

    source: Source
    sink: Sink
    dead: Sink


class Flight(NamedTuple):
    """A micro-batch under way, its messages `nbytes` large; asked for whenever anything changes, so counted once."""

    messages: list[Message]
    nbytes: int
    answered: "asyncio.Task[Answered]"


class Processor:
    """Takes messages from one source to one sink. A message alone does not wait for others.

    Ends at the end of the source, or after `stop` with what was begun committed.
    """

    def __init__(
        self,
        ends: Ends,
        answerer: Answerer,
        pace: Pace,
        progress: Progress,
        state: Memory | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._source, self._sink, self._dead = ends
        self._answerer = answerer
        self._pace = pace
        self._progress = progress
        self._state = state
        self._backoff = backoff or Backoff()
        self._stopping = asyncio.Event()
        sink = ends.sink
        self._transaction = sink if isinstance(sink, TransactionalSink) and sink.joins(ends.source) else None
        self._log = sink if self._transaction is not None and isinstance(sink, ChangeLog) else None
        self._steps = steps(self._transaction is not None, state is not None)
        self._flights: deque[Flight] = deque()
        self._changed = asyncio.Condition()
        self._committing = False
        self._over = False
        self._advanced = False
        self._moves: Moves | None = None

    @property
    def guarantee(self) -> Guarantee:
        """What this pair of ends promises of every answer."""
        tells = not isinstance(self._source, Renumbering)
        return guarantee(self._transaction is not None, tells and self._sink.remembers)

    def stop(self) -> None:
        """Finish what was polled, commit it, and end."""
        self._stopping.set()

    async def run(self) -> None:
        """Until the source ends or `stop`. Raises what no retry helps against; nothing is committed then."""
        waits = self._backoff.waits()
        while True:
            self._advanced = False
            try:
                await self._once()
                return
            except (StreamReset, StateUnwritable) as error:
                if self._stopping.is_set():
                    if isinstance(error, StreamReset):
                        return
                    raise
                if self._advanced:
                    waits = self._backoff.waits()
                self._progress.fault(error.message)
                await _pause(next(waits), self._stopping)

    async def _once(self) -> None:
        """Open the ends, go on until the end, close them."""
        async with AsyncExitStack() as closing:  # the source first, and all even if one cannot be closed
            if self._state is not None:
                closing.callback(self._state.close)
            for end in (self._dead, self._sink, self._source):
                closing.push_async_callback(end.close)
            answered = await self._insist(self._sink.open)
            await self._insist(self._dead.open)
            resume = self._recall(answered)
            await self._insist(lambda: self._source.open(resume))
            self._progress.opened()
            await self._go()

    async def _go(self) -> None:
        """Feed and settle, until both have ended or one has failed."""
        self._flights.clear()
        self._committing = self._over = False
        feeding, settling = asyncio.create_task(self._feed()), asyncio.create_task(self._settle_all())
        try:
            await asyncio.wait((feeding, settling), return_when=asyncio.FIRST_EXCEPTION)
            for task in (settling, feeding):
                if task.done():
                    task.result()
        finally:
            tasks: list[asyncio.Task[Any]] = [feeding, settling, *(flight.answered for flight in self._flights)]
            for task in tasks:
                task.cancel()
            async with self._changed:
                self._over = True
                self._changed.notify_all()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _recall(self, answered: Mapping[str, str]) -> Resume:
        """Open the state. With a sink that logs its changes, partitions that come bring theirs along."""
        if self._state is None:
            return Resume(answered)
        moves = self._moves = Moves(self._state, self._log)
        loop = asyncio.get_running_loop()

        def take(committed: Mapping[str, str | None]) -> Mapping[str, str]:
            return asyncio.run_coroutine_threadsafe(self._take(moves, committed), loop).result()

        return Resume(answered, moves.positions, take if self._log is not None else None)

    async def _take(self, moves: Moves, committed: Mapping[str, str | None]) -> Mapping[str, str]:
        """Nothing may be under way: state is one for all."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._over or not self._flights)
        if self._over:
            raise StreamReset("partitions came while the stream was closed")
        return await asyncio.to_thread(moves.restore, committed)

    async def _feed(self) -> None:
        """Poll, and begin what was polled. The last flight has no messages: the end."""
        messages: list[Message] | None = []
        while messages is not None and not self._stopping.is_set():
            async with self._changed:
                room = await self._changed.wait_for(self._room)
            try:
                messages = await self._insist(partial(_poll, self._source, room))
            except StreamReset:
                raise
            except StreamError:  # it is to end: what was polled before is committed all the same
                messages = None
            if messages:
                await self._begin(messages)
        await self._begin([])

    def _room(self) -> Room:
        self._progress.held = sum(flight.nbytes for flight in self._flights)
        return self._pace.room(len(self._flights), self._progress.held)

    async def _begin(self, messages: list[Message]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._committing)
            flight = Flight(messages, weight(messages), asyncio.create_task(self._answerer.answer(messages)))
            self._flights.append(flight)
            self._changed.notify_all()
        if not self._answerer.pipelined:
            await asyncio.wait((flight.answered,))

    async def _settle_all(self) -> None:
        """Take the steps of everything that is answered, the oldest first, as much at a time as there is."""
        ended = False
        while not ended:
            async with self._changed:
                await self._changed.wait_for(lambda: self._flights)
            group = [self._flights[0]]
            await asyncio.wait((group[0].answered,))
            # State is one for all: what is committed is everything that was begun, so nothing is begun meanwhile.
            self._committing = self._state is not None
            for flight in list(self._flights)[1:]:
                if self._committing:
                    await asyncio.wait((flight.answered,))
                elif not flight.answered.done():
                    break
                group.append(flight)
            ended = not group[-1].messages
            await self._settle(group)
            async with self._changed:
                for _ in group:
                    self._flights.popleft()
                self._committing = False
                self._changed.notify_all()

    async def _settle(self, group: Sequence[Flight]) -> None:
        messages: list[Message] = []
        records: list[Record] = []
        refused: list[Refusal] = []
        for flight in group:
            answered = flight.answered.result()
            messages += flight.messages
            records += answered.records
            refused += answered.refused
        if not messages:
            return
        self._pace.weigh(len(records), sum(len(record.value) for record in records))
        for step in self._steps:
            if step is Step.DEAD_LETTERS:
                await self._bury(refused)
            elif step is Step.PUBLISH:
                await self._publish(records)
            elif step is Step.TRANSACT:
                await self._transact(records, messages)
            elif step is Step.COMMIT:
                await self._insist(lambda: self._source.commit(messages))
            elif self._state is not None:
                await self._keep(self._state, positions(messages))
        self._advanced = True
        self._progress.done(records, self._source.lag())

    async def _publish(self, records: list[Record]) -> None:
        ours = [record for record in records if record.message.partition.held]
        await self._bury(await self._insist(lambda: self._sink.publish(ours)))

    async def _transact(self, records: list[Record], messages: list[Message]) -> None:
        """What the sink refuses is buried before its position is committed, so it takes a transaction without it."""
        transaction = self._transaction
        changes = () if self._state is None or self._log is None else self._state.changes(positions(messages))
        while transaction is not None and messages:
            refused = await transaction.transact(records, self._source, messages, changes)
            if not refused:
                return
            await self._bury(refused)
            never = {id(refusal.message) for refusal in refused}
            records = [record for record in records if id(record.message) not in never]

    async def _keep(self, state: Memory, ends: Mapping[str, str]) -> None:
        for wait_s in self._backoff.waits():
            try:
                state.commit(ends)
                if self._moves is not None:
                    self._moves.positions.update(ends)
                return
            except StateUnwritable as error:
                if self._stopping.is_set():
                    raise
                self._progress.fault(error.message)
                await _pause(wait_s, self._stopping)

    async def _bury(self, refused: Sequence[Refusal]) -> None:
        """Publish dead letters. A dead-letter sink that refuses one ends the processor: it must not be lost."""
        ours = [refusal for refusal in refused if refusal.message.partition.held and not refusal.message.replayed]
        if not ours:
            return
        letters = [encode_refusal(refusal) for refusal in ours]
        rejected = await self._insist(lambda: self._dead.publish(letters))
        if rejected:
            message = rejected[0].message
            raise ForetellError(
                f"the dead-letter sink refuses {message.partition.name} at {message.position}: {rejected[0].reason}."
                " Name another with --dead-letter"
            )
        self._progress.buried(len(ours))

    async def _insist(self, action: Callable[[], Awaitable[T]]) -> T:
        """Try again while an end is away; what waits meanwhile is bounded by `pace.py`."""
        for wait_s in self._backoff.waits():
            try:
                return await action()
            except StreamReset:
                raise
            except StreamError as error:
                if self._stopping.is_set():
                    raise
                self._progress.fault(error.message)
                await _pause(wait_s, self._stopping)
        raise AssertionError("waits() never ends")


async def _pause(seconds: float, stopping: asyncio.Event) -> None:
    """Wait, but not once it is to end."""
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        pass


async def _poll(source: Source, room: Room) -> list[Message] | None:
    """One that runs in a thread must not outlive its source: a cancelled caller waits for it."""
    task = asyncio.ensure_future(source.poll(room))
    try:
        return await asyncio.shield(task)
    finally:
        await asyncio.wait((task,))
