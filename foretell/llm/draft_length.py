"""How many guesses to check, for each sequence in each step: by measured costs, never losing for long. Pure.

A check of k guesses costs a run of k + 1 rows; whether that pays depends on the machine, on how many sequences share
a step, and on the text. All of it is learned while serving.
"""

import math
from collections.abc import Sequence as Items
from typing import NamedTuple

from foretell.llm.costs import StepCosts
from foretell.llm.sequence import Acceptance, Sequence
from foretell.llm.speculate import GRADES, MOST, Offer

LENGTHS = tuple(k for k in (1, 2, 3, 4, 6, 8, 12, 16) if k <= MOST)
"""The lengths of drafts that are weighed against each other."""


class Verified(NamedTuple):
    """A draft's outcome."""

    sequence: Sequence
    grade: int
    drafted: int
    accepted: int


class _Bid(NamedTuple):
    """`length` guesses of `asked[at]`: the tokens that they should bring, the seconds of guessing and checking, and
    what is left of the tokens when the seconds are paid for."""

    value: float
    length: int
    tokens: float
    seconds: float
    at: int


class DraftLength:
    """Maximises tokens per second: a draft is worth the tokens it should bring, less what the time of its check would
    have brought without it. How often guesses are right is learned per sequence and grade, starting from what the
    grade did elsewhere.

    It never loses for long, whatever it believes: an account gets `ALLOWANCE` of all time and what drafts really
    saved, and pays what they really lost; while it is empty nothing is guessed. From it are paid also the rare trials
    by which texts and costs that have changed are noticed.
    """

    ALLOWANCE = 0.01
    START_S = 0.02
    CAP_S = 0.25
    TRIAL_EVERY = 32
    """Steps between trials of drafts, and between plain steps for comparison while all steps have drafts."""
    WEIGHT, MEMORY, GRADE_MEMORY = 3.0, 4.0, 200.0
    PRIORS = (0.4, 0.5, 0.7, 0.8)
    """How often guesses of a grade are right before any was checked."""
    PRIOR_WEIGHT = 2.0
    SURE = 0.98

    def __init__(self) -> None:
        self.saved_s = 0.0
        """Seconds that all drafts saved so far, less what they lost."""
        self._costs = StepCosts()
        self._account_s = self.START_S
        self._grades = [Acceptance(prior * 2, 2) for prior in self.PRIORS[:GRADES]]
        self._since_trial = 0
        self._since_plain = 0

    def choose(self, decodes: int, asked: Items[tuple[Sequence, Offer]]) -> list[int]:
        """How many guesses of each of `asked` to check in a step in which `decodes` sequences, `asked` among them,
        decode."""
        lengths = [0] * len(asked)
        plain_s = self._costs.decode(decodes)
        self._since_trial += 1
        if not asked or not plain_s or self._account_s <= 0.0 or self._since_plain >= self.TRIAL_EVERY:
            return lengths
        rate = decodes / plain_s
        bids = self._worth(decodes, self._bids(asked, rate), rate)
        if bids:
            # What these should reach is what any draft has to beat.
            tokens = decodes + sum(bid.tokens for bid in bids)
            rate = tokens / (self._together(decodes - len(bids)) + sum(bid.seconds for bid in bids))
            bids = self._worth(decodes, self._bids(asked, rate), rate)
        elif self._since_trial >= self.TRIAL_EVERY:
            trial = self._trial(asked)
            if trial.seconds + self._together(decodes - 1) - plain_s - trial.tokens / rate < self._account_s:
                self._since_trial = 0
                bids = [trial]
        for bid in bids:
            lengths[bid.at] = bid.length
        return lengths

    def learn(self, decodes: int, verified: Items[Verified], seconds: float | None) -> None:
        """A step decoded `decodes` sequences by single tokens, and those of `verified`, in `seconds`; None: unknown,
        as it did something else too."""
        together = decodes + len(verified)
        if not together:
            return
        rows = [1 + draft.drafted for draft in verified]
        expected_s = self._together(decodes) + sum(self._costs.verify(r) or 0.0 for r in rows)
        if seconds:
            self._costs.learn(decodes, rows, seconds)
        plain_s = self._together(together)
        earned_s = self.ALLOWANCE * plain_s
        self._since_plain = self._since_plain + 1 if verified else 0
        if verified:
            accepted = sum(draft.accepted for draft in verified)
            real_s = min(seconds, 2.0 * expected_s) if seconds else expected_s
            saved_s = plain_s * (together + accepted) / together - real_s
            self.saved_s += saved_s
            earned_s += saved_s
            for draft in verified:
                self._learn_acceptance(draft)
        self._account_s = min(self._account_s + earned_s, self.CAP_S)

    def _together(self, sequences: int) -> float:
        """Seconds for a token each of so many sequences; 0 while unknown."""
        return self._costs.decode(sequences) or 0.0

    def _learn_acceptance(self, draft: Verified) -> None:
        own = draft.sequence.acceptance.setdefault(draft.grade, Acceptance())
        own.learn(draft.drafted, draft.accepted, self.WEIGHT, self.MEMORY)
        self._grades[draft.grade].learn(draft.drafted, draft.accepted, self.WEIGHT, self.GRADE_MEMORY)

    def _chance(self, sequence: Sequence, grade: int) -> float:
        elsewhere = self._grades[grade]
        chance = elsewhere.right / elsewhere.tried
        own = sequence.acceptance.get(grade)
        if own is not None:
            chance = (own.right + chance * self.PRIOR_WEIGHT) / (own.tried + self.PRIOR_WEIGHT)
        return min(chance, self.SURE)

    def _bids(self, asked: Items[tuple[Sequence, Offer]], rate: float) -> list[_Bid]:
        """The best length of each of `asked` when a second is worth `rate` tokens; the best of them first."""
        checks = [(k, self._costs.verify(k + 1) or math.inf) for k in LENGTHS]
        bids = []
        for at, (sequence, offer) in enumerate(asked):
            chance = self._chance(sequence, offer.grade)
            share = chance / (1.0 - chance)
            best = _Bid(-math.inf, 0, 0.0, 0.0, at)
            for k, check_s in checks:
                if k > offer.most:
                    break
                tokens = share * (1.0 - chance**k)
                seconds = check_s + offer.fixed_s + k * offer.token_s
                value = tokens - rate * seconds
                if value > best[0]:
                    best = _Bid(value, k, tokens, seconds, at)
            bids.append(best)
        bids.sort(reverse=True)
        return bids

    def _trial(self, asked: Items[tuple[Sequence, Offer]]) -> _Bid:
        """The most promising guesses, as many as are likely to be right: they may be worth more than is known."""
        chance, at = max((self._chance(sequence, offer.grade), at) for at, (sequence, offer) in enumerate(asked))
        offer = asked[at][1]
        share = chance / (1.0 - chance)
        length = max(k for k in LENGTHS if k == 1 or k <= min(share, offer.most))
        seconds = (self._costs.verify(length + 1) or math.inf) + offer.fixed_s + length * offer.token_s
        return _Bid(0.0, length, share * (1.0 - chance**length), seconds, at)

    def _worth(self, decodes: int, bids: list[_Bid], rate: float) -> list[_Bid]:
        """So many of the bids, the best first, that the step as a whole is worth most."""
        count, total = 0, 0.0
        best = -rate * self._together(decodes)
        for taken, bid in enumerate(bids, 1):
            total += bid.value
            value = total - rate * self._together(decodes - taken)
            if value > best + 1e-9:
                count, best = taken, value
        return bids[:count]
