"""Reads streamed answers in OpenAI's shape: server-sent events from bytes in any pieces, and what one answer's events
say of its tokens and their times. Pure: bytes and times are passed in.
"""

from typing import Any

import msgspec

from foretell.bench.llm.measure import Answer
from foretell.bench.load import RequestFailed

DONE = b"[DONE]"


class NoText(RequestFailed):
    """A complete answer without any text."""


class EventReader:
    """Splits a stream of server-sent events, fed in any pieces, into their data (several data lines are joined by a
    line feed, comments and other fields left out; https://html.spec.whatwg.org/multipage/server-sent-events.html).
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that `piece` completes."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Chunk)


class AnswerReader:
    """Follows one streamed answer: `feed` bytes as they come, then `answer`."""

    def __init__(self, sent: float) -> None:
        self._sent = sent
        self._events = EventReader()
        self._times: list[float] = []
        self._usage: _Usage | None = None
        self._complete = False

    def feed(self, now: float, piece: bytes) -> None:
        """Take in bytes that came at `now` (of the clock of `sent`). Raises `RequestFailed` for an event that is an
        error or not of this shape.
        """
        for data in self._events.feed(piece):
            if data == DONE:
                self._complete = True
                continue
            try:
                chunk = _DECODER.decode(data)
            except msgspec.DecodeError as error:
                raise RequestFailed("malformed event") from error
            if chunk.error is not None:
                raise RequestFailed("error in the stream")
            if chunk.usage is not None:
                self._usage = chunk.usage
            for choice in chunk.choices:
                self._complete = self._complete or choice.finish_reason is not None
                if _says(choice):
                    self._times.append(now - self._sent)

    def answer(self) -> Answer:
        """What the whole stream was. Raises `RequestFailed` where it was cut off or said nothing."""
        if not self._complete:
            raise RequestFailed("stream cut off")
        if not self._times:
            raise NoText("no text")
        usage = self._usage
        if usage is None or not usage.completion_tokens:
            return Answer(self._times, len(self._times))
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
        return Answer(self._times, usage.completion_tokens, usage.prompt_tokens, cached or 0, counted=True)


def _says(choice: _Choice) -> bool:
    delta = choice.delta
    if delta is None:
        return bool(choice.text)
    return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)
