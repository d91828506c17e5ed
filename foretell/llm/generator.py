"""`LlmGenerator`: requests in, events out, over an engine that knows token ids only.

Owns the requests that are under way; what a request means is `intake`'s, what its tokens say is `choice`'s.
"""

import secrets
from collections.abc import Callable

from foretell.core.errors import ForetellError, ModelFailed
from foretell.core.generation import Event, GenerateRequest, Load, Piece, Started
from foretell.llm.choice import Choice, Reason
from foretell.llm.engine import Emitted, Engine
from foretell.llm.grammar import Constraint
from foretell.llm.intake import Intake, Prepared
from foretell.llm.sampling import Sampler
from foretell.llm.sequence import Sequence
from foretell.llm.text import Tokenizer

Said = tuple[int, Event | ForetellError]


class _Run:
    """One choice under way: its sequence in the engine, its text here."""

    __slots__ = ("choice", "constraint", "sequence")

    def __init__(self, sequence: Sequence, choice: Choice, constraint: Constraint | None) -> None:
        self.sequence = sequence
        self.choice = choice
        self.constraint = constraint


class _Request:
    """A request under way: the choices that are not over, by their numbers."""

    __slots__ = ("echo", "prompt_tokens", "runs", "started")

    def __init__(self, prepared: Prepared, runs: list[_Run]) -> None:
        self.echo = prepared.echo
        self.prompt_tokens = len(prepared.prompt)
        self.runs = {run.choice.number: run for run in runs}
        self.started = False


class LlmGenerator:
    """A `core.model.Generator`. `close` gives back what the engine runs on.

    A step's tokens of a choice are merged into one piece. A request of which one choice fails fails as a whole.
    """

    def __init__(self, engine: Engine, intake: Intake, tokenizer: Tokenizer, close: Callable[[], None]) -> None:
        self._engine = engine
        self._intake = intake
        self._tokenizer = tokenizer
        self._close = close
        self._requests: dict[int, _Request] = {}

    def submit(self, number: int, request: GenerateRequest) -> None:
        """Check the request, make its prompt, compile its grammar, and queue its `n` sequences.

        Choice i draws with seed + i. Raises `InvalidInput` or `Overloaded`; then nothing of it is kept.
        """
        prepared = self._intake.prepare(request)
        seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        runs = [self._run(number, at, seed + at, prepared, request) for at in range(request.n)]
        self._engine.add(*[run.sequence for run in runs])
        self._requests[number] = _Request(prepared, runs)

    def cancel(self, number: int) -> None:
        """Drop a request wherever it is; unknown numbers are ignored."""
        request = self._requests.pop(number, None)
        for run in request.runs.values() if request else ():
            self._engine.cancel(run.sequence)

    def step(self) -> list[Said]:
        """Run one step of the engine and say what came of it; [] when there is nothing to do."""
        said: list[Said] = []
        for emitted in self._engine.step():
            request = self._requests.get(emitted.sequence.number)
            if request is None:
                continue  # another choice of it failed in this very step
            if emitted.error is not None:
                self._fail(emitted.sequence.number, emitted.error, said)
                continue
            if not request.started:
                self._start(request, emitted.sequence, said)
            if emitted.tokens:
                self._take(request, emitted, said)
        return said

    def load(self) -> Load:
        return self._engine.load()

    def close(self) -> None:
        for number in list(self._requests):
            self.cancel(number)
        self._close()

    def _run(self, number: int, at: int, seed: int, prepared: Prepared, request: GenerateRequest) -> _Run:
        stops = request.stops
        constraint = self._intake.constraint(prepared)
        banned = prepared.stop_ids if stops.min_tokens else ()
        sampler = Sampler(
            prepared.sampling, seed, prepared.prompt, constraint, request.logprobs, banned, stops.min_tokens
        )
        sequence = Sequence(
            number,
            at,
            prepared.prompt,
            sampler,
            prepared.stop_ids,
            prepared.max_tokens,
            request.priority,
            request.deadline,
        )
        sequence.repeatable = request.sampling.seed is not None
        choice = Choice(
            at, self._tokenizer, prepared.prompt, stops.stop, stops.min_tokens, prepared.tools, request.logprobs
        )
        return _Run(sequence, choice, constraint)

    def _start(self, request: _Request, sequence: Sequence, said: list[Said]) -> None:
        request.started = True
        number = sequence.number
        said.append((number, Started(request.prompt_tokens, max(sequence.cached, 0))))
        if request.echo:
            said.extend((number, Piece(choice, request.echo, [])) for choice in request.runs)

    def _take(self, request: _Request, emitted: Emitted, said: list[Said]) -> None:
        sequence, tokens, reason, _ = emitted
        run = request.runs.get(sequence.choice)
        if run is None:
            return
        number = sequence.number
        silent = reason == "stop"
        if run.constraint is not None and run.constraint.finished:
            if problem := run.constraint.error:
                failure = ModelFailed(f"the grammar could not be followed to its end: {problem}")
                self._fail(number, failure, said)
                return
            reason = reason or "stop"
        events, reason = run.choice.take(tokens, reason, silent)
        said.extend([(number, event) for event in events])
        if reason is not None:
            self._finish(number, request, run, reason, said)

    def _finish(self, number: int, request: _Request, run: _Run, reason: Reason, said: list[Said]) -> None:
        sequence = run.sequence
        # Where the text ended by itself (a stop text, a finished grammar) the engine does not know of it.
        self._engine.cancel(sequence)
        said.append((number, run.choice.finished(reason, sequence.drafted, sequence.accepted)))
        del request.runs[run.choice.number]
        if not request.runs:
            del self._requests[number]

    def _fail(self, number: int, error: ForetellError, said: list[Said]) -> None:
        self.cancel(number)
        said.append((number, error))
