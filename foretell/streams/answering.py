"""A micro-batch of messages → records and refusals: decode, map, ask, encode. With state see `stateful.py`."""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from foretell.streams.answers import encode_answers
from foretell.streams.asking import Answers, Asker
from foretell.streams.message import MOST_BYTES, Message, Record, Refusal
from foretell.streams.rows import Columns, Format, decode


class Reading(NamedTuple):
    """How messages are read: their form, the field that is the key ("" for the source's own), and the largest."""

    form: Format
    key: str = ""
    most_bytes: int = MOST_BYTES


class Answered(NamedTuple):
    """A record or a refusal for every message that was not answered before, each in the order of the messages."""

    records: list[Record]
    refused: list[Refusal]


class Answerer(Protocol):
    """What the processor asks. `pipelined`: the next micro-batch may be begun before this one has ended."""

    @property
    def pipelined(self) -> bool: ...

    async def answer(self, messages: Sequence[Message]) -> Answered: ...


class Plain:
    """Every message for itself."""

    pipelined = True

    def __init__(self, asker: Asker, reading: Reading, columns: Columns) -> None:
        self._asker = asker
        self._reading = reading
        self._columns = columns

    async def answer(self, messages: Sequence[Message]) -> Answered:
        form, key, most_bytes = self._reading
        found = decode(messages, form, key, most_bytes)
        answers = await self._asker.ask(len(found.rows), lambda part: self._columns.tensors(found.rows[part]))
        return answered(found.messages, answers, found.refused, self._asker.batchable)


def answered(messages: list[Message], answers: Answers, refused: list[Refusal], batchable: bool) -> Answered:
    """The records of what was answered; what went wrong joins `refused`."""
    now_ms = int(time.time() * 1000)
    records: list[Record] = []
    for piece in answers.pieces:
        part = messages[piece.start : piece.stop]
        records += encode_answers(part, piece.response.outputs, piece.model, batchable, now_ms)
    refused += [Refusal(messages[at], answers.wrong[at]) for at in sorted(answers.wrong)]
    return Answered(records, refused)
