"""The account of one generation: what its events add up to, closed as one observation."""

import time
from array import array

import msgspec
import numpy as np

from foretell.core.generation import Chat, Event, Finished, GenerateRequest, Piece, Started
from foretell.core.observation import Observation, TokenUse
from foretell.core.tensor import Tensor
from foretell.plane.deployment import Deployment
from foretell.plane.generating import Generation
from foretell.plane.observer import Observer, count_failure


class _Choice:
    """One of the answers: when its last piece came, and how many tokens its pieces had."""

    __slots__ = ("last", "tokens")

    def __init__(self) -> None:
        self.last = 0.0
        self.tokens = 0


class Account:
    """Made when the request arrives; then `routed`, `admitted`, and `add` of every event. The last `Finished` closes
    it as done, whatever else ends the request calls `close`. It is closed once; later calls change nothing.
    """

    def __init__(self, observer: Observer, request: GenerateRequest) -> None:
        self._observer = observer
        self._request = request
        self._at = time.time()
        self._began = time.monotonic()
        self._deployment: Deployment | None = None
        self._generation: Generation | None = None
        self._use = TokenUse()
        self._gaps = array("f")
        self._choices: dict[int, _Choice] = {}
        self._open = request.n
        self._texts: dict[int, list[str]] | None = {} if observer.sampled() else None
        self._closed = False

    def routed(self, deployment: Deployment) -> None:
        """Which version answers."""
        self._deployment = deployment

    def admitted(self, generation: Generation) -> None:
        """It waits or runs now. Whatever closes the account cancels it, if it has not ended."""
        self._generation = generation

    def add(self, event: Event) -> None:
        """Count an event, as it goes out."""
        if isinstance(event, Piece):
            self._add_piece(event)
        elif isinstance(event, Started):
            self._use.prompt_tokens, self._use.cached_tokens = event.prompt_tokens, event.cached_tokens
        elif isinstance(event, Finished):
            use = self._use
            # Its own count is right also where pieces held back tokens (a stop text) or repeated the prompt.
            use.completion_tokens += event.completion_tokens - self._choice(event.choice).tokens
            use.drafted_tokens += event.drafted_tokens
            use.accepted_tokens += event.accepted_tokens
            self._open -= 1
            if not self._open:
                self.close("done")

    def _add_piece(self, event: Piece) -> None:
        choice = self._choice(event.choice)
        if event.tokens:
            now = time.monotonic()
            if choice.last:
                self._gaps.append(now - choice.last)
            elif not self._use.first_token_s:
                self._use.first_token_s = now - self._began
            choice.last = now
            choice.tokens += len(event.tokens)
            self._use.completion_tokens += len(event.tokens)
        if self._texts is not None:
            self._texts.setdefault(event.choice, []).append(event.text)

    def _choice(self, number: int) -> _Choice:
        choice = self._choices.get(number)
        if choice is None:
            choice = self._choices[number] = _Choice()
        return choice

    def close(self, outcome: str, error: str = "") -> None:
        """Make the observation, and add to the version's statistics."""
        if self._closed:
            return
        self._closed = True
        self._use.gaps = self._gaps.tobytes()
        queue_s = compute_s = busy_s = dollars = 0.0
        batch_rows = 0
        now = time.monotonic()
        total_s, request = now - self._began, self._request
        if self._generation is not None:
            self._generation.close()
            stream = self._generation.stream
            busy_s = stream.cost_s
            if stream.started is not None:
                queue_s, compute_s, batch_rows = stream.started - stream.arrived, now - stream.started, request.n
        name = version = ""
        if self._deployment is not None:
            name, version = self._deployment.spec.name, self._deployment.spec.version
            dollars = busy_s * self._deployment.dollars_per_second
            self._count(self._deployment, outcome, (total_s, queue_s, compute_s))
        observation = Observation(
            name,
            version,
            outcome,
            self._at,
            total_s,
            queue_s,
            compute_s,
            request.n,
            batch_rows,
            False,
            request.protocol,
            request.id,
            dollars,
            error,
            tokens=self._use,
        )
        if self._texts is not None:
            observation.inputs = {"text_input": _column([_prompt(request)])}
            texts = ["".join(self._texts.get(choice, ())) for choice in range(request.n)]
            observation.outputs = {"text_output": _column(texts)}
        self._observer.record(observation)

    def _count(self, deployment: Deployment, outcome: str, seconds: tuple[float, float, float]) -> None:
        if outcome != "done":
            count_failure(deployment, outcome)
            return
        statistics = deployment.statistics
        total_s, queue_s, compute_s = seconds
        statistics.succeeded += 1
        statistics.inferences += self._request.n
        statistics.queue_s += queue_s
        statistics.compute_s += compute_s
        statistics.total_s += total_s
        statistics.last_inference_ms = int(self._at * 1000)


def _prompt(request: GenerateRequest) -> str:
    """The prompt as it was given: text, or JSON of the ids or the conversation."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return prompt
    return msgspec.json.encode(prompt.messages if isinstance(prompt, Chat) else prompt).decode()


def _column(texts: list[str]) -> Tensor:
    column = np.empty(len(texts), dtype=object)
    column[:] = [text.encode(errors="replace") for text in texts]
    return column
