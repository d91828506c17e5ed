"""Spreads generations over replicas and keeps their books: admits, routes, moves what a dead replica never began.

A replica takes any number of generations at a time and orders them itself, so nothing waits here but what finds no
replica. It reacts to events (submit, heard, lost, …) and never blocks; every admitted generation ends once.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from foretell.core.clock import Clock
from foretell.core.errors import ForetellError, NotReady, ReplicaCrashed
from foretell.core.generation import Chat, Event, Finished, GenerateRequest, Piece, Started
from foretell.core.settings import BatchingSettings
from foretell.scheduling.admission import admit

TYPICAL_TOKENS = 256
"""What a choice without `max_tokens` is expected to say, when replicas are compared."""

MAX_STRIKES = 3
"""A request that has not begun to speak survives fewer deaths of its replica than this; on trial, none."""

TRIAL_S = 5.0
"""A suspect that has done no harm for so long only waits its turn; the next one is tried beside it."""

_BYTES_PER_TOKEN = 4
_FORGET = 0.2


class Listener(Protocol):
    """Who asked: hears every event in order, then the end, once."""

    def hear(self, event: Event, /) -> None: ...
    def end(self, error: ForetellError | None, /) -> None: ...


class StreamLane(Protocol):
    """A ready replica as the router sees it. `streams` is what it holds, by number; the router takes out what ended."""

    @property
    def streams(self) -> "dict[int, Stream]": ...

    def send(self, stream: "Stream") -> None:
        """Pass a request to the replica. Raises `InvalidInput`; then nothing of it is kept."""

    def cancel(self, stream: "Stream") -> None:
        """Tell the replica that nobody waits for this one."""


class Stream:
    """An admitted generation. `cost_s` is its share of the replicas' busy time, known when it has ended.

    `spoke`: something of the answer is out, so it cannot begin anew elsewhere. `strikes`: how many replicas died that
    held it before it spoke; such suspects are tried one at a time, so that the one that kills replicas is found.
    """

    __slots__ = (
        "arrived", "cost_s", "lane", "left", "listener", "number", "over", "prompt_tokens", "request", "said", "spoke",
        "started", "strikes", "tokens",
    )  # fmt: skip

    def __init__(self, number: int, request: GenerateRequest, listener: Listener, arrived: float) -> None:
        self.number = number
        self.request = request
        self.listener = listener
        self.arrived = arrived
        self.started: float | None = None
        self.lane: StreamLane | None = None
        self.left = request.n
        self.said = 0
        self.tokens = 0
        self.prompt_tokens = _estimate(request)
        self.cost_s = 0.0
        self.strikes = 0
        self.spoke = self.over = False

    @property
    def rows(self) -> int:
        """Sequences it asks for."""
        return self.request.n

    @property
    def deadline(self) -> float | None:
        return self.request.deadline

    @property
    def expected_tokens(self) -> int:
        """Tokens that are still to be run for it, roughly."""
        limit = self.request.stops.max_tokens
        most = self.rows * (TYPICAL_TOKENS if limit is None else limit)
        return (0 if self.spoke else self.prompt_tokens) + max(self.left, most - self.said)


class Generations:
    """One deployment's router. `lanes` is the live list of ready replicas; `queued` counts the sequences that have
    not started.
    """

    def __init__(
        self, settings: BatchingSettings, lanes: Sequence[StreamLane], clock: Clock, idempotent: bool = True
    ) -> None:
        self.queued = 0
        self.unavailable: ForetellError | None = None
        self._settings = settings
        self._lanes = lanes
        self._clock = clock
        self._idempotent = idempotent
        self._numbers = itertools.count(1)
        self._streams: dict[int, Stream] = {}
        self._waiting: deque[Stream] = deque()
        self._suspects: deque[Stream] = deque()
        self._trial: Stream | None = None
        self._tried_at = 0.0
        self._stopped = False
        self._turn_s = 0.0
        self._turned_at = 0.0
        self._unpaid_s = 0.0
        self._unpaid_tokens = 0

    @property
    def outstanding(self) -> int:
        """Generations that wait or run."""
        return len(self._streams)

    def estimated_wait(self) -> float:
        """Seconds until a request that arrives now would start: those before it, at the pace of the last starts."""
        return self.queued * self._turn_s

    def submit(self, request: GenerateRequest, listener: Listener) -> Stream:
        """Admit a request and send it on its way, or raise why not (`Overloaded`, `DeadlineExceeded`, `NotReady`)."""
        if self.unavailable is not None:
            raise self.unavailable
        now = self._clock()
        stream = Stream(next(self._numbers), request, listener, now)
        admit(stream, self._settings, queued_rows=self.queued, wait_s=self.estimated_wait(), now=now)
        if not self.queued:
            self._turned_at = now
        self._streams[stream.number] = stream
        self.queued += stream.rows
        self._waiting.append(stream)
        self._pump()
        return stream

    def drop(self, stream: Stream, error: ForetellError) -> None:
        """End a generation now, wherever it is: its client went away or its deadline passed."""
        if not stream.over:
            if stream.lane is not None:
                stream.lane.cancel(stream)
            self._end(stream, error)

    # What replicas report

    def stepped(self, seconds: float) -> None:
        """A replica ran a step. Heard before the step's events."""
        self._unpaid_s += seconds
        if self._trial is not None and self._clock() - self._tried_at > TRIAL_S:
            self._acquit(self._trial)

    def heard(self, stream: Stream, event: Event | ForetellError) -> None:
        """Something came of a generation that a replica holds."""
        if stream.over:
            return
        if isinstance(event, ForetellError):
            self._end(stream, event)
            return
        if isinstance(event, Started):
            first = stream.started is None
            self._begun(stream, event)
            if first:
                stream.listener.hear(event)
            self._acquit(stream)
            return
        if isinstance(event, Piece):
            stream.said += len(event.tokens)
            self._ran(stream, len(event.tokens))
        stream.spoke = True
        stream.listener.hear(event)
        if isinstance(event, Finished):
            stream.left -= 1
            if not stream.left:
                self._end(stream, None)

    def lost(self, lane: StreamLane, reason: str) -> None:
        """A replica died. What had spoken ends here; the rest is tried again (if the model is idempotent)."""
        for stream in list(lane.streams.values()):
            stream.strikes += 1
            if stream.spoke:
                self._end(stream, ReplicaCrashed(f"{reason} in the middle of this answer"))
            elif stream is self._trial or stream.strikes == MAX_STRIKES or not self._idempotent:
                self._end(stream, ReplicaCrashed(f"{reason} while it held this request ({stream.strikes} times)"))
            elif self._stopped and self.unavailable is not None:
                self._end(stream, self.unavailable)
            else:
                del lane.streams[stream.number]
                stream.lane = None
                self._suspects.append(stream)
        self._pump()

    # Coming and going of the whole

    def stop(self, error: ForetellError) -> None:
        """Refuse new requests with `error` and fail those that wait for a replica."""
        self.unavailable = error
        self._stopped = True
        for stream in [*self._waiting, *self._suspects]:
            self._end(stream, error)
        self._waiting.clear()
        self._suspects.clear()

    def resume(self) -> None:
        """A replica is ready (again): take requests, unless the version is draining."""
        if self._stopped:
            self._stopped, self.unavailable = False, None
        self._pump()

    def refuse(self) -> None:
        """Refuse new requests; those admitted go on to their end (graceful drain)."""
        self.unavailable = NotReady("this version is being replaced; retry")

    def abandon(self, error: ForetellError) -> None:
        """End everything now with `error`."""
        self.stop(error)
        for stream in list(self._streams.values()):
            self.drop(stream, error)

    # Inside

    def _pump(self) -> None:
        while self._lanes and self._waiting:
            self._send(self._waiting.popleft())
        while self._lanes and self._suspects and self._trial is None:
            stream = self._suspects.popleft()
            if not stream.over:
                self._trial, self._tried_at = stream, self._clock()
            self._send(stream)

    def _send(self, stream: Stream) -> None:
        if stream.over:
            return
        lane = self._lanes[0] if len(self._lanes) == 1 else min(self._lanes, key=_load)
        try:
            lane.send(stream)
        except ForetellError as error:
            self._end(stream, error)
        else:
            stream.lane = lane
            lane.streams[stream.number] = stream

    def _begun(self, stream: Stream, event: Started) -> None:
        now = self._clock()
        if stream.started is None:
            self.queued -= stream.rows
            turn_s = (now - self._turned_at) / stream.rows
            self._turn_s += _FORGET * (turn_s - self._turn_s)
            self._turned_at = now
            stream.started = now
        stream.prompt_tokens = event.prompt_tokens
        self._ran(stream, event.prompt_tokens - event.cached_tokens)

    def _ran(self, stream: Stream, tokens: int) -> None:
        stream.tokens += tokens
        self._unpaid_tokens += tokens

    def _acquit(self, stream: Stream) -> None:
        """If it is the one on trial: it did no harm, the next one is tried."""
        if stream is self._trial:
            self._trial = None
            self._pump()

    def _end(self, stream: Stream, error: ForetellError | None) -> None:
        if stream.over:
            return
        stream.over = True
        del self._streams[stream.number]
        if stream.lane is not None:
            stream.lane.streams.pop(stream.number, None)
            stream.lane = None
        if stream.started is None:
            self.queued -= stream.rows
        if stream.tokens:
            # The busy time that nobody has paid yet, shared by the tokens that nobody has paid yet.
            stream.cost_s = self._unpaid_s * stream.tokens / self._unpaid_tokens
            self._unpaid_s -= stream.cost_s
            self._unpaid_tokens -= stream.tokens
        stream.listener.end(error)
        self._acquit(stream)


def _load(lane: StreamLane) -> int:
    return sum(stream.expected_tokens for stream in lane.streams.values())


def _estimate(request: GenerateRequest) -> int:
    """Tokens of a prompt that has not been tokenized yet."""
    prompt = request.prompt
    if isinstance(prompt, Chat):
        return sum(_length(message.get("content")) for message in prompt.messages) // _BYTES_PER_TOKEN
    return len(prompt) // _BYTES_PER_TOKEN if isinstance(prompt, str) else len(prompt)


def _length(content: object) -> int:
    if isinstance(content, str):
        return len(content)
    parts: Sequence[object] = content if isinstance(content, list) else ()
    return sum(len(str(part.get("text", ""))) for part in parts if isinstance(part, dict))
