"""Who runs in the next step: decoding streams, chunks of prompts, who enters, who is sent back. Pure.

There are no phases (after vLLM's scheduler): every sequence has computed tokens, which catch up with its known ones.
One that lacks a single token decodes; one that lacks more reads its prompt (again, after a preemption).
"""

from bisect import insort
from collections.abc import Sequence as Tokens
from operator import attrgetter
from typing import NamedTuple

from foretell.llm.executors.base import Block
from foretell.llm.kv_cache import PAGE, KvCache
from foretell.llm.prefix_cache import PrefixCache
from foretell.llm.sequence import Sequence

_ORDER = attrgetter("order")
KEPT = 2
"""Tokens of a prompt that are computed though the prefix cache knows them: the last one's scores are wanted, and one
alone would run as a decode, which kernels round otherwise than a prompt: an answer would hang on what was cached."""


class Budget(NamedTuple):
    """How many prompt tokens a step may read: `chunk` while streams decode, which wait for it; `alone` otherwise.

    A run has its fixed cost, so no chunk is cut below `least` tokens just to use a budget up.
    """

    chunk: int = 64
    alone: int = 512
    least: int = 16


class Departure(NamedTuple):
    """A sequence that lost its slot; `length` tokens were computed in it."""

    sequence: Sequence
    slot: int
    length: int


class Entry(NamedTuple):
    """A sequence that got a slot; `blocks` of the prefix cache are its first tokens."""

    sequence: Sequence
    blocks: list[Block]


class Plan(NamedTuple):
    """One step, in the order in which it is to be done; moves are (source, target, length).

    `decodes` run one token each, `chunks` as many as stand with them.
    """

    preempted: list[Departure]
    moves: list[tuple[int, int, int]]
    entered: list[Entry]
    decodes: list[Sequence]
    chunks: list[tuple[Sequence, int]]


class Scheduler:
    """Waiting and running sequences. `kv` and `cache` are the books that it writes and reads."""

    def __init__(self, kv: KvCache, cache: PrefixCache, budget: Budget) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._kv = kv
        self._cache = cache
        self._budget = budget
        self._soonest = float("inf")

    def add(self, sequence: Sequence) -> None:
        """Let it wait at its place in the order."""
        insort(self.waiting, sequence, key=_ORDER)
        self._soonest = min(self._soonest, sequence.deadline)

    def remove(self, sequence: Sequence) -> Departure | None:
        """Take it out wherever it is; what it leaves behind if it had a slot."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return None
        departure = Departure(sequence, sequence.slot, sequence.computed)
        self.running.remove(sequence)
        self._kv.give_back(sequence.slot)
        sequence.slot, sequence.computed = -1, 0
        return departure

    def expired(self, now: float) -> list[Sequence]:
        """Those whose deadline has passed."""
        if now < self._soonest:
            return []
        everyone = self.running + self.waiting
        self._soonest = min((s.deadline for s in everyone if s.deadline > now), default=float("inf"))
        return [s for s in everyone if s.deadline <= now]

    def plan(self) -> Plan:
        preempted: list[Departure] = []
        budget = self._budget.alone
        if any(len(s.tokens) - s.computed == 1 for s in self.running):
            budget = self._budget.chunk
        entered = self._admit(budget, preempted) if self.waiting else []
        # What a token more needs is reserved before anything runs; the most urgent are served first.
        self.running.sort(key=_ORDER)
        at = 0
        while at < len(self.running):
            sequence = self.running[at]
            if self._kv.grow(sequence.slot, len(sequence.tokens)):
                at += 1
            else:
                preempted.append(self._preempt(self.running[-1]))
        moves = self._compact({entry.sequence for entry in entered})
        decodes = [s for s in self.running if len(s.tokens) - s.computed == 1]
        return Plan(preempted, moves, entered, decodes, self._chunks(budget))

    def _chunks(self, budget: int) -> list[tuple[Sequence, int]]:
        """Share the step's prompt tokens out, the most urgent first."""
        chunks: list[tuple[Sequence, int]] = []
        for sequence in self.running:
            need = sequence.need
            if need > 1:
                count = min(need, budget)
                if chunks and count < min(need, self._budget.least):
                    break
                if need - count == 1 and count > 1:  # a last token alone would run, and be rounded, as a decode
                    count -= 1
                chunks.append((sequence, count))
                budget -= count
        return chunks

    def _admit(self, budget: int, preempted: list[Departure]) -> list[Entry]:
        """Give slots to those that wait, in order, as far as there is memory and they would run in this step."""
        entered = []
        at = 0
        while at < len(self.waiting):
            sequence = self.waiting[at]
            ahead = sum(s.need for s in self.running if s.order < sequence.order and s.need > 1)
            if ahead and budget - ahead < min(sequence.need, self._budget.least):
                break
            if self._is_being_read(sequence):
                at += 1
                continue
            if not self._make_room(sequence, preempted):
                break
            self.waiting.remove(sequence)
            blocks = self._cache.match(sequence.tokens, len(sequence.tokens) - KEPT)
            sequence.slot = self._kv.take(len(sequence.tokens))
            sequence.computed = len(blocks) * self._cache.block_tokens
            self.running.append(sequence)
            entered.append(Entry(sequence, blocks))
        return entered

    def _make_room(self, sequence: Sequence, preempted: list[Departure]) -> bool:
        """Whether it may enter now; sends less important ones back for it. Each running one keeps a page to grow."""
        while True:
            tokens = self._kv.pages(len(sequence.tokens)) + PAGE * len(self.running)
            if self._kv.free_slots and tokens <= self._kv.room:
                return True
            if not self.running:
                return False
            last = max(self.running, key=_ORDER)
            if last.priority <= sequence.priority:
                return False
            preempted.append(self._preempt(last))

    def _preempt(self, sequence: Sequence) -> Departure:
        """Send it back to the queue, to its old place; what was computed is computed again."""
        departure = self.remove(sequence)
        assert departure is not None
        self.add(sequence)
        return departure

    def _is_being_read(self, sequence: Sequence) -> bool:
        """A running sequence that is no less urgent reads the same text, and waiting for it costs less than reading it
        here again."""
        size = self._cache.block_tokens
        for leader in self.running if size else ():
            need = leader.need
            if need > 1 and leader.priority <= sequence.priority:
                shared = _shared(leader.tokens, sequence.tokens, size)
                if shared > need:
                    known = len(self._cache.match(sequence.tokens, shared)) * size
                    if shared - known > need:
                        return True
        return False

    def _compact(self, entered: set[Sequence]) -> list[tuple[int, int, int]]:
        """The moves that keep slots compact. What has just entered has nothing to be moved yet."""
        moves = self._kv.compact()
        if not moves:
            return []
        by_slot = {sequence.slot: sequence for sequence in self.running}
        done = []
        for source, target in moves:
            sequence = by_slot[source]
            sequence.slot = target
            if sequence not in entered:
                done.append((source, target, sequence.computed))
        return done


def _shared(a: Tokens[int], b: Tokens[int], size: int) -> int:
    """How many tokens a and b begin with in common, in whole blocks beside which b keeps some tokens to compute."""
    most = min(len(a), len(b) - KEPT) // size * size
    shared = 0
    while shared < most and a[shared : shared + size] == b[shared : shared + size]:
        shared += size
    return shared
