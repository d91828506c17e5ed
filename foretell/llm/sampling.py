"""From scores to tokens: temperature, top-k, top-p, min-p, penalties, bias, masks, seeds, logprobs.

Owns how one token of each row is chosen; knows no text, no engine, no device. The usual rows never touch the whole
vocabulary: greedy ones need the best id, and most sampled ones are decided by the k best logits that every executor
returns, since the log-sum of all logits says how much probability is left outside.

Order of the steps, as in vLLM: bias, penalties, mask, temperature, min-p, top-k, top-p.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from foretell.core.generation import Sampling
from foretell.llm.executors.base import Scores

_GREEDY_BELOW = 1e-5
"""Temperatures below it are greedy: their distribution is one in float32 anyway."""
_DRAWS = 64
"""Random numbers made at a time; a multiple of the four that one Philox counter gives."""
_NOTHING = 1e-9
"""A share of probability that is no share: below what float32 logits can say."""
_FEW = 4096
"""Rows whose mask allows at most so many tokens are chosen among these alone."""

_SUMMED = 256
"""Weights whose sum is made at once."""
_NO_IDS: NDArray[np.int64] = np.empty(0, np.int64)


class Mask(Protocol):
    """What a constraint (`llm.grammar.Constraint`) looks like from here."""

    @property
    def finished(self) -> bool:
        """Nothing but the end may follow."""

    def mask(self) -> NDArray[np.uint32] | None:
        """The allowed tokens of the next position, one bit each, least significant first; None: all."""

    def advance(self, token: int) -> None:
        """`token` was chosen."""


class Sampled(NamedTuple):
    """A chosen token. `logprob` and `top` (best first) are of the model's own distribution, before temperature,
    penalties and masks; 0.0 and [] unless asked for."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class _Seen:
    """Token ids that a penalty touches, each once, with how often it was generated (0: in the prompt only)."""

    def __init__(self, prompt: Sequence[int]) -> None:
        unique = np.unique(np.asarray(prompt, np.int64))
        self._size = len(unique)
        self._ids = np.concatenate([unique, np.empty(64, np.int64)])
        self._counts = np.zeros(len(self._ids), np.float32)
        self._at = dict(zip(unique.tolist(), range(len(unique)), strict=True))

    def add(self, token: int) -> None:
        at = self._at.get(token)
        if at is None:
            at = self._at[token] = self._size
            self._size += 1
            if at == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[at] = token
        self._counts[at] += 1

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: self._size]


class Sampler:
    """How one sequence chooses its tokens, and what it has chosen so far.

    `params` has the package's defaults filled in; what is still None is neutral. The draw of position i is a function
    of `seed` and i alone (Philox, Salmon et al. 2011), so it depends on no batch, draft or earlier draw. Penalties
    are vLLM's: repetition looks at `prompt` and the generated tokens, presence and frequency at the generated ones.
    `logprobs` as in `GenerateRequest`. The ids `banned` may not come before `banned_until` tokens were generated.
    """

    def __init__(
        self,
        params: Sampling,
        seed: int,
        prompt: Sequence[int],
        constraint: Mask | None = None,
        logprobs: int = -1,
        banned: tuple[int, ...] = (),
        banned_until: int = 0,
    ) -> None:
        self.temperature = 1.0 if params.temperature is None else params.temperature
        self.greedy = self.temperature < _GREEDY_BELOW
        self.top_p = 1.0 if params.top_p is None else max(params.top_p, _NOTHING)
        self.top_k = max(params.top_k or 0, 0)
        self.min_p = params.min_p or 0.0
        self.constraint = constraint
        self.logprobs = logprobs
        self.count = 0
        self._repetition = params.repetition_penalty or 1.0
        self._presence = params.presence_penalty
        self._frequency = params.frequency_penalty
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64, len(params.logit_bias))
        self._bias = np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))
        self._banned = np.array(banned, np.int64)
        self._banned_until = banned_until if banned else 0
        self._seed = seed % 2**128
        self._block = -1
        self._draws: list[float] = []
        repeats = self._repetition != 1.0
        penalised = repeats or self._presence != 0.0 or self._frequency != 0.0
        self._seen = _Seen(prompt if repeats else ()) if penalised else None
        self._plain = self._seen is None and not params.logit_bias
        """No bias and no penalty: only a mask may change what the model says."""

    def accept(self, token: int) -> None:
        """`token` is the next one of the sequence."""
        self.count += 1
        if self._seen is not None:
            self._seen.add(token)
        if self.constraint is not None:
            self.constraint.advance(token)

    @property
    def untouched(self) -> bool:
        """The next token follows the model's own scores."""
        return self.constraint is None and self.only_masked()

    def draw(self) -> float:
        """The uniform random number in [0, 1) of the next position."""
        block, at = divmod(self.count, _DRAWS)
        if block != self._block:
            bits = np.random.Philox(key=self._seed, counter=block * (_DRAWS // 4))
            self._draws = np.random.Generator(bits).random(_DRAWS).tolist()
            self._block = block
        return self._draws[at]

    def allowed(self) -> NDArray[np.uint32] | None:
        """The constraint's mask of the next position; None when every token is allowed."""
        return None if self.constraint is None else self.constraint.mask()

    def only_masked(self) -> bool:
        """Nothing but the mask changes the scores of the next position."""
        return self._plain and self.count >= self._banned_until

    def edited(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of the row `logits` [vocab] with bias, penalties and bans."""
        row = logits.copy()
        row[self._bias_ids] += self._bias
        if self._seen is not None:
            ids, counts = self._seen.ids, self._seen.counts
            touched = row[ids]
            if self._repetition != 1.0:
                touched = np.where(touched > 0, touched / self._repetition, touched * self._repetition)
            row[ids] = touched - self._frequency * counts - self._presence * (counts > 0)
        if self.count < self._banned_until and not (self.constraint is not None and self.constraint.finished):
            row[self._banned] = -np.inf
        return row


def sample(scores: Scores, rows: Sequence[tuple[int, Sampler]]) -> list[Sampled]:
    """One token for each (row of `scores`, sampler), each row by its own rules; samplers are not advanced."""
    best = scores.best.tolist()
    tokens = [0] * len(rows)
    drawn: list[int] = []
    for at, (row, sampler) in enumerate(rows):
        if not sampler.untouched:
            tokens[at] = _from_edited(scores, row, sampler)
        elif sampler.greedy:
            tokens[at] = best[row]
        else:
            drawn.append(at)
    if drawn:
        for at, token in zip(drawn, _from_head(scores, [rows[at] for at in drawn]), strict=True):
            tokens[at] = token if token >= 0 else _from_row(scores, *rows[at])
    return [
        Sampled(token, 0.0, []) if sampler.logprobs < 0 else _with_logprobs(scores, row, token, sampler.logprobs)
        for token, (row, sampler) in zip(tokens, rows, strict=True)
    ]


def _from_head(scores: Scores, rows: Sequence[tuple[int, Sampler]]) -> list[int]:
    """The tokens of rows that the k best logits decide; -1 for rows that need all logits.

    Rows are ordered by rank, so that a draw below the head's share of probability never leaves it.
    """
    at = [row for row, _ in rows]
    samplers = [sampler for _, sampler in rows]
    parameters = np.array([(s.temperature, s.top_p, s.min_p, s.top_k, s.draw()) for s in samplers]).T[:, :, None]
    temperature, top_p, min_p, top_k, draw = parameters
    values = scores.values[at].astype(np.float64)
    logs = values - values[:, :1]
    width = logs.shape[1]
    weights = np.exp(logs / temperature)

    # What is outside of the head: known at temperature 1, and below it at most the same times the decay of the
    # head's last weight, as exp(x / t) = exp(x) * exp(x * (1/t - 1)) and x is at most that of the last.
    rest = np.exp(scores.log_total[at].astype(np.float64) - values[:, 0])[:, None] - np.exp(logs).sum(1, keepdims=True)
    rest = np.maximum(rest, 0.0)
    bound = rest * np.exp(logs[:, -1:] * np.maximum(1.0 / temperature - 1.0, 0.0))
    closed = ((top_k > 0) & (top_k <= width)) | (weights[:, -1:] < min_p) | (width == scores.logits.shape[1])
    closed |= (temperature <= 1.0) & (bound <= _NOTHING)
    known = closed | ((temperature == 1.0) & (min_p == 0.0) & (top_k == 0.0))
    rest = np.where(closed, 0.0, rest)

    weights *= (weights >= min_p) & ((top_k == 0.0) | (np.arange(width) < top_k))
    sums = np.cumsum(weights, axis=1)
    total = sums[:, -1:] + rest
    limit = top_p * total
    nucleus = (sums - weights < limit) | (top_p >= 1.0)
    total = np.where(top_p < 1.0, np.max(sums * nucleus, axis=1, keepdims=True), total)
    target = draw * total
    decided = known & np.where(top_p < 1.0, closed | (sums[:, -1:] >= limit), closed | (target < sums[:, -1:]))
    rank = np.minimum((sums <= target).sum(1), (nucleus & (weights > 0)).sum(1) - 1)
    tokens: list[int] = np.where(decided[:, 0], scores.ids[at, rank], -1).tolist()
    return tokens


def _from_row(scores: Scores, row: int, sampler: Sampler) -> int:
    """The token of an untouched row that its head does not decide."""
    return _choose(scores.logits[row], sampler, scores.ids[row])


def _from_edited(scores: Scores, row: int, sampler: Sampler) -> int:
    """The token of a row whose scores a bias, a penalty, a ban or a mask changes."""
    mask = sampler.allowed()
    best = int(scores.best[row])
    if sampler.only_masked():
        if mask is None or (sampler.greedy and mask[best >> 5] >> (best & 31) & 1):
            return best if sampler.greedy else _undecided(scores, row, sampler)
        logits = scores.logits[row]
    else:
        logits = sampler.edited(scores.logits[row])
    if mask is None:
        return _choose(logits, sampler)
    bits = np.unpackbits(mask.view(np.uint8), count=len(logits), bitorder="little").view(np.bool_)
    allowed = np.flatnonzero(bits)
    if len(allowed) <= _FEW:
        some = logits[allowed]
        # A ban may leave nothing of what the mask allows; then the mask wins, as text must match its grammar.
        return int(allowed[_choose(some if some.max() > -np.inf else scores.logits[row][allowed], sampler)])
    return _choose(np.where(bits, logits, np.float32(-np.inf)), sampler)


def _undecided(scores: Scores, row: int, sampler: Sampler) -> int:
    """As an untouched row: the constraint allows every token."""
    token = _from_head(scores, [(row, sampler)])[0]
    return token if token >= 0 else _from_row(scores, row, sampler)


def _choose(logits: NDArray[np.float32], sampler: Sampler, head: NDArray[np.int64] = _NO_IDS) -> int:
    """An index into `logits` (float32 [n], any n): the best, or by the sampler's draw.

    Without top-k and top-p the order of the draw is `head`, then the others: the one that `_from_head` began.
    """
    if sampler.greedy:
        return int(logits.argmax())
    weights = logits - logits.max()
    weights *= np.float32(1.0 / sampler.temperature)
    np.exp(weights, out=weights)
    if sampler.min_p > 0.0:
        weights[weights < sampler.min_p] = 0.0
    if 0 < sampler.top_k < len(weights) or sampler.top_p < 1.0:
        return _choose_truncated(weights, sampler)
    first = np.cumsum(weights[head], dtype=np.float64)
    weights[head] = 0.0
    # Sums of blocks, then the place within one: quicker than cumulating everything.
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _SUMMED)), dtype=np.float64)
    before = first[-1] if len(head) else 0.0
    target = sampler.draw() * (before + blocks[-1])
    if target < before:
        return int(head[np.searchsorted(first, target, side="right")])
    return _index_in(weights, blocks, target - before)


def _index_in(weights: NDArray[np.float32], blocks: NDArray[np.float64], target: float) -> int:
    """The first index whose cumulated weight is above `target`; `blocks` are the cumulated sums of blocks."""
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    sums = np.cumsum(weights[block * _SUMMED : (block + 1) * _SUMMED], dtype=np.float64)
    sums += blocks[block - 1] if block else 0.0
    index = block * _SUMMED + int(np.searchsorted(sums, target, side="right"))
    if index < len(weights) and weights[index] > 0:
        return index
    # Rounding carried the target past the end of its block: the last index before it that has any weight.
    return int(np.flatnonzero(weights[: min(index, len(weights))])[-1])


def _choose_truncated(weights: NDArray[np.float32], sampler: Sampler) -> int:
    """As `_choose`, for top-k and top-p over unnormalised probabilities. Equal ones rank by smaller id.

    Sorts values only, and only those that can be in the nucleus; the id is looked up at the end.
    """
    if 0 < sampler.top_k < len(weights):
        some = np.partition(weights, -sampler.top_k)[-sampler.top_k :]
        total = float(some.sum(dtype=np.float64))
    else:
        total = float(weights.sum(dtype=np.float64))
        # All below this together hold less than 1 - top_p, so the nucleus is above it.
        floor = (1.0 - sampler.top_p) * total / len(weights) * 0.999
        some = weights[weights >= np.float32(floor)]
    some = np.sort(some)[::-1]
    sums = np.cumsum(some, dtype=np.float64)
    if sampler.top_p < 1.0:
        sums = sums[: np.searchsorted(sums, sampler.top_p * total) + 1]
    rank = min(int(np.searchsorted(sums, sampler.draw() * sums[-1], side="right")), len(sums) - 1)
    while some[rank] == 0.0:  # top-k may reach where min-p or rounding left nothing
        rank -= 1
    equals = rank - int(np.searchsorted(-some, -some[rank]))
    return int(np.flatnonzero(weights == some[rank])[equals])


def _with_logprobs(scores: Scores, row: int, token: int, count: int) -> Sampled:
    total = float(scores.log_total[row])
    width = scores.ids.shape[1]
    if count <= width:
        ids, values = scores.ids[row, :count], scores.values[row, :count]
    else:
        ids = np.argsort(-scores.logits[row], kind="stable")[:count]
        values = scores.logits[row][ids]
    top = list(zip(ids.tolist(), (values - total).tolist(), strict=True))
    return Sampled(token, float(scores.logits[row, token]) - total, top)
