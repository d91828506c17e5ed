"""Medians and their intervals. Pure functions over lists of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median


@dataclass(frozen=True)
class Summary:
    """`low` and `high` enclose the true median with probability `coverage` if the values are independent."""

    middle: float
    low: float
    high: float
    coverage: float
    count: int


def summarise(values: Sequence[float], wanted: float = 0.95) -> Summary:
    """The median and the narrowest pair of order statistics that covers it with `wanted` probability.

    With fewer than six values no pair reaches 95 %; then it is the minimum and maximum, and `coverage` says less.
    """
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        raise ValueError("no values to summarise")
    best = (0, coverage_of(n, 0))
    for k in range(1, (n + 1) // 2):
        if coverage_of(n, k) >= wanted:
            best = (k, coverage_of(n, k))
    k, coverage = best
    return Summary(median(ordered), ordered[k], ordered[n - 1 - k], coverage, n)


def coverage_of(n: int, k: int) -> float:
    """Probability that the true median lies between the (k+1)-th smallest and (k+1)-th largest of n values."""
    outside: int = sum(comb(n, i) for i in range(k + 1))
    return max(0.0, 1.0 - 2.0 * outside / 2.0**n)


def ratios(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """ours / theirs for each round that both have and in which theirs is not zero."""
    return [ours[r] / theirs[r] for r in sorted(ours) if theirs.get(r)]
