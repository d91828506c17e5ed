"""ModelStreamInfer: the requests of one stream, several at a time.

A request that predicts has one answer, in the order of such requests; one that generates has many, as they come.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from foretell.server import oip_pb2
from foretell.server.grpc_method import Message, explain


class Generating(Protocol):
    """Answers requests with any number of answers each."""

    def takes(self, message: Message) -> bool:
        """Whether the request is one for it."""

    def answer(self, message: Message, deadline: float | None) -> AsyncGenerator[Message, None]:
        """The `ModelInferResponse`s of a request. Raises `ForetellError`."""


class InferStream:
    """`infer` answers a request once, `generating` the others; `window` of one stream run at a time."""

    def __init__(
        self, infer: Callable[[Message, float | None], Awaitable[Message]], generating: Generating, window: int
    ) -> None:
        self._infer = infer
        self._generating = generating
        self._window = window

    async def answer(self, messages: AsyncIterator[Message], deadline: float | None) -> AsyncGenerator[Message, None]:
        """Answer a stream. An error answers its own request (`error_message`) and leaves the stream open."""
        slots = asyncio.Semaphore(self._window)
        answers: asyncio.Queue[asyncio.Task[Message] | Message | None] = asyncio.Queue()
        running: set[asyncio.Task[Message] | asyncio.Task[None]] = set()

        async def generate(message: Message) -> None:
            try:
                async with aclosing(self._generating.answer(message, deadline)) as parts:
                    async for part in parts:
                        answers.put_nowait(oip_pb2.ModelStreamInferResponse(infer_response=part))
            except Exception as error:
                answers.put_nowait(_refusal(message, error))
            slots.release()

        async def read() -> None:
            generations = []
            try:
                async for message in messages:
                    await slots.acquire()
                    task: asyncio.Task[Message] | asyncio.Task[None]
                    if self._generating.takes(message):
                        task = asyncio.create_task(generate(message))
                        generations.append(task)
                    else:
                        task = asyncio.create_task(self._one(message, deadline))
                        answers.put_nowait(task)
                    running.add(task)
                    task.add_done_callback(running.discard)
                await asyncio.gather(*generations)
            finally:
                answers.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (answer := await answers.get()) is not None:
                if isinstance(answer, asyncio.Task):
                    yield await answer
                    slots.release()
                else:
                    yield answer
            await reader
        finally:
            for task in (reader, *running):
                task.cancel()

    async def _one(self, message: Message, deadline: float | None) -> Message:
        try:
            return oip_pb2.ModelStreamInferResponse(infer_response=await self._infer(message, deadline))
        except Exception as error:
            return _refusal(message, error)


def _refusal(message: Message, error: Exception) -> Message:
    return oip_pb2.ModelStreamInferResponse(
        error_message=explain(error).message, infer_response=oip_pb2.ModelInferResponse(id=message.id)
    )
