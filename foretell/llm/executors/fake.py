"""An executor for tests: the next token is a function of all tokens in the slot, and wrong use of slots is noticed.

Public as part of `foretell.testing`'s promise: scheduling, caching and speculation must never change what it says.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foretell.llm.executors.base import Block, Scores, Shape, Work

Next = Callable[[Sequence[int]], int]
"""The likeliest token after these."""

_MASK = (1 << 64) - 1


def hashed(vocab: int) -> Next:
    """The next token is a hash (FNV-1a) of all tokens before."""

    def follow(tokens: Sequence[int]) -> int:
        state = 0xCBF29CE484222325
        for token in tokens:
            state = (state ^ token) * 0x100000001B3 & _MASK
        return (state >> 20) % vocab

    return follow


class FakeBlock(NamedTuple):
    """Tokens in place of their keys and values."""

    tokens: tuple[int, ...]
    nbytes: int


class FakeExecutor:
    """`follow` names the likeliest token; its logit stands `peak` above the others, which are uniform in [0, 1) and
    depend on all tokens too: `peak` 0 makes sampling near-uniform, 30 near-certain.

    `spend` is called with the works of every run: tests count there, advance a clock, or raise. `heads` is k of
    `Scores`. Raises AssertionError when a slot does not hold what a work says it holds, or slots are not compact.
    """

    def __init__(
        self,
        shape: Shape,
        follow: Next | None = None,
        peak: float = 4.0,
        spend: Callable[[Sequence[Work]], None] | None = None,
        heads: int = 8,
    ) -> None:
        self._shape = shape
        self._follow = follow or hashed(shape.vocab)
        self._peak = peak
        self._spend = spend
        self._heads = min(heads, shape.vocab)
        self.slots: list[list[int]] = [[] for _ in range(shape.slots)]
        self.runs = 0

    @property
    def shape(self) -> Shape:
        return self._shape

    def run(self, works: Sequence[Work]) -> Scores:
        self.runs += 1
        assert works, "a run without works"
        assert len({work.slot for work in works}) == len(works), "a slot has two works in one run"
        rows = []
        for work in works:
            held = self.slots[work.slot]
            assert work.tokens, f"slot {work.slot} has no tokens to run"
            assert 0 <= work.outputs <= len(work.tokens), f"slot {work.slot} wants scores of tokens that do not run"
            assert len(held) >= work.past, f"slot {work.slot} holds {len(held)} tokens, the work says {work.past}"
            held[work.past :] = work.tokens
            assert len(held) <= self._shape.context, f"slot {work.slot} is beyond its context"
            rows += [self.logits(held[: len(held) - back]) for back in range(work.outputs - 1, -1, -1)]
        self._check_compact()
        if self._spend is not None:
            self._spend(works)
        return Scores(np.array(rows, np.float32).reshape(len(rows), self._shape.vocab), self._heads)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """What follows `tokens`, float32 [vocab]: also for tests to compute what should come."""
        seed = hash(tuple(tokens)) & 0xFFFFFFFF
        logits = np.random.Generator(np.random.PCG64(seed)).random(self._shape.vocab, np.float32)
        logits[self._follow(tokens)] += self._peak
        return logits

    def move(self, source: int, target: int, length: int) -> None:
        assert not self.slots[target], f"slot {target} is not free"
        assert len(self.slots[source]) >= length, f"slot {source} does not hold {length} tokens"
        self.slots[target], self.slots[source] = self.slots[source][:length], []

    def read(self, slot: int, start: int, stop: int) -> FakeBlock:
        assert 0 <= start < stop <= len(self.slots[slot]), f"slot {slot} does not hold [{start}, {stop})"
        return FakeBlock(tuple(self.slots[slot][start:stop]), (stop - start) * self._shape.token_bytes)

    def write(self, slot: int, start: int, block: Block) -> None:
        assert isinstance(block, FakeBlock)
        assert len(self.slots[slot]) >= start, f"slot {slot} has a hole before {start}"
        self.slots[slot][start:] = block.tokens

    def release(self, slot: int) -> None:
        self.slots[slot] = []

    def close(self) -> None:
        self.slots = []

    def _check_compact(self) -> None:
        held = [slot for slot, tokens in enumerate(self.slots) if tokens]
        assert held == list(range(len(held))), f"slots {held} hold tokens: they are not the first ones"
