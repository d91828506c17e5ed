"""What a step costs by its rows, learned from the steps themselves. Knows no sequence and no executor."""

from bisect import bisect_left, insort

FIXED = 0.4
"""The share of a run's time that is taken to depend on no rows, where only one size of run was ever measured.
More than on the machines we know, so that unmeasured longer runs look dearer than they are, not cheaper."""

_SLOWEST_LEARNING = 0.1


class Curve:
    """Seconds by rows: measured where runs had so many rows, straight lines between, `FIXED` beyond."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._counts: dict[int, int] = {}
        self._sizes: list[int] = []

    def at(self, rows: int) -> float | None:
        """Seconds of a run of `rows`; None while nothing was measured."""
        known = self._seconds.get(rows)
        if known is not None:
            return known
        if rows == 0:
            return 0.0
        if not self._sizes:
            return None
        above = bisect_left(self._sizes, rows)
        if 0 < above < len(self._sizes):
            a, b = self._sizes[above - 1], self._sizes[above]
            low, high = self._seconds[a], self._seconds[b]
            return low + (high - low) * (rows - a) / (b - a)
        near = self._sizes[min(above, len(self._sizes) - 1)]
        return self._seconds[near] * (FIXED + (1.0 - FIXED) * rows / near)

    def learn(self, rows: int, seconds: float) -> None:
        """A run of `rows` took so long. Outliers (a pause of the machine) move the curve no further than a slow run."""
        known = self._seconds.get(rows)
        if known is None:
            insort(self._sizes, rows)
            self._seconds[rows], self._counts[rows] = seconds, 1
            return
        self._counts[rows] += 1
        weight = max(_SLOWEST_LEARNING, 1.0 / self._counts[rows])
        self._seconds[rows] = known + weight * (min(seconds, 2.0 * known) - known)


class StepCosts:
    """A step runs single tokens of several sequences together, and verifications, whose rows are 1 + drafts, each by
    itself. What of that an executor joins shows in what is measured.
    """

    def __init__(self) -> None:
        self._decode = Curve()
        self._verify = Curve()

    def decode(self, sequences: int) -> float | None:
        """Seconds for a token each of so many sequences."""
        return self._decode.at(sequences)

    def verify(self, rows: int) -> float | None:
        """Seconds for the verification of one sequence. Until any was measured: as a decoding run of so many rows."""
        return self._decode.at(rows) if (known := self._verify.at(rows)) is None else known

    def learn(self, decodes: int, verified: list[int], seconds: float) -> None:
        """A step of `decodes` single tokens and of verifications of so many rows took `seconds`."""
        if not verified:
            self._decode.learn(decodes, seconds)
            return
        rest = max(seconds - (self.decode(decodes) or 0.0), 0.1 * seconds)
        guesses = [self.verify(rows) or rest / len(verified) for rows in verified]
        scale = rest / sum(guesses)
        for rows, guess in zip(verified, guesses, strict=True):
            self._verify.learn(rows, guess * scale)
