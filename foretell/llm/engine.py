"""The engine: sequences in, tokens out, one step of the model at a time. Owns the order of things within a step.

What runs is the scheduler's to say, where keys and values lie is in the books of `kv_cache`, what is guessed is
`speculate`'s and how far `draft_length`'s, which token comes is `sampling`'s. It knows no text and no request.
"""

import logging
import time
from dataclasses import dataclass
from typing import NamedTuple

from foretell.core.clock import Clock
from foretell.core.errors import ContextExceeded, DeadlineExceeded, ForetellError, InvalidInput, Overloaded
from foretell.core.generation import Load
from foretell.llm.draft_length import DraftLength, Verified
from foretell.llm.executors.base import Executor
from foretell.llm.kv_cache import KvCache
from foretell.llm.prefix_cache import NoPrefixCache, PrefixCache
from foretell.llm.sampling import Sampled
from foretell.llm.scheduler import Budget, Departure, Plan, Scheduler
from foretell.llm.sequence import Reason, Sequence
from foretell.llm.speculate import Drafter, NoDrafter, Offer
from foretell.llm.turn import Turn, choose, failed

logger = logging.getLogger(__name__)

MIN_RETRY_S = 0.05
MAX_RETRY_S = 60.0
PROMPT_TOKEN_S = 0.002
"""By so much a longer prompt is due later for each of its tokens: short ones overtake it, none for ever."""


@dataclass(frozen=True)
class EngineSettings:
    """`kv_bytes` of keys and values at a time (None: every slot may be full); at most `max_waiting` in the queue."""

    budget: Budget = Budget()
    kv_bytes: int | None = None
    max_waiting: int = 1024


class Emitted(NamedTuple):
    """What a step did for a sequence: it chose `tokens` (none: it left the queue), and ended it if there is a
    `reason` or an `error`. Every sequence ends once, unless it is cancelled: then nothing more is said of it.
    """

    sequence: Sequence
    tokens: list[Sampled]
    reason: Reason | None = None
    error: ForetellError | None = None


class Engine:
    """Not thread-safe; `step` runs the model once and returns at once when there is nothing to do.

    The executor is the caller's: it is closed by whoever made it, after the engine's last step.
    """

    def __init__(
        self,
        executor: Executor,
        settings: EngineSettings = EngineSettings(),
        cache: PrefixCache | None = None,
        drafter: Drafter | None = None,
        lengths: DraftLength | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        shape = executor.shape
        capacity = None if settings.kv_bytes is None else settings.kv_bytes // shape.token_bytes
        self._executor = executor
        self._settings = settings
        self._shape = shape
        self._clock = clock
        self._kv = KvCache(shape.slots, shape.context, capacity)
        self._cache = NoPrefixCache() if cache is None else cache
        self._drafter = NoDrafter() if drafter is None else drafter
        self._lengths = DraftLength() if lengths is None else lengths
        self._scheduler = Scheduler(self._kv, self._cache, settings.budget)
        self._serial = 0
        self._finish_gap_s = 1.0
        self._last_finish = clock()

    def add(self, *sequences: Sequence) -> None:
        """Take in all of them, or raise `InvalidInput` or `Overloaded` and keep none."""
        for sequence in sequences:
            self._check_fits(sequence)
        waiting = len(self._scheduler.waiting)
        if waiting + len(sequences) > self._settings.max_waiting:
            retry = min(max(self._finish_gap_s * waiting, MIN_RETRY_S), MAX_RETRY_S)
            raise Overloaded(
                f"{waiting} sequences wait already and the queue holds {self._settings.max_waiting};"
                f" retry in {retry:.1f} s",
                retry,
            )
        now = self._clock()
        for sequence in sequences:
            self._serial += 1
            due = now + sequence.prompt_length * PROMPT_TOKEN_S
            sequence.order = (sequence.priority, min(due, sequence.deadline), self._serial)
            self._scheduler.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End it now, silently: its client left, or the caller found its own end of the text, such as a stop string.

        Ended sequences are ignored. What it computed stays in the prefix cache.
        """
        if not sequence.ended:
            self._leave(sequence)

    def step(self) -> list[Emitted]:
        """Run the model once; [] when there is nothing to do."""
        emitted = [self._expire(sequence) for sequence in self._scheduler.expired(self._clock())]
        plan = self._scheduler.plan()
        emitted += self._arrange(plan)
        started = self._clock()
        turns = self._draft(plan.decodes)
        turns += [Turn(sequence, count, []) for sequence, count in plan.chunks]
        if turns:
            self._advance(turns)
            self._learn(turns[: len(plan.decodes)], None if plan.chunks else self._clock() - started)
            emitted += self._record(turns)
        return emitted

    def load(self) -> Load:
        running = self._scheduler.running
        return Load(
            running=len(running),
            waiting=len(self._scheduler.waiting),
            kv_tokens=sum(sequence.computed for sequence in running),
            kv_capacity=self._kv.capacity,
            cached_tokens=self._cache.tokens,
            hit_tokens=self._cache.hit_tokens,
            missed_tokens=self._cache.missed_tokens,
            saved_s=self._lengths.saved_s,
        )

    def check(self) -> None:
        """Raise AssertionError unless the books balance. For tests, and for idle moments."""
        self._kv.check()
        self._cache.check()
        running = self._scheduler.running
        held = self._shape.slots - self._kv.free_slots
        assert sorted(s.slot for s in running) == sorted({s.slot for s in running}), "two sequences share a slot"
        assert held == len(running), f"{held} slots are held by {len(running)} sequences"
        assert all(s.computed < len(s.tokens) <= self._kv.longest for s in running), "a sequence has outrun itself"
        assert all(s.slot < 0 and not s.computed for s in self._scheduler.waiting), "a sequence waits with a slot"
        assert not any(s.ended for s in running + self._scheduler.waiting), "an ended sequence is still here"

    def _check_fits(self, sequence: Sequence) -> None:
        length, context, longest = sequence.prompt_length, self._shape.context, self._kv.longest
        if not length:
            raise InvalidInput("the prompt has no tokens; send some text")
        if length >= context:
            raise ContextExceeded(
                f"the prompt has {length} tokens and the model's context holds {context}, one of them at least for the"
                f" answer; shorten the prompt by {length - context + 1} tokens"
            )
        if length >= longest:
            raise InvalidInput(
                f"the prompt has {length} tokens and KV memory holds {longest}; shorten it, or give the engine more"
                " memory"
            )
        if sequence.max_tokens is not None and sequence.max_tokens < 1:
            raise InvalidInput(f"max_tokens is {sequence.max_tokens}; ask for at least 1")
        if min(sequence.tokens) < 0 or max(sequence.tokens) >= self._shape.vocab:
            wrong = next(t for t in sequence.tokens if not 0 <= t < self._shape.vocab)
            raise InvalidInput(f"token {wrong} of the prompt is none of the model's {self._shape.vocab}")

    def _arrange(self, plan: Plan) -> list[Emitted]:
        """Bring the slots into the order that the plan wants; says who left the queue."""
        for departure in plan.preempted:
            self._clear(departure)
        for source, target, length in plan.moves:
            self._executor.move(source, target, length)
        started = []
        for sequence, blocks in plan.entered:
            for number, block in enumerate(blocks):
                self._executor.write(sequence.slot, number * self._cache.block_tokens, block)
            if sequence.cached < 0:
                sequence.cached = sequence.computed
                self._cache.count(sequence.cached, sequence.prompt_length - sequence.cached)
                started.append(Emitted(sequence, []))
        return started

    def _draft(self, decodes: list[Sequence]) -> list[Turn]:
        """The turns of the sequences that decode, with guesses where these are worth their check."""
        asked: list[tuple[Sequence, Offer]] = []
        for sequence in decodes:
            offer = None if sequence.repeatable else self._drafter.offer(sequence)
            if offer is not None:
                most = min(offer.most, sequence.left - 1, self._kv.longest - len(sequence.tokens) - 1)
                if most > 0:
                    asked.append((sequence, offer if most == offer.most else offer._replace(most=most)))
        if not asked:
            return [Turn(sequence, 1, []) for sequence in decodes]
        wanted, grades = [], []
        for (sequence, offer), count in zip(asked, self._lengths.choose(len(decodes), asked), strict=True):
            if count and self._kv.grow(sequence.slot, len(sequence.tokens) + count):
                wanted.append((sequence, count))
                grades.append(offer.grade)
        drafts = self._guess(wanted) if wanted else []
        drafted = {s: (d, grade) for (s, _), d, grade in zip(wanted, drafts, grades, strict=True)}
        return [Turn(sequence, 1, *drafted.get(sequence, ([], 0))) for sequence in decodes]

    def _guess(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
        """The guesses. A drafter that fails costs its guesses and nobody's text."""
        try:
            return self._drafter.propose(wanted)
        except Exception:
            logger.exception("guessing failed; this step goes without")
            for sequence, _ in wanted:
                self._drafter.forget(sequence)
            return [[] for _ in wanted]

    def _learn(self, turns: list[Turn], seconds: float | None) -> None:
        """What the decoding turns cost and gained; `seconds` None: the step did something else too."""
        if any(turn.error for turn in turns):
            return
        verified = [
            Verified(turn.sequence, turn.grade, len(turn.drafts), len(turn.chosen) - 1) for turn in turns if turn.drafts
        ]
        self._lengths.learn(len(turns) - len(verified), verified, seconds)

    def _advance(self, turns: list[Turn]) -> None:
        """Run the turns and choose their tokens. If the model fails they run one by one, so that a bad one is alone."""
        try:
            scores = self._executor.run([turn.work for turn in turns])
        except Exception as error:
            if len(turns) == 1:
                turns[0].error = failed(error)
            else:
                for turn in turns:
                    self._advance([turn])
            return
        choose(turns, scores, self._kv.longest)

    def _record(self, turns: list[Turn]) -> list[Emitted]:
        """Write down what the turns came to; ended sequences leave."""
        emitted = []
        for turn in turns:
            sequence, work, chosen = turn.sequence, turn.work, turn.chosen
            if turn.error is not None:
                self._leave(sequence, keep=False)
            elif not chosen:
                sequence.computed = work.past + len(work.tokens)
                continue
            else:
                sequence.computed = len(sequence.tokens) - 1
                if turn.drafts:
                    sequence.drafted += len(turn.drafts)
                    sequence.accepted += len(chosen) - 1
                if turn.reason is not None:
                    self._leave(sequence)
                elif len(work.tokens) - len(turn.drafts) > 1:
                    self._save(sequence, sequence.slot, sequence.computed)
            emitted.append(Emitted(sequence, chosen, turn.reason, turn.error))
        return emitted

    def _expire(self, sequence: Sequence) -> Emitted:
        where = "waited" if sequence.slot < 0 else "was generated"
        self._leave(sequence)
        error = DeadlineExceeded(
            f"the deadline passed while the text {where}, after {sequence.count} tokens; allow more time or ask for"
            " fewer"
        )
        return Emitted(sequence, [], None, error)

    def _leave(self, sequence: Sequence, keep: bool = True) -> None:
        """It is over. What it computed is kept for others, unless the model has just failed at it."""
        sequence.ended = True
        self._drafter.forget(sequence)
        departure = self._scheduler.remove(sequence)
        if departure is not None:
            self._clear(departure, keep)
            now = self._clock()
            self._finish_gap_s += 0.1 * (now - self._last_finish - self._finish_gap_s)
            self._last_finish = now

    def _clear(self, departure: Departure, keep: bool = True) -> None:
        if keep:
            self._save(*departure)
        self._executor.release(departure.slot)

    def _save(self, sequence: Sequence, slot: int, length: int) -> None:
        self._cache.save(sequence.tokens[:length], lambda start, stop: self._executor.read(slot, start, stop))
