"""Guesses where a grammar leaves no choice: the names, quotes and tags that constrained text must have next.

Knows grammars by their constraint only; all other text is another drafter's.
"""

from collections.abc import Sequence as Items

from foretell.llm.sequence import Sequence
from foretell.llm.speculate import GRADES, Drafter, Offer

LEAST = 2
"""One forced token is no gain over choosing it."""


class ForcedDrafter:
    """Guesses forced tokens (the jump-forward decoding of SGLang, here checked as any guess is: a model may cut the
    forced text into tokens in its own way). `other` guesses where nothing is forced."""

    def __init__(self, other: Drafter) -> None:
        self._other = other
        self._forced: dict[Sequence, list[int]] = {}

    def offer(self, sequence: Sequence) -> Offer | None:
        constraint = sequence.sampler.constraint
        if constraint is not None:
            forced = constraint.forced()
            if len(forced) >= LEAST:
                self._forced[sequence] = forced
                return Offer(GRADES - 1, len(forced))
            self._forced.pop(sequence, None)
        return self._other.offer(sequence)

    def propose(self, asked: Items[tuple[Sequence, int]]) -> list[list[int]]:
        free = [(sequence, count) for sequence, count in asked if sequence not in self._forced]
        guesses = iter(self._other.propose(free) if free else [])
        return [
            self._forced[sequence][:count] if sequence in self._forced else next(guesses) for sequence, count in asked
        ]

    def forget(self, sequence: Sequence) -> None:
        self._forced.pop(sequence, None)
        self._other.forget(sequence)
