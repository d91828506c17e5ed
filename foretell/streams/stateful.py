"""A micro-batch of messages → records, by a transform.py over keyed state, a model with a state of its own, or both.

State goes through a partition's messages in their order. Messages that were answered before go through it too, when
state has to catch up, and are not answered again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from foretell.core.errors import InvalidInput
from foretell.core.tensor import Signature, Tensors
from foretell.streams.answering import Answered, Reading, answered
from foretell.streams.asking import Answers, Asker
from foretell.streams.fit import ModelFit
from foretell.streams.message import Change, Message, Partition, Record, Refusal
from foretell.streams.protocol import Portion
from foretell.streams.recurrent import Recurrent
from foretell.streams.rows import Columns, Decoded, decode
from foretell.streams.state import StateStore
from foretell.streams.times import Times, event_times
from foretell.streams.transform import Transform
from foretell.streams.watermark import Marks


class Question(NamedTuple):
    """Messages of one partition, and their rows; with a transform their events, and what it made of them."""

    partition: str
    messages: list[Message]
    rows: list[Any]
    times: Times
    marks: Marks
    inputs: Tensors

    def of(self, places: list[int]) -> "Question":
        """Those of some of the messages."""
        return Question(
            self.partition,
            [self.messages[at] for at in places],
            [self.rows[at] for at in places],
            self.times[places],
            self.marks.of(places),
            {name: array[places] for name, array in self.inputs.items()},
        )

    def fresh(self) -> "Question":
        """Those that were not answered before."""
        if not any(message.replayed for message in self.messages):
            return self
        return self.of([at for at, message in enumerate(self.messages) if not message.replayed])


class Making(NamedTuple):
    """How events become inputs: by `transform`, or as they are by `columns`; `recurrent` adds what the model left."""

    transform: Transform | None
    columns: Columns | None
    recurrent: Recurrent | None = None
    time: str = ""
    """The field that is the time of an event; "" for the time that the source has."""


class Stateful:
    """Also the processor's `Memory`: `open` goes back to what was committed last."""

    def __init__(
        self,
        asker: Asker,
        reading: Reading,
        making: Making,
        signature: Signature,
        open_store: Callable[[], StateStore],
        told: Callable[[int, int], None] = lambda late, ahead: None,
    ) -> None:
        self.pipelined = making.recurrent is None
        self._asker = asker
        self._reading = reading
        self._making = making
        self._fit = ModelFit(signature, () if making.recurrent is None else making.recurrent.inputs)
        self._open_store = open_store
        self._told = told
        self._store: StateStore | None = None

    # The processor's memory

    def open(self) -> Mapping[str, str]:
        self.close()
        self._store = self._open_store()
        return self._store.positions()

    def changes(self, positions: Mapping[str, str]) -> list[Change]:
        return self._opened.changes(positions)

    def commit(self, positions: Mapping[str, str]) -> None:
        self._opened.commit(positions)

    def restore(self, partition: str, log: Iterable[Portion], enough: str | None) -> str | None:
        return self._opened.restore(partition, log, enough)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    @property
    def _opened(self) -> StateStore:
        if self._store is None:
            raise RuntimeError("the state was not opened")
        return self._store

    # The answers

    async def answer(self, messages: Sequence[Message]) -> Answered:
        """State changes before anything is awaited, so micro-batches change it in the order in which they are begun."""
        form, key, most_bytes = self._reading
        found = decode(messages, form, key, most_bytes)
        refused = list(found.refused)
        questions = [self._question(*part, refused) for part in _partitions(found)]
        if self._making.recurrent is not None:
            parts = [await self._in_waves(question, self._making.recurrent, refused) for question in questions]
            return Answered([record for part in parts for record in part.records], refused)
        return await self._at_once(questions, refused)

    def _question(
        self, partition: Partition, messages: list[Message], rows: list[Any], refused: list[Refusal]
    ) -> Question:
        messages, rows, times = self._timed(messages, rows, refused)
        transform = self._making.transform
        if transform is not None:
            events, wrong = self._events(rows)
            messages, rows, times = _without(wrong, messages, events, times, refused)
        marks = self._opened.advance(partition.name, times)
        question = Question(partition.name, messages, rows, times, marks, {})
        if transform is None or not messages:
            return question
        keys = [message.key for message in messages]
        features = transform.run(self._opened, partition.name, keys, times, marks, rows, self._fit)
        refused += [Refusal(messages[at], error.message) for at, error in features.failed.items()]
        self._told(len(features.late), len(features.ahead))
        kept = question if not features.failed else question.of(features.kept)
        return kept._replace(inputs=features.inputs)

    def _timed(
        self, messages: list[Message], rows: list[Any], refused: list[Refusal]
    ) -> tuple[list[Message], list[Any], Times]:
        if not self._making.time:
            return messages, rows, np.fromiter((message.time for message in messages), np.int64, len(messages))
        times, wrong = event_times(self._clock_values(rows))
        return _without(wrong, messages, rows, times, refused)

    def _events(self, rows: list[Any]) -> tuple[list[Any], dict[int, InvalidInput]]:
        """Rows as a transform sees them, and what is wrong with those that are none (None) by their place."""
        events: list[Any] = []
        wrong: dict[int, InvalidInput] = {}
        for row in rows:
            try:
                events.append(self._reading.form.event(row))
            except InvalidInput as error:
                wrong[len(events)] = error
                events.append(None)
        return events, wrong

    def _clock_values(self, rows: list[Any]) -> list[Any]:
        """None for an event without the field, which is no time."""
        form, name = self._reading.form, self._making.time
        try:
            return form.column(rows, name)
        except InvalidInput:
            return [form.event(row).get(name) for row in rows]

    async def _at_once(self, questions: list[Question], refused: list[Refusal]) -> Answered:
        """All partitions in one request where their rows are alike; without those that were answered before."""
        fresh = [question for each in questions if (question := each.fresh()).messages]
        records = [record for alike in _alike(fresh) for record in await self._together(alike, refused)]
        return Answered(records, refused)

    async def _together(self, questions: list[Question], refused: list[Refusal]) -> list[Record]:
        messages = [message for question in questions for message in question.messages]
        inputs = {name: np.concatenate([q.inputs[name] for q in questions]) for name in questions[0].inputs}
        answers = await self._asker.ask(len(messages), lambda part: self._tensors(inputs, part))
        return answered(messages, answers, refused, self._asker.batchable).records

    def _tensors(self, made: Tensors, part: slice) -> Tensors:
        """Some rows of what a transform made; a single one is the whole request of a model that takes no rows."""
        return {name: array[part if self._asker.batchable else part.start] for name, array in made.items()}

    async def _in_waves(self, question: Question, recurrent: Recurrent, refused: list[Refusal]) -> Answered:
        """One message of a key after the other; those of different keys together."""
        records: list[Record] = []
        for wave in recurrent.waves([message.key for message in question.messages]):
            part = question.of(wave)
            made = answered(part.messages, await self._wave(part, recurrent), [], self._asker.batchable)
            records += [record for record in made.records if not record.message.replayed]
            refused += made.refused
        place = {id(message): at for at, message in enumerate(question.messages)}
        return Answered(sorted(records, key=lambda record: place[id(record.message)]), [])

    async def _wave(self, wave: Question, recurrent: Recurrent) -> Answers:
        store, columns = self._opened, self._making.columns
        keys = [message.key for message in wave.messages]

        def moments(part: slice) -> tuple[list[bytes], Times, Marks]:
            return keys[part], wave.times[part], wave.marks.of(range(part.start, part.stop))

        def inputs_of(part: slice) -> Tensors:
            given = self._tensors(wave.inputs, part) if columns is None else columns.tensors(wave.rows[part])
            return given | recurrent.feed(store, wave.partition, *moments(part))

        answers = await self._asker.ask(len(keys), inputs_of)
        for piece in answers.pieces:
            part = slice(piece.start, piece.stop)
            response = piece.response
            response.outputs = recurrent.keep(store, wave.partition, *moments(part), response.outputs)
        return answers


def _without(
    wrong: Mapping[int, InvalidInput], messages: list[Message], rows: list[Any], times: Times, refused: list[Refusal]
) -> tuple[list[Message], list[Any], Times]:
    """Those that are not `wrong`; the others join `refused`."""
    if not wrong:
        return messages, rows, times
    refused += [Refusal(messages[at], error.message) for at, error in wrong.items()]
    good = [at for at in range(len(messages)) if at not in wrong]
    return [messages[at] for at in good], [rows[at] for at in good], times[good]


def _alike(questions: list[Question]) -> list[list[Question]]:
    """Those together whose rows have one shape; a model may leave it open."""
    groups: dict[tuple[tuple[int, ...], ...], list[Question]] = {}
    for question in questions:
        groups.setdefault(tuple(array.shape[1:] for array in question.inputs.values()), []).append(question)
    return list(groups.values())


def _partitions(found: Decoded) -> Iterator[tuple[Partition, list[Message], list[Any]]]:
    parts: dict[Partition, tuple[list[Message], list[Any]]] = {}
    for message, row in zip(found.messages, found.rows, strict=True):
        part = parts.get(message.partition)
        if part is None:
            part = parts[message.partition] = [], []
        part[0].append(message)
        part[1].append(row)
    return ((partition, *part) for partition, part in parts.items())
