"""The load generator sends what the plan says and records every request, with its latency from when it was due."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.bench.load import LoadPlan, RequestFailed, arrivals, run_load
from foretell.bench.pace import RealPace
from foretell.core.errors import ConfigError, Overloaded
from tests.bench.virtual import FakeTarget, VirtualPace, run, single_server, takes


def load(answer, **plan):
    return run(run_load(FakeTarget(answer), LoadPlan(**plan), pace=VirtualPace()))


def test_a_closed_loop_keeps_its_callers_busy_and_no_more():
    flying = most = 0

    async def answer(index):
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.1)
        flying -= 1

    recording = load(answer, concurrency=4, duration_s=10)
    assert most == 4
    assert len(recording) == pytest.approx(400, abs=4)
    assert np.allclose(recording.latency, 0.1)


def test_a_request_count_is_met_exactly_in_both_loops():
    assert len(load(takes(0.01), concurrency=7, requests=100)) == 100
    assert len(load(takes(0.01), rate=50, requests=100)) == 100


def test_an_open_loop_sends_on_time_whatever_the_server_does():
    recording = load(takes(5.0), rate=100, duration_s=20, max_in_flight=10_000)
    assert len(recording) == len(list(arrivals(LoadPlan(rate=100, duration_s=20))))
    assert recording.late.max() == pytest.approx(0, abs=1e-9)
    assert np.allclose(recording.latency, 5.0)


@settings(max_examples=60, deadline=None)
@given(rate=st.floats(1, 5000), seed=st.integers(0, 2**32))
def test_gaps_between_arrivals_are_exponential_with_the_asked_mean(rate, seed):
    count = 4000
    due = np.array(list(arrivals(LoadPlan(rate=rate, requests=count, seed=seed))))
    gaps = np.diff(due, prepend=0.0)
    assert len(due) == count
    assert (gaps >= 0).all()
    # The mean of n exponential gaps has a relative error of 1/sqrt(n); six of them never happen.
    assert gaps.mean() == pytest.approx(1 / rate, rel=6 / np.sqrt(count))
    # An exponential's standard deviation is its mean; evenly spaced arrivals would have none.
    assert gaps.std() == pytest.approx(1 / rate, rel=0.2)


def test_a_stall_of_one_second_shows_in_the_p99_of_an_open_loop_and_hides_in_a_closed_one():
    stalls = {"service_s": 0.001, "stall_at": 5.0, "stall_s": 1.0}
    opened = load(single_server(**stalls), rate=100, duration_s=20)
    closed = load(single_server(**stalls), concurrency=1, duration_s=20)
    assert np.percentile(opened.latency, 99) > 0.5
    assert (opened.latency > 0.1).sum() == pytest.approx(90, rel=0.4)
    assert np.percentile(closed.latency, 99) < 0.01
    assert (closed.latency > 0.1).sum() == 1


def test_waiting_for_room_in_flight_counts_as_latency():
    recording = load(takes(1.0), rate=10, duration_s=10, max_in_flight=1)
    assert recording.latency.max() > 50
    assert np.allclose(recording.latency - recording.late, 1.0)


def test_errors_are_counted_by_kind_and_none_is_dropped():
    async def answer(index):
        await asyncio.sleep(0.001)
        if index % 5 == 1:
            raise RequestFailed("HTTP 503")
        if index % 5 == 2:
            raise Overloaded("full", 1.0)
        if index % 5 == 3:
            raise ConnectionResetError

    recording = load(answer, concurrency=3, requests=100)
    assert recording.errors == {"HTTP 503": 20, "rejected: Overloaded": 20, "ConnectionResetError": 20}
    assert recording.answered == 40
    assert int(recording.ok.sum()) == 40


def test_an_answer_that_never_comes_is_a_timeout_and_the_run_ends():
    async def answer(index):
        if index % 10 == 0:
            await asyncio.Event().wait()

    for loop in ({"rate": 100.0}, {"concurrency": 2}):
        recording = load(answer, requests=50, timeout_s=2.0, **loop)
        assert recording.errors == {"timeout": 5}
        assert len(recording) == 50


def test_cancelling_the_run_ends_it():
    async def whole():
        task = asyncio.create_task(run_load(FakeTarget(takes(0.1)), LoadPlan(duration_s=1e6), pace=VirtualPace()))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(whole())


def test_progress_grows_to_the_end():
    seen = []
    target = FakeTarget(takes(0.01))
    run(run_load(target, LoadPlan(concurrency=1, duration_s=2), seen.append, VirtualPace()))
    shares = [p.share for p in seen]
    assert len(seen) >= 8
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1
    assert seen[-1].answered > 100


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("concurrency", 0),
        ("rate", -1.0),
        ("rate", float("nan")),
        ("duration_s", 0.0),
        ("requests", -1),
        ("warmup_s", -1.0),
        ("timeout_s", 0.0),
        ("max_in_flight", 0),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_the_fields_name(field, value):
    with pytest.raises(ConfigError, match=field):
        LoadPlan(**{field: value}).check()


async def test_the_real_pace_never_wakes_early():
    pace = RealPace()
    for wait in (0.0, 0.0003, 0.002, 0.01):
        due = pace.now() + wait
        await pace.until(due)
        assert pace.now() >= due
