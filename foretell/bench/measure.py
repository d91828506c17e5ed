"""From a recording to numbers: percentiles that say how sure they are, throughput, goodput, cost and memory.
Pure functions of arrays; knows no clock, no network and no process.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from foretell.bench.load import LoadPlan, Recording
from foretell.bench.processes import ProcessUse

QUANTILES = (0.5, 0.9, 0.99, 0.999)
PRICE_PER_CORE_HOUR = 0.05
"""Dollars; about what small cloud machines cost on demand. A setting everywhere it is used."""

_Z = 1.959963984540054
_CURVE = 200
_BINS_PER_DECADE = 20
_MOST_SLOTS = 240


class Percentile(msgspec.Struct, frozen=True):
    """A latency quantile in seconds with its 95 % interval (by order statistics: no assumption on the shape, but
    one that answers are independent; stalls shared by many make it too narrow).

    `seconds` is None where fewer than `needed` samples exist: the interval then reaches past the largest one.
    """

    quantile: float
    seconds: float | None
    low: float | None
    high: float | None
    needed: int


class Cost(msgspec.Struct, frozen=True):
    """Of the watched processes. Dollars per 1,000 rows: `busy` prices the CPU seconds used, `provisioned` all
    `cores` for the whole run. `shared` says that the load generator's own CPU time is in it.
    """

    cpu_s: float
    cpu_s_per_1000: float
    busy_dollars_per_1000: float
    provisioned_dollars_per_1000: float
    price_per_core_hour: float
    cores: int
    shared: bool


class Slot(msgspec.Struct, frozen=True):
    """One stretch of the run's time: when it starts, answers per second, median and largest latency (seconds)."""

    at_s: float
    per_s: float
    p50_s: float | None
    max_s: float | None


class Generator(msgspec.Struct, frozen=True):
    """The load generator itself: its CPU seconds per second, and how late it sent at the 99th percentile."""

    cpu_share: float
    late_p99_s: float


class Result(msgspec.Struct, frozen=True):
    """One measured target. `latency` is of answered requests; failed ones are in `errors` by kind and nowhere
    else. `goodput_per_s` counts answers within `target_s`. `curve` holds (quantile, seconds), `histogram`
    (upper bound in seconds, count).
    """

    name: str
    plan: LoadPlan
    rows: int
    requests: int
    answered: int
    errors: dict[str, int]
    elapsed_s: float
    per_s: float
    rows_per_s: float
    latency: tuple[Percentile, ...]
    mean_s: float | None
    max_s: float | None
    target_s: float | None
    goodput_per_s: float | None
    curve: list[tuple[float, float]]
    histogram: list[tuple[float, int]]
    timeline: list[Slot]
    generator: Generator
    cost: Cost | None = None
    processes: list[ProcessUse] = []
    cold_start_s: float | None = None
    notes: list[str] = []


def percentile(sorted_seconds: NDArray[np.float64], quantile: float) -> Percentile:
    """The `quantile` of sorted latencies: the smallest value with at least that share at or below it."""
    count, needed = len(sorted_seconds), samples_needed(quantile)
    if count < needed:
        return Percentile(quantile, None, None, None, needed)
    middle = count * quantile
    spread = _Z * math.sqrt(count * quantile * (1 - quantile))
    ranks = [math.ceil(round(rank, 9)) for rank in (middle, middle - spread, middle + spread)]
    at, low, high = (float(sorted_seconds[min(max(rank, 1), count) - 1]) for rank in ranks)
    return Percentile(quantile, at, low, high, needed)


def samples_needed(quantile: float) -> int:
    """Samples from which the upper end of the 95 % interval of `quantile` is one of them."""
    return math.ceil(_Z**2 * quantile / (1 - quantile))


def summarise(
    name: str,
    plan: LoadPlan,
    rows: int,
    recording: Recording,
    target_s: float | None = None,
    cpu_share: float = 0.0,
) -> Result:
    """Everything a recording says. `rows`: rows per request. `target_s`: the latency that goodput asks for."""
    ok = recording.ok
    due, latency = recording.due[ok], recording.latency[ok]
    ordered = np.sort(latency)
    elapsed, answered = max(recording.elapsed_s, 1e-9), len(ordered)
    late = float(np.quantile(recording.late, 0.99)) if len(recording) else 0.0
    result = Result(
        name=name,
        plan=plan,
        rows=rows,
        requests=len(recording),
        answered=answered,
        errors=recording.errors,
        elapsed_s=recording.elapsed_s,
        per_s=answered / elapsed,
        rows_per_s=answered * rows / elapsed,
        latency=tuple(percentile(ordered, quantile) for quantile in QUANTILES),
        mean_s=float(latency.mean()) if answered else None,
        max_s=float(ordered[-1]) if answered else None,
        target_s=target_s,
        goodput_per_s=None if target_s is None else int((latency <= target_s).sum()) / elapsed,
        curve=_curve(ordered),
        histogram=_histogram(ordered),
        timeline=_timeline(due + latency, latency, elapsed),
        generator=Generator(cpu_share, late),
    )
    return msgspec.structs.replace(result, notes=_notes(result))


def price(
    result: Result, processes: Sequence[ProcessUse], price_per_core_hour: float, cores: int, shared: bool
) -> Result:
    """The result with the cost of `processes` over its run. Unchanged cost fields if nothing was answered."""
    cpu, answered_rows = sum(use.cpu_s for use in processes), result.answered * result.rows
    if not answered_rows:
        return msgspec.structs.replace(result, processes=list(processes))
    per_1000 = 1000 / answered_rows
    cost = Cost(
        cpu_s=cpu,
        cpu_s_per_1000=cpu * per_1000,
        busy_dollars_per_1000=cpu * per_1000 * price_per_core_hour / 3600,
        provisioned_dollars_per_1000=cores * result.elapsed_s * per_1000 * price_per_core_hour / 3600,
        price_per_core_hour=price_per_core_hour,
        cores=cores,
        shared=shared,
    )
    return msgspec.structs.replace(result, cost=cost, processes=list(processes))


def _curve(ordered: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Quantiles evenly spaced in nines (0, 90 %, 99 % …), up to the last that the sample can tell."""
    if not len(ordered):
        return []
    nines = np.linspace(0, math.log10(len(ordered)) if len(ordered) > 1 else 0, _CURVE)
    quantiles = 1 - 10.0**-nines
    ranks = np.clip(np.ceil(quantiles * len(ordered)).astype(int), 1, len(ordered)) - 1
    return [(float(q), float(s)) for q, s in zip(quantiles, ordered[ranks], strict=True)]


def _histogram(ordered: NDArray[np.float64]) -> list[tuple[float, int]]:
    if not len(ordered):
        return []
    places = np.ceil(np.log10(np.maximum(ordered, 1e-9)) * _BINS_PER_DECADE).astype(int)
    first = int(places[0])
    counts = np.bincount(places - first)
    return [(10 ** ((first + i) / _BINS_PER_DECADE), int(n)) for i, n in enumerate(counts)]


def _timeline(done: NDArray[np.float64], latency: NDArray[np.float64], elapsed: float) -> list[Slot]:
    width = next(w for w in (0.1, 0.25, 0.5, 1, 5, 10, 60, math.inf) if elapsed / w <= _MOST_SLOTS / 4)
    # The last stretch is not whole and would look like a drop.
    slots, places = int(elapsed / width), (done / width).astype(int)
    order = np.argsort(places, kind="stable")
    edges = np.searchsorted(places[order], np.arange(slots + 1))
    timeline = []
    for slot in range(slots):
        part = latency[order[edges[slot] : edges[slot + 1]]]
        p50, largest = (float(np.median(part)), float(part.max())) if len(part) else (None, None)
        timeline.append(Slot(slot * width, len(part) / width, p50, largest))
    return timeline


def _notes(result: Result) -> list[str]:
    """What a reader must know before believing the numbers."""
    notes = []
    unknown = [p for p in result.latency if p.seconds is None]
    if unknown:
        names = ", ".join(f"p{p.quantile * 100:g} needs {p.needed}" for p in unknown)
        notes.append(f"{result.answered} answers are too few: {names}.")
    failed = result.requests - result.answered
    if failed:
        notes.append(f"{failed} of {result.requests} requests failed; the latencies leave them out.")
    if result.generator.cpu_share > 0.85:
        share = result.generator.cpu_share
        notes.append(f"The load generator was {share:.0%} busy: the throughput is its limit as much as the target's.")
    p50 = result.latency[0].seconds
    if result.plan.rate and p50 and result.generator.late_p99_s > max(p50 / 2, 0.001):
        late = result.generator.late_p99_s * 1000
        notes.append(f"The generator sent up to {late:.1f} ms late (p99); that wait is in the latencies.")
    if result.plan.rate and result.per_s < 0.95 * result.plan.rate and not failed:
        notes.append(f"The target fell behind the asked {result.plan.rate:g} requests/s.")
    return notes
