"""Two targets in one run, in short alternating blocks, and ratios with confidence intervals from them.

Blocks go A B B A: what drifts slowly (heat, neighbours, caches) hits both sides alike. Knows recordings; doesn't
know what the targets are.
"""

import math
import time
from collections.abc import Callable, Sequence
from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import NDArray

from foretell.bench.load import LoadPlan, OnProgress, Progress, Recording, Target, run_load
from foretell.bench.measure import Result, samples_needed, summarise
from foretell.bench.pace import Pace

_RESAMPLES = 1000
_LEAST_ROUNDS = 4
_QUANTILES = (0.5, 0.99, 0.999)


class Ratio(msgspec.Struct, frozen=True):
    """`name` of A divided by that of B, with a 95 % interval; None where the samples are too few.

    `better` is "A", "B", or "" if the interval straddles 1 and the run shows no difference.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    better: str


class Comparison(msgspec.Struct, frozen=True):
    """Both sides' own results over all their blocks, and A ÷ B."""

    a: Result
    b: Result
    ratios: tuple[Ratio, ...]
    rounds: int
    block_s: float
    notes: list[str] = []


class Block(msgspec.Struct, frozen=True):
    """What one side did in one round: latencies of its answers, and the seconds it took."""

    latency: NDArray[np.float64]
    elapsed_s: float


async def compare(
    a: Target,
    b: Target,
    plan: LoadPlan,
    rounds: int = 8,
    on_progress: OnProgress | None = None,
    pace: Pace | None = None,
) -> Comparison:
    """Load both open targets by `plan`, whose duration and requests are each side's in all, spread over
    2 × `rounds` blocks a side. Each side is warmed up once. The generator's CPU share is of both together.
    """
    for target in (a, b):
        if plan.warmup_s:
            warm = msgspec.structs.replace(plan, duration_s=plan.warmup_s, requests=0)
            await run_load(target, warm, pace=pace)
    rounds = max(rounds, _LEAST_ROUNDS)
    share = msgspec.structs.replace(
        plan, duration_s=plan.duration_s / (2 * rounds), requests=math.ceil(plan.requests / (2 * rounds))
    )
    sides: tuple[list[Recording], list[Recording]] = ([], [])
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(4 * rounds):
        side = (0, 1, 1, 0)[step % 4]
        seeded = msgspec.structs.replace(share, seed=plan.seed + step)
        watch = _nested(on_progress, step, 4 * rounds, sides) if on_progress else None
        sides[side].append(await run_load((a, b)[side], seeded, watch, pace))
    busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
    results = [
        summarise(target.name, plan, target.rows, _joined(side), cpu_share=busy)
        for target, side in zip((a, b), sides, strict=True)
    ]
    ratios = ratios_of(_rounds(sides[0]), _rounds(sides[1]), a.rows / b.rows, plan.seed)
    return Comparison(results[0], results[1], ratios, rounds, share.duration_s, results[0].notes + results[1].notes)


def ratios_of(a: Sequence[Block], b: Sequence[Block], rows_ratio: float = 1.0, seed: int = 0) -> tuple[Ratio, ...]:
    """A ÷ B in rows per second, p50 and p99 (and p99.9 where known), by a paired bootstrap over rounds: round i of
    A is drawn together with round i of B. `rows_ratio`: rows of A's requests ÷ rows of B's.
    """
    draws = np.random.default_rng(seed).multinomial(len(a), [1 / len(a)] * len(a), _RESAMPLES)
    draws = np.vstack([np.ones(len(a), dtype=draws.dtype), draws])
    rates = [draws @ [len(x.latency) for x in side] / (draws @ [x.elapsed_s for x in side]) for side in (a, b)]
    ratios = [_ratio("throughput", rates[0] * rows_ratio, rates[1], len(a), more_is_better=True)]
    samples = min(sum(len(x.latency) for x in side) for side in (a, b))
    known = [q for q in _QUANTILES if samples >= samples_needed(q)]
    sides = [_quantiles(side, draws, known) for side in (a, b)] if known else []
    for quantile in _QUANTILES:
        name = f"p{quantile * 100:g}"
        if quantile in known:
            of_a, of_b = (side[:, known.index(quantile)] for side in sides)
            ratios.append(_ratio(name, of_a, of_b, len(a), more_is_better=False))
        else:
            ratios.append(Ratio(name, None, None, None, ""))
    return tuple(ratios)


def _ratio(name: str, a: NDArray[np.float64], b: NDArray[np.float64], rounds: int, more_is_better: bool) -> Ratio:
    """The first element of `a` and `b` is the estimate, the others are resamples."""
    with np.errstate(divide="ignore", invalid="ignore"):
        every = a / b
    if not np.isfinite(every).all():
        return Ratio(name, None, None, None, "")
    tail = _tail(rounds)
    low, high = np.quantile(every[1:], [tail, 1 - tail])
    better = ""
    if low > 1 or high < 1:
        better = "A" if (low > 1) == more_is_better else "B"
    return Ratio(name, float(every[0]), float(low), float(high), better)


def _tail(rounds: int) -> float:
    """The share of resamples to cut at each end for a 95 % interval.

    With few rounds plain percentiles are too narrow; they are widened as Student's t widens a normal interval
    (t by its Cornish-Fisher expansion, good to 1 % from 3 degrees of freedom).
    """
    z, free = NormalDist().inv_cdf(0.975), rounds - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return NormalDist().cdf(-t * math.sqrt(rounds / free))


def _quantiles(side: Sequence[Block], draws: NDArray[np.int64], quantiles: Sequence[float]) -> NDArray[np.float64]:
    """For each draw (how often each round was taken) the quantiles of the latencies pooled so: [draws, quantiles]."""
    pooled = np.concatenate([block.latency for block in side])
    owner = np.repeat(np.arange(len(side)), [len(block.latency) for block in side])
    order = np.argsort(pooled)
    pooled, owner = pooled[order], owner[order]
    found = np.empty((len(draws), len(quantiles)))
    for number, times in enumerate(draws):
        upto = np.cumsum(times[owner])
        # A draw of rounds without any answer has no quantile; the ratio is then reported as unknown.
        at = np.searchsorted(upto, np.array(quantiles) * upto[-1])
        found[number] = pooled[np.minimum(at, len(pooled) - 1)] if upto[-1] else np.nan
    return found


def _rounds(blocks: Sequence[Recording]) -> list[Block]:
    """A side's two blocks of each round as one."""
    pairs = zip(blocks[::2], blocks[1::2], strict=True)
    return [Block(np.concatenate([x.latency[x.ok], y.latency[y.ok]]), x.elapsed_s + y.elapsed_s) for x, y in pairs]


def _joined(blocks: Sequence[Recording]) -> Recording:
    """The blocks of one side one after the other, as if nothing had run between."""
    joined = Recording()
    for block in blocks:
        joined.extend(block, joined.elapsed_s)
        joined.elapsed_s += block.elapsed_s
    return joined


def _nested(
    on_progress: OnProgress, step: int, steps: int, sides: tuple[list[Recording], list[Recording]]
) -> Callable[[Progress], None]:
    """Progress of one block as progress of the whole comparison."""
    before = [block for side in sides for block in side]
    answered, sent = sum(block.answered for block in before), sum(map(len, before))
    elapsed = sum(block.elapsed_s for block in before)

    def tell(now: Progress) -> None:
        failed = sent - answered + now.failed
        on_progress(Progress(elapsed + now.elapsed_s, answered + now.answered, failed, (step + now.share) / steps))

    return tell
