"""Rows of a table → generations of the plane → columns. As many at a time as the replicas hold sequences."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pyarrow as pa

from foretell.batch.part import Scored
from foretell.batch.prompts import COUNTS, PromptQuestion
from foretell.batch.scoring import BLAMED, together
from foretell.batch.spec import PROTOCOL
from foretell.batch.tuning import Sizes
from foretell.core.generation import Finished, GenerateRequest, Piece, Started
from foretell.core.reference import Reference
from foretell.plane.plane import Plane

PARTS_OF = 4
"""A part has so many times the sequences that run at a time: few wait at its end, and a kill costs little."""

Spent = Callable[[str], float]
"""What the generation of an id cost, once it is over."""


class Answer(msgspec.Struct):
    """What a model said to one prompt."""

    text: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0


class PromptScorer:
    """Asks a language model. `slots`: generations under way at a time."""

    def __init__(
        self,
        plane: Plane,
        reference: Reference,
        question: PromptQuestion,
        slots: int,
        spent: Spent,
        dollars_per_second: float,
    ) -> None:
        self.question = question
        self._plane = plane
        self._reference = reference
        self._width = slots
        self._slots = asyncio.Semaphore(slots)
        self._spent = spent
        self._dollars_per_second = dollars_per_second

    async def sizes(self, table: pa.Table, row_bytes: float) -> Sizes:
        """A prompt is a request of its own; nothing needs to be tried."""
        return Sizes(1, PARTS_OF * self._width)

    async def score(self, table: pa.Table, batch_rows: int) -> Scored:
        asked = self.question.requests(table, PROTOCOL)
        failed = {row: "a column of the prompt is null" for row, request in enumerate(asked) if request is None}
        # Those that begin alike one after the other: the model finds the beginning in its prefix cache.
        order = sorted((row for row in range(len(asked)) if row not in failed), key=lambda row: _beginning(asked[row]))
        answers: dict[int, Answer] = {}
        rows: dict[int, dict[str, Any]] = {}

        async def ask(row: int) -> None:
            request = asked[row]
            assert request is not None
            try:
                answers[row] = answer = await self._ask(request)
                rows[row] = self.question.answer(answer.text)
            except BLAMED as error:
                failed[row] = error.message

        await together(ask(row) for row in order)
        dollars = sum(answer.dollars for answer in answers.values())
        columns = self._columns([(rows[row], answers[row]) for row in sorted(rows)])
        return Scored(columns, failed, dollars / self._dollars_per_second if dollars else 0.0, dollars)

    async def _ask(self, request: GenerateRequest) -> Answer:
        request.id = uuid.uuid4().hex
        answer = Answer()
        async with self._slots, contextlib.aclosing(self._plane.generate(self._reference, request)) as events:
            async for event in events:
                if isinstance(event, Piece):
                    answer.text += event.text
                elif isinstance(event, Started):
                    answer.prompt_tokens = event.prompt_tokens
                elif isinstance(event, Finished):
                    answer.reason, answer.completion_tokens = event.reason, event.completion_tokens
        answer.dollars = self._spent(request.id)
        return answer

    def _columns(self, rows: list[tuple[dict[str, Any], Answer]]) -> dict[str, pa.Array]:
        found: dict[str, pa.Array] = {}
        for field in self.question.makes:
            values = [
                getattr(answer, {"finish_reason": "reason"}.get(field.name, field.name))
                if field.name in COUNTS.names
                else said[field.name]
                for said, answer in rows
            ]
            found[field.name] = pa.array(values, field.type)
        return found


def _beginning(request: GenerateRequest | None) -> str:
    if request is None:
        return ""
    prompt = request.prompt
    return prompt if isinstance(prompt, str) else msgspec.json.encode(prompt).decode()
