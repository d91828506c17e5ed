"""From scores to tokens: temperature, top-k, top-p, min-p, penalties, bias, masks, seeds, logprobs.

Owns how one token of each row is chosen; knows no text, no engine, no device. Greedy rows need the best id only, and
rows whose scores nobody changes are drawn where the scores lie (`Scores.drawn`); all others bring their row here.

Order of the steps, as in vLLM: bias, penalties, mask, temperature, min-p, top-k, top-p.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from foretell.core.generation import Sampling
from foretell.llm.draws import Draw, draw, largest
from foretell.llm.executors.base import Scores

_GREEDY_BELOW = 1e-5
"""Temperatures below it are greedy: their distribution is one in float32 anyway."""
_DRAWS = 64
"""Random numbers made at a time; a multiple of the four that one Philox counter gives."""


class Mask(Protocol):
    """What a constraint (`llm.grammar.Constraint`) looks like from here."""

    @property
    def finished(self) -> bool:
        """Nothing but the end may follow."""

    def mask(self) -> NDArray[np.uint32] | None:
        """The allowed tokens of the next position, one bit each, least significant first; None: all."""

    def advance(self, token: int) -> None:
        """`token` was chosen."""

    def forced(self) -> list[int]:
        """The tokens that must come next, if the mask leaves no other text."""


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
        self.top_p = 1.0 if params.top_p is None else params.top_p
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
        self._unedited = self._seen is None and not params.logit_bias

    def accept(self, token: int) -> None:
        """`token` is the next one of the sequence."""
        self.count += 1
        if self._seen is not None:
            self._seen.add(token)
        if self.constraint is not None:
            self.constraint.advance(token)

    @property
    def plain(self) -> bool:
        """No bias, no penalty and no ban touches the scores of the next position; a mask may."""
        return self._unedited and self.count >= self._banned_until

    @property
    def untouched(self) -> bool:
        """The next token follows the model's own scores."""
        return self.constraint is None and self.plain

    def draw(self) -> float:
        """The uniform random number in [0, 1) of the next position."""
        block, at = divmod(self.count, _DRAWS)
        if block != self._block:
            bits = np.random.Philox(key=self._seed, counter=block * (_DRAWS // 4))
            self._draws = np.random.Generator(bits).random(_DRAWS).tolist()
            self._block = block
        return self._draws[at]

    def rule(self, row: int) -> Draw:
        """How the next position's token is drawn from row `row`; of no use to the greedy."""
        return Draw(row, self.draw(), self.temperature, self.min_p, self.top_k, self.top_p)

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
    best: list[int] = scores.best.tolist() if any(sampler.greedy for _, sampler in rows) else []
    drawn = iter(scores.drawn([s.rule(row) for row, s in rows if s.untouched and not s.greedy]))
    result = []
    for row, sampler in rows:
        token = _token(scores, row, sampler) if not sampler.untouched else best[row] if sampler.greedy else next(drawn)
        result.append(
            Sampled(token, 0.0, []) if sampler.logprobs < 0 else _with_logprobs(scores, row, token, sampler.logprobs)
        )
    return result


def _token(scores: Scores, row: int, sampler: Sampler) -> int:
    """Of a row that somebody changes: bias, penalties, bans or a mask."""
    mask = None if sampler.constraint is None else sampler.constraint.mask()
    if sampler.plain:
        if mask is None:
            return int(scores.best[row]) if sampler.greedy else scores.drawn([sampler.rule(row)])[0]
        if sampler.greedy:
            best = int(scores.best[row])
            if mask[best >> 5] >> (best & 31) & 1:
                return best
    raw = scores.row(row)
    logits = raw if sampler.plain else sampler.edited(raw)
    return _choose(logits, sampler) if mask is None else _choose_allowed(logits, mask, sampler, raw)


def _choose_allowed(
    logits: NDArray[np.float32], mask: NDArray[np.uint32], sampler: Sampler, raw: NDArray[np.float32]
) -> int:
    """The token among those of the mask. A ban may leave none of them; then the mask wins over it and all else, as
    text must match its grammar, and the model's own scores `raw` decide."""
    bits = np.unpackbits(mask.view(np.uint8), count=len(logits), bitorder="little").view(np.bool_)
    allowed = np.flatnonzero(bits)
    some = logits.take(allowed)
    return int(allowed[_choose(some if some.max() > -np.inf else raw[allowed], sampler)])


def _choose(logits: NDArray[np.float32], sampler: Sampler) -> int:
    """An index into `logits` (float32 [n], any n): the best, or by the sampler's draw."""
    return int(logits.argmax()) if sampler.greedy else draw(logits, sampler.rule(0))


def _with_logprobs(scores: Scores, row: int, token: int, count: int) -> Sampled:
    logits, total = scores.row(row), scores.log_total(row)
    ids = scores.ids[row, :count] if count <= scores.heads else largest(logits, count)
    top = list(zip(ids.tolist(), (logits[ids] - total).tolist(), strict=True))
    return Sampled(token, float(logits[token]) - total, top)
