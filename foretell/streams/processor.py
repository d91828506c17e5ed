"""The loop: poll → decode → ask → encode → publish → commit, the next micro-batch polled while one is computed."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from foretell.core.errors import StreamError
from foretell.streams.asking import Asker
from foretell.streams.commit import Guarantee, Step, guarantee, steps
from foretell.streams.json_format import encode_refusal
from foretell.streams.message import Message, Record, Refusal, positions
from foretell.streams.progress import Progress
from foretell.streams.protocol import Sink, Source, StreamReset, TransactionalSink
from foretell.streams.retry import Backoff

T = TypeVar("T")

MOST = 1024
"""Messages of a micro-batch; at most two of these are in memory."""


class Processor:
    """Takes messages of one source to one sink. A message alone does not wait; a full one is never larger than `most`.

    Ends at the end of the source, or after `stop` with what was begun committed.
    """

    def __init__(
        self, source: Source, sink: Sink, dead: Sink, asker: Asker, progress: Progress, most: int = MOST
    ) -> None:
        self._source = source
        self._sink = sink
        self._dead = dead
        self._asker = asker
        self._progress = progress
        self._most = most
        self._backoff = Backoff()
        self._stopping = asyncio.Event()
        self._transaction = sink if isinstance(sink, TransactionalSink) and sink.joins(source) else None
        self._steps = steps(self._transaction is not None)

    @property
    def guarantee(self) -> Guarantee:
        """What this pair of ends promises of every answer."""
        return guarantee(self._transaction is not None, bool(getattr(self._sink, "remembers", False)))

    def stop(self) -> None:
        """Finish what was polled, commit it, and end."""
        self._stopping.set()

    async def run(self) -> None:
        """Until the source ends or `stop`. Raises what no retry helps against; nothing is committed then."""
        for wait_s in self._backoff.waits():
            try:
                await self._once()
                return
            except StreamReset as error:
                if self._stopping.is_set():
                    return
                self._progress.trouble = error.message
                await asyncio.sleep(wait_s)

    async def _once(self) -> None:
        """Open the ends, go on until the end, close them."""
        try:
            held = await self._insist(self._sink.open)
            await self._insist(self._dead.open)
            await self._source.open(held)
            await self._loop()
        finally:
            for end in (self._source, self._sink, self._dead):
                await end.close()

    async def _loop(self) -> None:
        polled = asyncio.ensure_future(self._source.poll(self._most))
        try:
            while (messages := await polled) is not None:
                ending = self._stopping.is_set()
                if not ending:
                    polled = asyncio.ensure_future(self._source.poll(self._most))
                if messages:
                    await self._step(messages)
                if ending:
                    break
        finally:
            await asyncio.wait([polled])  # a poll in a thread must not outlive the source

    async def _step(self, messages: list[Message]) -> None:
        records, refused = await self._asker.answer(messages)
        ends = positions(messages)
        for step in self._steps:
            if step is Step.DEAD_LETTERS:
                await self._bury(refused)
            elif step is Step.PUBLISH:
                await self._bury(await self._insist(lambda: self._sink.publish(records)))
            elif step is Step.TRANSACT:
                assert self._transaction is not None
                await self._bury(await self._transaction.transact(records, self._source, ends))
            else:
                await self._insist(lambda: self._source.commit(ends))
        self._progress.done(records, self._source.lag())

    async def _bury(self, refused: Sequence[Refusal]) -> None:
        """Publish dead letters. A dead-letter sink that refuses one ends the processor: it must not be lost."""
        if not refused:
            return
        letters = [Record(encode_refusal(refusal), refusal.message) for refusal in refused]
        rejected = await self._insist(lambda: self._dead.publish(letters))
        if rejected:
            message = rejected[0].message
            raise StreamError(
                f"the dead-letter sink refuses {message.partition} at {message.position}: {rejected[0].reason}."
                " Name another with --dead-letter"
            )
        self._progress.dead += len(refused)

    async def _insist(self, action: Callable[[], Awaitable[T]]) -> T:
        """Try again while an end is away; what waits meanwhile is two micro-batches at most."""
        for wait_s in self._backoff.waits():
            try:
                return await action()
            except StreamReset:
                raise
            except StreamError as error:
                if self._stopping.is_set():
                    raise
                self._progress.trouble = error.message
                await asyncio.sleep(wait_s)
        raise AssertionError("waits() never ends")
