"""Scores that stay on the device: tokens are chosen there, all rows at once, and a few numbers come to the host.

Says what `draws` says of each row; sums are in float64 as there, and no row hangs on the others.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from foretell.llm.draws import Draw
from foretell.llm.executors.base import Scores

_SUMMED = 256
"""Weights whose sum is made at once."""
_HEAD = 1024
"""So many of the best hold nearly every nucleus."""


class Draws(Protocol):
    """How tokens are drawn from some rows of logits."""

    def __call__(self, ranked: bool, rows: list[int], table: NDArray[np.float64]) -> list[int]:
        """A token of each of `rows`, which differ, by the fields of `Draw` [rows, 5]; -1: it takes all of the row.

        `ranked`: by `ranked`, else by `anywhere`.
        """


class DeviceScores(Scores):
    """Scores of logits [m, vocab] on a device; `best` int64 [m] and `draws` where somebody has them at hand."""

    def __init__(self, logits: Tensor, best: Tensor | None = None, draws: Draws | None = None, heads: int = 64) -> None:
        self.heads = min(heads, logits.shape[1])
        self._logits = logits
        self._best = best
        self._draws = draws or self._draw
        self._rows: dict[int, NDArray[np.float32]] = {}

    @cached_property
    def logits(self) -> NDArray[np.float32]:  # type: ignore[override]
        host: NDArray[np.float32] = self._logits.cpu().numpy()
        return host

    @cached_property
    def best(self) -> NDArray[np.int64]:
        found: NDArray[np.int64] = (_best(self._logits) if self._best is None else self._best).cpu().numpy()
        return found

    def drawn(self, draws: Sequence[Draw]) -> list[int]:
        """Two kinds are drawn together each: those from all tokens, and those from the best ones."""
        tokens, vocab = [-1] * len(draws), self._logits.shape[1]
        for kind in (False, True):
            places = [place for place, one in enumerate(draws) if _is_ranked(one, vocab) is kind]
            if places:
                rows, table = _fields(draws, places)
                together = self._draws if len(set(rows)) == len(rows) else self._draw
                for place, token in zip(places, together(kind, rows, table), strict=True):
                    tokens[place] = token
        rest = [place for place, token in enumerate(tokens) if token < 0]
        if rest:
            rows, table = _fields(draws, rest)
            found = ranked(pick(self._logits, rows), self._on_device(table), vocab).tolist()
            for place, token in zip(rest, found, strict=True):
                tokens[place] = token
        return tokens

    def _draw(self, kind: bool, rows: list[int], table: NDArray[np.float64]) -> list[int]:
        tokens: list[int] = (ranked if kind else anywhere)(pick(self._logits, rows), self._on_device(table)).tolist()
        return tokens

    def _on_device(self, table: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(table).to(self._logits.device)

    def row(self, row: int) -> NDArray[np.float32]:
        if row not in self._rows:
            self._rows[row] = self._logits[row].cpu().numpy()
        return self._rows[row]

    def log_total(self, row: int) -> float:
        return self._log_totals[row]

    @cached_property
    def _log_totals(self) -> list[float]:
        totals: list[float] = self._logits.logsumexp(-1).tolist()
        return totals

    @cached_property
    def _largest(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        values, ids = _head(self._logits, self.heads + 1)
        if values.shape[1] > self.heads and bool((values[:, -1] == values[:, -2]).any()):  # which of the equal ones?
            values, ids = self._logits.sort(dim=-1, descending=True, stable=True)
        return ids[:, : self.heads].cpu().numpy(), values[:, : self.heads].cpu().numpy()


def pick(tensor: Tensor, rows: list[int]) -> Tensor:
    """The rows of a tensor; a view where they follow each other, so that no numbers go to the device."""
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return tensor[rows[0] : rows[0] + len(rows)]
    return tensor[rows]


def _best(logits: Tensor) -> Tensor:
    """Of equal ones the smallest, which torch's argmax does not promise."""
    ids = torch.arange(logits.shape[1], device=logits.device)
    return torch.where(logits == logits.amax(-1, keepdim=True), ids, logits.shape[1] - 1).amin(-1)


def _fields(draws: Sequence[Draw], places: list[int]) -> tuple[list[int], NDArray[np.float64]]:
    """Rows, and the fields behind them, of the draws at `places`."""
    return [draws[place].row for place in places], np.array([draws[place][1:] for place in places], np.float64)


def _is_ranked(one: Draw, vocab: int) -> bool:
    """Whether it matters which logits are larger than which."""
    return 0 < one.top_k < vocab or one.top_p < 1.0


def anywhere(logits: Tensor, table: Tensor) -> Tensor:
    """int64 [m], as `draws.draw` without top-k and top-p; `table` float64 [m, 5] has the fields of `Draw` behind `row`.

    Which block of weights the draw falls into, then where in it.
    """
    at, temperature, min_p, _, _ = table.split(1, 1)
    weights = _weights(logits, logits.amax(-1, keepdim=True), temperature, min_p)
    weights = functional.pad(weights, (0, -weights.shape[1] % _SUMMED)).unflatten(1, (-1, _SUMMED))
    sums = weights.sum(-1, dtype=torch.float64).cumsum(-1)
    target = torch.minimum(at * sums[:, -1:], sums[:, -1:] * (1.0 - 2.0**-52))  # rounding may make it the total
    block = torch.searchsorted(sums, target, right=True)
    before = functional.pad(sums, (1, 0)).gather(1, block)
    within = weights.take_along_dim(block[:, :, None], 1)[:, 0]
    place = torch.searchsorted(within.cumsum(-1, dtype=torch.float64) + before, target, right=True)
    # rounding may carry the target past the end of its block: the last of it that has any weight
    places = torch.arange(_SUMMED, device=logits.device)
    last = torch.where(within > 0, places, 0).amax(-1, keepdim=True)
    return (block * _SUMMED + torch.minimum(place, last))[:, 0]


def ranked(logits: Tensor, table: Tensor, head: int = _HEAD) -> Tensor:
    """int64 [m], as `draws.draw` with top-k or top-p, of the `head` best; -1 where these don't suffice."""
    vocab = logits.shape[1]
    at, temperature, min_p, top_k, top_p = table.split(1, 1)
    values, ids = _head(logits, head)
    head = ids.shape[1]
    ranks = torch.arange(head, device=logits.device)
    top_k = torch.where(top_k > 0, top_k, vocab).clamp(max=vocab)
    weights = _weights(values, values[:, :1], temperature, min_p).double()
    sums = torch.where(ranks < top_k, weights, 0.0).cumsum(-1)
    total = _weights(logits, values[:, :1], temperature, min_p).sum(-1, dtype=torch.float64, keepdim=True)
    total = torch.where(top_k < vocab, sums[:, -1:], total)
    kept = torch.searchsorted(sums, top_p * total) + 1
    kept = torch.where(top_p < 1.0, kept, top_k.long()).clamp(max=head)
    target = at * sums.gather(1, kept - 1)
    rank = torch.minimum(torch.searchsorted(sums, target, right=True), kept - 1)
    tokens = ids.gather(1, rank)
    if head < vocab:
        # of those that equal the last of the head, others may come first; and a nucleus, or top-k, may reach beyond it
        clear = (values.gather(1, kept - 1) > values[:, -1:]) & ((top_k <= head) | (top_k == vocab))
        tokens = torch.where(clear, tokens, -1)
    return tokens[:, 0]


def _head(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values and ids of the `count` best, equal ones by smaller id; which of those that equal the last is open, but
    where it is all."""
    if count >= logits.shape[1]:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return values, ids
    ids = logits.topk(count, -1, sorted=False).indices.sort(-1).values
    values, order = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _weights(logits: Tensor, most: Tensor, temperature: Tensor, min_p: Tensor) -> Tensor:
    """Unnormalised probabilities: 1.0 for the largest logit, 0.0 for those that min-p cuts."""
    weights = torch.exp((logits - most) * (1.0 / temperature).float())
    return torch.where(weights < min_p, 0.0, weights)
