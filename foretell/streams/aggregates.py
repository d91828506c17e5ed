"""What a window knows of its values: numbers (count, sum, mean, min, max), a decaying mean, or how many are distinct.

Aggregates are values: adding makes a new one, so a batch that fails is undone by forgetting. They merge, so a sliding
window is the merge of its panes, and they are small as MessagePack. Knows no windows and no keys.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from foretell.core.errors import InvalidInput


class Aggregate(Protocol):
    """How values become one value of the type `form`. Nothing changes what it is given; `empty` is of no values."""

    @property
    def form(self) -> type: ...

    @property
    def empty(self) -> Any: ...

    def first(self, value: Any, time: int) -> Any: ...

    def add(self, held: Any, value: Any, time: int) -> Any: ...

    def merge(self, older: Any, newer: Any) -> Any: ...


class Numbers(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Count, sum, mean and extremes of numbers; NaN where there are none."""

    count: int
    sum: float
    min: float
    max: float

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else math.nan


class NumbersOf:
    """count, sum, mean, min, max."""

    form = Numbers
    empty = Numbers(0, 0.0, math.nan, math.nan)

    def first(self, value: float, time: int) -> Numbers:
        return Numbers(1, value, value, value)

    def add(self, held: Numbers, value: float, time: int) -> Numbers:
        low, high = held.min, held.max
        return Numbers(held.count + 1, held.sum + value, value if value < low else low, value if value > high else high)

    def merge(self, older: Numbers, newer: Numbers) -> Numbers:
        low, high = newer.min, newer.max
        return Numbers(
            older.count + newer.count,
            older.sum + newer.sum,
            low if low < older.min else older.min,
            high if high > older.max else older.max,
        )


class Decayed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Sums whose parts lose half their weight each half-life before `at`, the newest time in it."""

    count: int
    at: int
    weight: float
    total: float

    @property
    def ewma(self) -> float:
        return self.total / self.weight if self.count else math.nan


class DecayedOf:
    """count, ewma: the mean in which a value counts half as much when it is a half-life older.

    Weights go by event time, so the order in which events come makes no difference but rounding.
    """

    form = Decayed
    empty = Decayed(0, 0, 0.0, 0.0)

    def __init__(self, half_life_ms: int) -> None:
        self.half_life_ms = half_life_ms

    def first(self, value: float, time: int) -> Decayed:
        return Decayed(1, time, 1.0, value)

    def add(self, held: Decayed, value: float, time: int) -> Decayed:
        return self.merge(held, Decayed(1, time, 1.0, value))

    def merge(self, older: Decayed, newer: Decayed) -> Decayed:
        late, early = (newer, older) if newer.at >= older.at else (older, newer)
        share = 0.5 ** ((late.at - early.at) / self.half_life_ms)
        return Decayed(
            older.count + newer.count,
            late.at,
            late.weight + share * early.weight,
            late.total + share * early.total,
        )


EXACT = 128
"""So many distinct values are counted exactly; beyond, a sketch estimates."""
_BITS = 11
_REGISTERS = 1 << _BITS
_TAIL = 64 - _BITS


class Distinct(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The 64-bit hashes of up to `EXACT` values, or HyperLogLog's registers of more of them."""

    count: int
    hashes: frozenset[int]
    registers: bytes = b""

    @property
    def distinct(self) -> float:
        return _estimate(self.registers) if self.registers else float(len(self.hashes))


class DistinctOf:
    """count, distinct: exact up to 128 values, beyond that estimated by HyperLogLog (standard error 2.3 %).

    Values are compared as text: 1, 1.0 and "1" are the same.
    """

    form = Distinct
    empty = Distinct(0, frozenset())

    def first(self, value: Any, time: int) -> Distinct:
        return Distinct(1, frozenset((_hash(value),)))

    def add(self, held: Distinct, value: Any, time: int) -> Distinct:
        number = _hash(value)
        if held.registers:
            return Distinct(held.count + 1, held.hashes, _raise(held.registers, number))
        if number in held.hashes:
            return Distinct(held.count + 1, held.hashes)
        return _sized(held.count + 1, held.hashes | {number})

    def merge(self, older: Distinct, newer: Distinct) -> Distinct:
        count = older.count + newer.count
        if not older.registers and not newer.registers:
            return _sized(count, older.hashes | newer.hashes)
        high = np.maximum(np.frombuffer(_registers(older), np.uint8), np.frombuffer(_registers(newer), np.uint8))
        return Distinct(count, frozenset(), high.tobytes())


def _hash(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return xxhash.xxh3_64_intdigest(value if isinstance(value, bytes) else str(value).encode())


def _raise(registers: bytes, number: int) -> bytes:
    at = number >> _TAIL
    rank = _TAIL + 1 - (number & ((1 << _TAIL) - 1)).bit_length()
    if registers[at] >= rank:
        return registers
    return b"".join((registers[:at], bytes((rank,)), registers[at + 1 :]))


def _registers(held: Distinct) -> bytes:
    if held.registers:
        return held.registers
    registers = bytearray(_REGISTERS)
    for number in held.hashes:
        at = number >> _TAIL
        registers[at] = max(registers[at], _TAIL + 1 - (number & ((1 << _TAIL) - 1)).bit_length())
    return bytes(registers)


def _sized(count: int, hashes: frozenset[int]) -> Distinct:
    held = Distinct(count, hashes)
    return held if len(hashes) <= EXACT else Distinct(count, frozenset(), _registers(held))


def _estimate(registers: bytes) -> float:
    """Ertl's estimator, without bias over the whole range (arXiv:1702.01284, algorithm 6)."""
    histogram = np.bincount(np.frombuffer(registers, np.uint8), minlength=_TAIL + 2).tolist()
    total = _REGISTERS * _tau(1.0 - histogram[_TAIL + 1] / _REGISTERS)
    for at in range(_TAIL, 0, -1):
        total = 0.5 * (total + histogram[at])
    total += _REGISTERS * _sigma(histogram[0] / _REGISTERS)
    return _REGISTERS**2 / (2.0 * math.log(2.0)) / total


def _sigma(share: float) -> float:
    total, weight = share, 1.0
    while True:
        share, before = share * share, total
        total += share * weight
        weight += weight
        if total == before:
            return total


def _tau(share: float) -> float:
    if share in (0.0, 1.0):
        return 0.0
    weight, total = 1.0, 1.0 - share
    while True:
        share, before = math.sqrt(share), total
        weight *= 0.5
        total -= (1.0 - share) ** 2 * weight
        if total == before:
            return total / 3.0


def numbers(values: Sequence[Any] | NDArray) -> list[float | None]:
    """The values as floats; None for those that are missing (None, NaN), which no aggregate counts.

    Raises `InvalidInput` that shows the first value that is no number.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        floats: list[float | None] = values.astype(np.float64).tolist()
    else:
        floats = [None if value is None else _number(value) for value in values]
    return [None if value != value else value for value in floats]


def _number(value: Any) -> float:
    if isinstance(value, int | float | np.number | np.bool_):
        return float(value)
    raise InvalidInput(f"{value!r} is no number; declare the window with distinct=True to count values")


def present(values: Sequence[Any] | NDArray) -> list[Any]:
    """The values as Python's own; None for those that are missing."""
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    return [None if value is None or value != value else value for value in plain]
