"""One text being generated: what is known of it, how far it is computed, when it ends. Knows no slot's memory."""

import math
from collections.abc import Iterable
from typing import Literal

from foretell.llm.sampling import Sampler

Reason = Literal["stop", "length"]


class Acceptance:
    """How often a guessed token was right when those before it were: `right` of the last `tried` ones."""

    __slots__ = ("right", "tried")

    def __init__(self, right: float = 0.0, tried: float = 0.0) -> None:
        self.right = right
        self.tried = tried

    def learn(self, drafted: int, accepted: int, weight: float, memory: float) -> None:
        """Of `drafted` guesses the first `accepted` were right, and the next one, if any, was not.

        A draft counts as `weight` guesses at most, and `memory` of them are remembered: right guesses come in runs,
        and the end of a run is one wrong guess, which many right ones must not drown.
        """
        tried = min(accepted + 1, drafted)
        share = min(weight / tried, 1.0)
        self.right += accepted * share
        self.tried += tried * share
        if self.tried > memory:
            self.right *= memory / self.tried
            self.tried = memory


class Sequence:
    """Choice `choice` of request `number`.

    `tokens` are all known ones: the prompt and what was generated, which is `count` of them. `computed` of them have
    their keys and values in slot `slot` (-1: in none). It ends with a token of `stop_ids` ("stop"), after
    `max_tokens` generated ones or where the context is full ("length"). `deadline`: seconds on the engine's clock.
    `priority`: smaller ones run earlier. `repeatable`: it should come out the same the next time, so nothing is
    guessed for it: kernels round a token that is checked among guesses otherwise than one that is decoded, and how much
    is guessed hangs on what steps cost. The rest is
    written by the engine: `cached`, prompt tokens that the prefix cache had when it first left the queue (-1: it never
    did); `drafted` and `accepted` tokens of speculation.
    """

    __slots__ = (
        "acceptance",
        "accepted",
        "cached",
        "choice",
        "computed",
        "deadline",
        "drafted",
        "ended",
        "max_tokens",
        "number",
        "order",
        "priority",
        "prompt_length",
        "repeatable",
        "sampler",
        "slot",
        "stop_ids",
        "tokens",
    )

    def __init__(
        self,
        number: int,
        choice: int,
        prompt: Iterable[int],
        sampler: Sampler,
        stop_ids: Iterable[int] = (),
        max_tokens: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> None:
        self.number = number
        self.choice = choice
        self.tokens = list(prompt)
        self.prompt_length = len(self.tokens)
        self.sampler = sampler
        self.stop_ids = frozenset(stop_ids)
        self.max_tokens = max_tokens
        self.priority = priority
        self.deadline = math.inf if deadline is None else deadline
        self.order: tuple[int, float, int] = (priority, 0.0, 0)
        """Its place among all others, smaller first: priority, when it is due, when it came."""
        self.slot = -1
        self.computed = 0
        self.cached = -1
        self.drafted = 0
        self.accepted = 0
        self.acceptance: dict[int, Acceptance] = {}
        """What was learned of guesses for it, by their grade."""
        self.ended = False
        self.repeatable = False

    @property
    def count(self) -> int:
        """Generated tokens."""
        return len(self.tokens) - self.prompt_length

    @property
    def need(self) -> int:
        """Known tokens that are not computed. 1: the next run decodes it; more: its prompt is being read."""
        return len(self.tokens) - self.computed

    @property
    def left(self) -> int:
        """How many tokens may still be generated, the context aside."""
        return (1 << 60) if self.max_tokens is None else self.max_tokens - self.count

    def append(self, token: int, context: int) -> Reason | None:
        """Take in the next token; why the sequence ends with it, or None."""
        self.tokens.append(token)
        self.sampler.accept(token)
        if token in self.stop_ids:
            return "stop"
        if self.left <= 0 or len(self.tokens) >= context:
            return "length"
        return None
