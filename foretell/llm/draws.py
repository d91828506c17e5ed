"""Drawing a token from one row of logits: temperature, min-p, top-k, top-p. Pure; knows no sampler and no device."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SUMMED = 256
"""Weights whose sum is made at once."""


class Draw(NamedTuple):
    """The token of row `row` at which the cumulated probabilities pass `at`, which is in [0, 1).

    Probabilities are those at `temperature`, cut by min-p, then top-k, then top-p (0.0, 0 and 1.0: not cut).
    """

    row: int
    at: float
    temperature: float
    min_p: float
    top_k: int
    top_p: float


def draw(logits: NDArray[np.float32], rule: Draw) -> int:
    """An index into `logits` (float32 [n], any n); `rule.row` is none of its business."""
    if 0 < rule.top_k < len(logits):
        ids = largest(logits, rule.top_k)
        return int(ids[draw_ranked(logits[ids], rule)])
    weights = logits - logits.max()
    if rule.temperature != 1.0:
        weights *= np.float32(1.0 / rule.temperature)
    np.exp(weights, out=weights)
    if rule.min_p > 0.0:
        weights[weights < rule.min_p] = 0.0
    if rule.top_p < 1.0:
        return _draw_nucleus(weights, rule)
    # Sums of blocks, then the place within one: quicker than cumulating everything.
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _SUMMED)), dtype=np.float64)
    return _index_in(weights, blocks, rule.at * blocks[-1])


def draw_ranked(values: NDArray[np.float32], rule: Draw) -> int:
    """Which of the best, whose logits [n] come best first, is drawn; there are no others."""
    weights = np.exp((values.astype(np.float64) - values[0]) / rule.temperature)
    return _rank(weights[weights >= rule.min_p] if rule.min_p > 0.0 else weights, rule)


def largest(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """int64 [count]: the ids of the largest of logits [vocab], best first, equal ones by smaller id.

    The vocabulary is dealt into many groups; the count-th largest of the groups' maxima is a bound that at least
    `count` logits reach and few others: a tenth of the time of a partition of all logits.
    """
    groups = len(logits) // 64
    if count >= len(logits):
        return np.argsort(-logits, kind="stable")
    if count > groups:
        bound = np.partition(logits, -count)[-count]
    else:
        maxima = logits[: groups * 64].reshape(64, groups).max(axis=0)
        bound = np.partition(maxima, groups - count)[groups - count]
    there = np.flatnonzero(logits >= bound)
    best = there[np.argsort(-logits[there], kind="stable")[:count]]
    if len(best) < count:  # NaN compares with nothing
        return np.argsort(-logits, kind="stable")[:count]
    return best


def _draw_nucleus(weights: NDArray[np.float32], rule: Draw) -> int:
    """As `draw`, for top-p over unnormalised probabilities.

    Sorts values only, and only those that can be in the nucleus: all below the floor together hold less than
    1 - top_p. The id is looked up at the end; equal ones rank by smaller id.
    """
    total = float(weights.sum())
    floor = np.float32((1.0 - rule.top_p) * total / len(weights) * 0.999)
    ranked = np.sort(weights.compress(weights >= floor))[::-1]
    rank = _rank(ranked, rule, total)
    value = ranked[rank]
    first = int(np.searchsorted(-ranked, -value))
    return int(np.flatnonzero(weights == value)[rank - first])


def _rank(weights: NDArray[Any], rule: Draw, total: float = 0.0) -> int:
    """Which of the best, whose unnormalised probabilities [n] come best first, is drawn. `total`: theirs and that of
    the others, which top-p may leave out; 0.0: there are no others."""
    sums = np.cumsum(weights, dtype=np.float64)
    if rule.top_p < 1.0:
        sums = sums[: int(np.searchsorted(sums, rule.top_p * (total or sums[-1]))) + 1]
    return min(int(np.searchsorted(sums, rule.at * sums[-1], side="right")), len(sums) - 1)


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
