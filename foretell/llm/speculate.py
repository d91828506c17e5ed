"""Speculation: who guesses the next tokens of a sequence. How many guesses are worth a check is `draft_length`'s.

A guess that the model would have chosen itself spares a step; guesses never change what it says.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence as Items
from typing import NamedTuple, Protocol

from foretell.core.clock import Clock
from foretell.llm.executors.base import Executor, Work
from foretell.llm.kv_cache import KvCache
from foretell.llm.sequence import Sequence

MOST = 16
"""Guesses at a time."""
GRADES = 4
"""Offers are of grade 0 … 3."""


class Offer(NamedTuple):
    """Up to `most` guesses. `grade` tells offers of different trustworthiness apart, from 0, the least, to 3: how
    often guesses are right is learned for each grade. Making k guesses takes `fixed_s + k * token_s` seconds.
    """

    grade: int
    most: int
    fixed_s: float = 0.0
    token_s: float = 0.0


class Drafter(Protocol):
    """Guesses tokens. `offer` must be cheap: it is asked at every step of every sequence that decodes."""

    def offer(self, sequence: Sequence) -> Offer | None: ...

    def propose(self, asked: Items[tuple[Sequence, int]]) -> list[list[int]]:
        """So many guesses (or fewer) for each of the sequences, to each of which an offer was just made."""

    def forget(self, sequence: Sequence) -> None:
        """It ended."""


class NoDrafter:
    """Never guesses."""

    def offer(self, sequence: Sequence) -> Offer | None:
        return None

    def propose(self, asked: Items[tuple[Sequence, int]]) -> list[list[int]]:
        return [[] for _ in asked]

    def forget(self, sequence: Sequence) -> None:
        pass


class _Index:
    """Where the short runs of tokens of one text last ended, and how far it is indexed."""

    __slots__ = ("ends", "found", "upto")

    def __init__(self) -> None:
        self.ends: dict[tuple[int, ...], int] = {}
        self.upto = 0
        self.found = 0


class NGramDrafter:
    """Prompt lookup (Saxena 2023): the text goes on as it went on where its last tokens stood before.

    Looks for the last 4 tokens, then for the last 2. The grade is by how many tokens the two places agree in.
    """

    SIZES = (4, 2)
    BOUNDS = (4, 8, 16)
    """Matches shorter than 4 tokens are of grade 0, shorter than 8 of grade 1, and so on."""

    def __init__(self) -> None:
        self._indexes: dict[Sequence, _Index] = {}

    def offer(self, sequence: Sequence) -> Offer | None:
        index = self._indexes.get(sequence)
        if index is None:
            index = self._indexes[sequence] = _Index()
        tokens = sequence.tokens
        self._extend(index, tokens)
        for size in self.SIZES:
            found = index.ends.get(tuple(tokens[-size:]))
            if found is not None:
                index.found = found
                return Offer(self._grade(tokens, found, size), MOST)
        return None

    def propose(self, asked: Items[tuple[Sequence, int]]) -> list[list[int]]:
        return [self._continue(sequence, count) for sequence, count in asked]

    def forget(self, sequence: Sequence) -> None:
        self._indexes.pop(sequence, None)

    def _extend(self, index: _Index, tokens: list[int]) -> None:
        """Index what is new, but for the last token: nothing follows it yet."""
        ends = index.ends
        for size in self.SIZES:
            for end in range(max(index.upto, size), len(tokens)):
                ends[tuple(tokens[end - size : end])] = end
        index.upto = len(tokens)

    def _grade(self, tokens: list[int], found: int, length: int) -> int:
        last = len(tokens)
        while length < self.BOUNDS[-1] and length < found and tokens[found - length - 1] == tokens[last - length - 1]:
            length += 1
        return sum(length >= bound for bound in self.BOUNDS)

    def _continue(self, sequence: Sequence, count: int) -> list[int]:
        tokens, found = sequence.tokens, self._indexes[sequence].found
        drafts = tokens[found : found + count]
        period = len(tokens) - found
        while len(drafts) < count:  # what it copies is what it says: it goes round
            drafts.append(drafts[len(drafts) - period])
        return drafts


class _Held:
    """What a draft model's slot holds: the first `known` tokens of the text, then its own guesses but the last."""

    __slots__ = ("guesses", "known", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.known = 0
        self.guesses: list[int] = []

    def computed(self, tokens: list[int]) -> int:
        """How many of `tokens` are in the slot; one at least is left to run."""
        count, most = self.known, len(tokens) - 1
        for guess in self.guesses[:-1]:
            if count >= most or tokens[count] != guess:
                break
            count += 1
        return min(count, most)


class DraftModel:
    """A smaller model guesses, greedily (Leviathan et al. 2023, Chen et al. 2023, but that the check samples first
    and compares then). It must speak the same tokens; guesses beyond the target's `vocab` are dropped.

    Runs on an executor of its own, with a slot for each sequence that it guesses for; the one that was least recently
    asked for loses its slot when they are all taken.
    """

    CHUNK = 256
    """Prompt tokens in one run while it catches up."""
    PAYS_WITHIN = 64
    """Catching up with a prompt is charged to so many steps."""

    def __init__(self, executor: Executor, vocab: int, clock: Clock = time.monotonic) -> None:
        self._executor = executor
        self._vocab = vocab
        self._clock = clock
        self._kv = KvCache(executor.shape.slots, executor.shape.context)
        self._held: OrderedDict[Sequence, _Held] = OrderedDict()
        self._token_s = 0.0
        self._prompt_token_s = 0.0

    def offer(self, sequence: Sequence) -> Offer | None:
        tokens = sequence.tokens
        most = min(MOST, self._executor.shape.context - len(tokens))
        if most <= 0:
            return None
        held = self._held.get(sequence)
        need = len(tokens) - (0 if held is None else held.computed(tokens))
        fixed_s = (need - 1) * self._prompt_token_s / min(self.PAYS_WITHIN, sequence.left)
        return Offer(GRADES - 1, most, fixed_s, self._token_s)

    def propose(self, asked: Items[tuple[Sequence, int]]) -> list[list[int]]:
        served = asked[: self._executor.shape.slots]
        self._seat([sequence for sequence, _ in served])
        past = {sequence: self._held[sequence].computed(sequence.tokens) for sequence, _ in served}
        guesses: dict[Sequence, list[int]] = {sequence: [] for sequence, _ in asked}
        runs = list(served)
        while runs:
            works = []
            for sequence, _ in runs:
                start, known = past[sequence], sequence.tokens + guesses[sequence]
                tokens = known[start : start + self.CHUNK]
                works.append(Work(self._held[sequence].slot, start, tokens, int(start + len(tokens) == len(known))))
            best = iter(self._run(works))
            for (sequence, _), work in zip(runs, works, strict=True):
                past[sequence] += len(work.tokens)
                if work.outputs:
                    guesses[sequence].append(next(best))
            runs = [(s, n) for s, n in runs if len(guesses[s]) < n and max(guesses[s], default=0) < self._vocab]
        for sequence, _ in served:
            held = self._held[sequence]
            held.known, held.guesses = len(sequence.tokens), guesses[sequence]
        return [[token for token in guesses[sequence] if token < self._vocab] for sequence, _ in asked]

    def _run(self, works: list[Work]) -> list[int]:
        """The likeliest tokens; learns what a token costs."""
        started = self._clock()
        best: list[int] = self._executor.run(works).best.tolist()
        count = sum(len(work.tokens) for work in works)
        pace = (self._clock() - started) / count
        if count == len(works):
            self._token_s += 0.1 * (pace - self._token_s) if self._token_s else pace
        elif count >= 16 * len(works):
            self._prompt_token_s += 0.2 * (pace - self._prompt_token_s) if self._prompt_token_s else pace
        return best

    def forget(self, sequence: Sequence) -> None:
        held = self._held.pop(sequence, None)
        if held is not None:
            self._executor.release(held.slot)
            self._kv.give_back(held.slot)

    def _seat(self, sequences: list[Sequence]) -> None:
        """Give each a slot, and keep slots compact."""
        for sequence in sequences:
            if sequence in self._held:
                self._held.move_to_end(sequence)
        for sequence in sequences:
            if sequence not in self._held:
                if not self._kv.free_slots:
                    self.forget(next(iter(self._held)))
                self._held[sequence] = _Held(self._kv.take(self._executor.shape.context))
        moves = self._kv.compact()
        by_slot = {held.slot: held for held in self._held.values()} if moves else {}
        for source, target in moves:
            held = by_slot[source]
            held.slot = target
            self._executor.move(source, target, held.known + max(len(held.guesses) - 1, 0))
