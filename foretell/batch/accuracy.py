"""Predictions beside the truth: counts that add up over parts, and what they say with intervals. Pure, on columns."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foretell.batch.spec import Label
from foretell.core.errors import InvalidInput, did_you_mean
from foretell.tables.arrays import numbers
from foretell.tables.values import is_list, is_text, plain, to_numpy

Z = 1.959964
"""Normal quantile of a 95 % interval."""

Way = Literal["same", "best", "half", "number"]
"""How an output is compared: as it is, by the place of its largest score, above one half or not, as a number."""


class Tally(msgspec.Struct, frozen=True):
    """Classes: (truth, said) → how often. Numbers: sums over rows of the truth, its square, the error, its absolute
    value and its square.
    """

    pairs: list[tuple[str, str, int]] = []
    rows: int = 0
    truth: float = 0.0
    truth_squared: float = 0.0
    error_absolute: float = 0.0
    error_squared: float = 0.0
    error_fourth: float = 0.0


class Estimate(msgspec.Struct, frozen=True):
    """A number with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float


class Quality(msgspec.Struct, frozen=True):
    """What the labels say. `classes` and `confusion` (rows: truth, columns: said) are empty for numbers."""

    rows: int
    estimates: list[Estimate]
    classes: list[str] = []
    confusion: list[list[int]] = []


class Comparison:
    """Compares one output with the label column. Raises `InvalidInput` where no output fits the label."""

    def __init__(self, label: Label, truth: pa.DataType, outputs: pa.Schema) -> None:
        self.label = label
        if label.output and label.output not in outputs.names:
            raise InvalidInput(f'--label: no output "{label.output}". {did_you_mean(label.output, outputs.names)}')
        names = [label.output] if label.output else outputs.names
        named = bool(label.output)
        ways = [(name, way) for name in names if (way := _way(truth, outputs.field(name).type, named)) is not None]
        if not ways:
            told = ", ".join(f"{field.name} {field.type}" for field in outputs)
            raise InvalidInput(
                f'--label: column "{label.column}" holds {truth}; no output can be compared with that ({told}).'
                f" Name one: --label {label.column}=OUTPUT"
            )
        self.output, self.way = ways[0]
        self._said = outputs.field(self.output).type

    def check(self, truth: pa.DataType) -> None:
        """Raise `InvalidInput` where the label column of another file is to be compared in another way."""
        if _way(truth, self._said, named=True) != self.way:
            raise InvalidInput(
                f'--label: column "{self.label.column}" holds {truth}, which is not compared with output'
                f' "{self.output}" as in the first file'
            )

    def tally(self, truth: Any, said: Any) -> Tally:
        """Count the rows of a part; those without truth count nowhere."""
        truth, said = plain(_one(truth)), _one(said)
        if truth.null_count:
            there = truth.is_valid()
            truth, said = truth.filter(there), said.filter(there)
        if self.way == "number":
            return _numbers(to_numpy(truth.cast(pa.float64())), to_numpy(said.cast(pa.float64())))
        if self.way == "best":
            width = len(said.flatten()) // max(len(said), 1)
            best = to_numpy(said.flatten()).reshape(-1, width).argmax(axis=1) if width else np.zeros(0, np.int64)
            said = numbers(best, pa.int64(), np.int64)
        if self.way == "half":
            said = pc.greater_equal(said, 0.5)
        both = pa.Table.from_arrays([truth.cast(pa.string()), said.cast(pa.string())], ["truth", "said"])
        counted = both.group_by(["truth", "said"]).aggregate([([], "count_all")])
        rows = zip(*(counted.column(name).to_pylist() for name in ("truth", "said", "count_all")), strict=True)
        return Tally(list(rows), both.num_rows)


def add(tallies: Iterable[Tally]) -> Tally:
    """The tally of all parts together."""
    pairs: dict[tuple[str, str], int] = {}
    sums = dict.fromkeys(("rows", "truth", "truth_squared", "error_absolute", "error_squared", "error_fourth"), 0.0)
    for tally in tallies:
        for truth, said, count in tally.pairs:
            pairs[truth, said] = pairs.get((truth, said), 0) + count
        for name in sums:
            sums[name] += getattr(tally, name)
    rows = int(sums.pop("rows"))
    return Tally([(truth, said, count) for (truth, said), count in sorted(pairs.items())], rows, **sums)


def judge(tally: Tally) -> Quality:
    """Accuracy with a Wilson interval and the confusion matrix, or the errors of numbers with intervals."""
    if tally.pairs:
        right = sum(count for truth, said, count in tally.pairs if truth == said)
        classes = sorted({name for truth, said, _ in tally.pairs for name in (truth, said)}, key=_order)
        place = {name: at for at, name in enumerate(classes)}
        confusion = [[0] * len(classes) for _ in classes]
        for truth, said, count in tally.pairs:
            confusion[place[truth]][place[said]] = count
        low, high = wilson(right, tally.rows)
        return Quality(tally.rows, [Estimate("accuracy", right / tally.rows, low, high)], classes, confusion)
    if not tally.rows:
        return Quality(0, [])
    return Quality(tally.rows, _errors(tally))


def wilson(right: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share.

    >>> [round(bound, 3) for bound in wilson(8, 10)]
    [0.49, 0.943]
    """
    share = right / rows
    spread = Z * math.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    middle = share + Z**2 / (2 * rows)
    scale = 1 + Z**2 / rows
    low = (middle - spread) / scale if right else 0.0
    high = (middle + spread) / scale if right < rows else 1.0
    return low, high


def _errors(tally: Tally) -> list[Estimate]:
    n = tally.rows
    mean = tally.error_absolute / n
    square = tally.error_squared / n
    half = Z * math.sqrt(max(square - mean**2, 0.0) / n)
    half_square = Z * math.sqrt(max(tally.error_fourth / n - square**2, 0.0) / n)
    found = [
        Estimate("mean absolute error", mean, max(0.0, mean - half), mean + half),
        Estimate(
            "root mean square error",
            math.sqrt(square),
            math.sqrt(max(0.0, square - half_square)),
            math.sqrt(square + half_square),
        ),
    ]
    variance = tally.truth_squared / n - (tally.truth / n) ** 2
    if variance > 0:
        bounds = [1 - value / variance for value in (square, square + half_square, max(0.0, square - half_square))]
        found.append(Estimate("R²", *bounds))
    return found


def _way(truth: pa.DataType, said: pa.DataType, named: bool) -> Way | None:
    """How an output of type `said` can be compared with a label, or None."""
    classes = is_text(truth) or pa.types.is_integer(truth) or pa.types.is_boolean(truth)
    classes = classes or pa.types.is_dictionary(truth)
    if is_list(said):
        scores = pa.types.is_floating(said.value_type)
        return "best" if scores and pa.types.is_integer(truth) else None
    if pa.types.is_floating(said):
        if pa.types.is_floating(truth) or (named and pa.types.is_integer(truth)):
            return "number"
        return "half" if pa.types.is_boolean(truth) else None
    if is_text(said) or pa.types.is_boolean(said):
        return "same" if classes and not pa.types.is_integer(truth) else None
    return "same" if pa.types.is_integer(truth) else None


def _numbers(truth: Any, said: Any) -> Tally:
    there = np.isfinite(truth) & np.isfinite(said)
    truth, error = truth[there], (said - truth)[there]
    return Tally(
        [],
        len(truth),
        float(truth.sum()),
        float((truth**2).sum()),
        float(np.abs(error).sum()),
        float((error**2).sum()),
        float((error**4).sum()),
    )


def _one(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _order(name: str) -> tuple[int, float, str]:
    """Numbers by size before names by letter."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)
