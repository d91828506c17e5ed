"""Messages → requests of the plane → records. A message that cannot be answered is refused alone; faults of the
service are waited out. Knows no broker.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol

from foretell.core.errors import InvalidInput, ModelFailed, NotReady, Overloaded, ReplicaCrashed
from foretell.core.reference import Reference
from foretell.core.request import Request, Response
from foretell.core.tensor import Tensors
from foretell.streams.json_format import encode_answers
from foretell.streams.message import Message, Record, Refusal
from foretell.streams.retry import Backoff

PROTOCOL = "stream"
"""How these requests are called in observations."""

BLAMED = (InvalidInput, ModelFailed, ReplicaCrashed)
"""Errors that a message can be the cause of."""
PASSING = (Overloaded, NotReady)
"""Errors that pass, whatever the message."""


class Door(Protocol):
    """What is needed of the plane."""

    async def infer(self, reference: Reference, request: Request) -> Response: ...


class Format(Protocol):
    """Turns messages into rows, and rows into tensors."""

    def decode(self, messages: Sequence[Message]) -> tuple[list[Message], list[Any], list[Refusal]]: ...

    def tensors(self, rows: Sequence[Any]) -> Tensors: ...


class Asker:
    """Asks one model. `batchable`: it takes many rows at once."""

    def __init__(self, plane: Door, reference: Reference, form: Format, batchable: bool, backoff: Backoff) -> None:
        self._plane = plane
        self._reference = reference
        self._format = form
        self._batchable = batchable
        self._backoff = backoff

    async def answer(self, messages: Sequence[Message]) -> tuple[list[Record], list[Refusal]]:
        """A record or a refusal for every message, records in their order."""
        good, rows, refused = self._format.decode(messages)
        size = max(1, len(good)) if self._batchable else 1
        records: list[Record] = []
        for at in range(0, len(good), size):
            records += await self._ask(good[at : at + size], rows[at : at + size], refused)
        return records, refused

    async def _ask(self, messages: list[Message], rows: list[Any], refused: list[Refusal]) -> list[Record]:
        """Halves what fails until the message to blame is alone."""
        try:
            inputs = self._format.tensors(rows)
            response = await self._infer(inputs, len(rows))
        except BLAMED as error:
            if len(rows) == 1:
                refused.append(Refusal(messages[0], error.message))
                return []
        else:
            model = f"{response.model}@{response.version}"
            now = int(time.time() * 1000)
            values = encode_answers(messages, response.outputs, model, self._batchable, now)
            return [Record(value, message) for value, message in zip(values, messages, strict=True)]
        middle = len(rows) // 2
        first = await self._ask(messages[:middle], rows[:middle], refused)
        return first + await self._ask(messages[middle:], rows[middle:], refused)

    async def _infer(self, inputs: Tensors, rows: int) -> Response:
        for wait_s in self._backoff.waits():
            try:
                return await self._plane.infer(self._reference, Request(inputs, rows, protocol=PROTOCOL, whole=True))
            except PASSING:
                await asyncio.sleep(wait_s)
        raise AssertionError("waits() never ends")
