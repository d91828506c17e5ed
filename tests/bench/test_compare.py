"""A comparison finds a difference that is there, and rarely one that isn't."""

import numpy as np
import pytest

from foretell.bench.compare import Block, compare, ratios_of
from foretell.bench.load import LoadPlan
from tests.bench.virtual import FakeTarget, VirtualPace, run, takes


def blocks(random, rounds, scale=1.0, samples=100, drift=()):
    found = []
    for number in range(rounds):
        slow = drift[number] if len(drift) else 1.0
        latency = random.lognormal(0, 0.5, samples) * scale * slow
        found.append(Block(latency, float(latency.sum())))
    return found


def test_a_difference_is_found_with_its_size():
    random = np.random.default_rng(0)
    throughput, p50, p99, p999 = ratios_of(blocks(random, 8), blocks(random, 8, scale=2.0))
    assert throughput.low < 2.0 < throughput.high
    assert throughput.better == "A"
    assert p50.low < 0.5 < p50.high
    assert (p50.better, p99.better) == ("A", "A")
    assert (p999.value, p999.better) == (None, "")


def test_equal_sides_straddle_one_nineteen_times_of_twenty():
    random = np.random.default_rng(2)
    pairs = ((blocks(random, 6, samples=3), blocks(random, 6, samples=3)) for _ in range(60))
    # 3 are expected, a few more with so few rounds.
    assert sum(ratios_of(a, b)[0].better != "" for a, b in pairs) < 10


def test_drift_that_hits_both_sides_of_a_round_does_not_widen_the_interval():
    random = np.random.default_rng(3)
    drift = np.linspace(1, 5, 8)
    throughput = ratios_of(blocks(random, 8, drift=drift), blocks(random, 8, 1.3, drift=drift))[0]
    assert throughput.better == "A"
    assert throughput.high - throughput.low < 0.3


def test_throughput_is_compared_by_rows():
    random = np.random.default_rng(4)
    side = blocks(random, 8)
    assert ratios_of(side, side, rows_ratio=0.5)[0].value == pytest.approx(0.5)


def test_a_side_that_answered_nothing_gives_unknown_ratios():
    random = np.random.default_rng(5)
    none = [Block(np.empty(0), 1.0)] * 4
    for ratio in ratios_of(blocks(random, 4), none):
        assert (ratio.value, ratio.low, ratio.high, ratio.better) == (None, None, None, "")


def test_blocks_run_a_b_b_a_and_both_sides_get_the_same_load():
    order = []

    def side(name, seconds):
        inner = takes(seconds)

        async def answer(index):
            if not order or order[-1] != name:
                order.append(name)
            await inner(index)

        return FakeTarget(answer, name)

    plan = LoadPlan(concurrency=2, duration_s=16, warmup_s=0)
    seen = []
    found = run(compare(side("A", 0.01), side("B", 0.02), plan, 4, seen.append, VirtualPace()))
    assert order == ["A", "B", "A", "B", "A", "B", "A", "B", "A"]
    assert (found.rounds, found.block_s) == (4, 2.0)
    assert found.ratios[0].value == pytest.approx(2.0, rel=0.02)
    assert found.ratios[1].value == pytest.approx(0.5, rel=0.02)
    assert found.a.answered == pytest.approx(2 * found.b.answered, rel=0.02)
    assert found.a.elapsed_s == pytest.approx(16, rel=0.02)
    shares = [p.share for p in seen]
    assert shares == sorted(shares)
    assert shares[-1] > 0.9
