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


_BITS = 20
_PAIR, _QUAD = (1 << 2 * _BITS) - 1, (1 << 4 * _BITS) - 1


class _Index:
    """Where each run of two and of four tokens of a text last ended. Runs are keyed by their tokens' bits in one
    number, which rolls on from token to token; a key that happens to be another run's only makes a bad guess."""

    __slots__ = ("found", "key", "pairs", "quads", "upto")

    def __init__(self) -> None:
        self.pairs: dict[int, int] = {}
        self.quads: dict[int, int] = {}
        self.key = 0
        self.upto = 0
        self.found = 0

    def find(self, tokens: list[int]) -> int:
        """Where the text's last four tokens, or else its last two, ended before; 0 if they did not."""
        key, pairs, quads = self.key, self.pairs, self.quads
        for end in range(self.upto + 1, len(tokens)):  # not the last token: nothing follows it yet
            key = (key << _BITS | tokens[end - 1]) & _QUAD
            pairs[key & _PAIR] = quads[key] = end
        self.key, self.upto = key, len(tokens) - 1
        key = (key << _BITS | tokens[-1]) & _QUAD
        self.found = quads.get(key) or pairs.get(key & _PAIR, 0)
        return self.found


class NGramDrafter:
    """Prompt lookup (Saxena 2023): the text goes on as it went on where its last tokens stood before.

    Looks for the last four tokens, then for the last two; the latest place counts. The grade is by how many tokens
    the two places agree in.
    """

    BOUNDS = (4, 8, 16)
    """Places that agree in fewer than 4 tokens are of grade 0, in fewer than 8 of grade 1, and so on."""

    def __init__(self) -> None:
        self._indexes: dict[Sequence, _Index] = {}

    def offer(self, sequence: Sequence) -> Offer | None:
        index = self._indexes.get(sequence)
        if index is None:
            index = self._indexes[sequence] = _Index()
        found = index.find(sequence.tokens)
        return Offer(self._grade(sequence.tokens, found), MOST) if found else None

    def propose(self, asked: Items[tuple[Sequence, int]]) -> list[list[int]]:
        return [self._continue(sequence.tokens, self._indexes[sequence].found, count) for sequence, count in asked]

    def forget(self, sequence: Sequence) -> None:
        self._indexes.pop(sequence, None)

    def _grade(self, tokens: list[int], found: int) -> int:
        length, last = 0, len(tokens)
        while length < self.BOUNDS[-1] and length < found and tokens[found - length - 1] == tokens[last - length - 1]:
            length += 1
        return sum(length >= bound for bound in self.BOUNDS)

    @staticmethod
    def _continue(tokens: list[int], found: int, count: int) -> list[int]:
        guesses = tokens[found : found + count]
        period = len(tokens) - found
        while len(guesses) < count:  # it copies what it says itself, round and round
            guesses.append(guesses[-period])
        return guesses


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

    Runs on an executor of its own, with a slot for each sequence that it guesses for, and at most `capacity` tokens in
    them together (None: all slots may be full). Those that were least recently asked for make room.
    """

    CHUNK = 256
    """Prompt tokens in one run while it catches up."""
    PAYS_WITHIN = 64
    """Catching up with a prompt is charged to so many steps."""

    def __init__(
        self, executor: Executor, vocab: int, clock: Clock = time.monotonic, capacity: int | None = None
    ) -> None:
        self._executor = executor
        self._vocab = vocab
        self._clock = clock
        self._kv = KvCache(executor.shape.slots, executor.shape.context, capacity)
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
        served = self._seat(asked)
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

    def _seat(self, asked: Items[tuple[Sequence, int]]) -> list[tuple[Sequence, int]]:
        """Those of `asked` that have a slot with room for their text and guesses. Keeps slots compact."""
        for sequence, _ in asked:
            if sequence in self._held:
                self._held.move_to_end(sequence)
        busy = {sequence for sequence, _ in asked}
        served = [(s, count) for s, count in asked if self._has_room(s, len(s.tokens) + count, busy)]
        moves = self._kv.compact()
        by_slot = {held.slot: held for held in self._held.values()} if moves else {}
        for source, target in moves:
            held = by_slot[source]
            held.slot = target
            self._executor.move(source, target, held.known + max(len(held.guesses) - 1, 0))
        return served

    def _has_room(self, sequence: Sequence, tokens: int, busy: set[Sequence]) -> bool:
        """Give it room for so many tokens; forgets others for it, but none of `busy`."""
        while True:
            held = self._held.get(sequence)
            if held is not None and self._kv.grow(held.slot, tokens):
                return True
            if held is None and self._kv.free_slots and self._kv.pages(tokens) <= self._kv.room:
                self._held[sequence] = _Held(self._kv.take(tokens))
                return True
            oldest = next((other for other in self._held if other not in busy), None)
            if oldest is None:
                return False
            self.forget(oldest)
