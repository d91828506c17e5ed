"""Numbers agree with independent references, and say when they are not known."""

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.bench.load import LoadPlan, Recording
from foretell.bench.measure import percentile, price, samples_needed, summarise
from foretell.bench.processes import ProcessUse, ProcessWatch, find_server

latencies = st.lists(st.floats(1e-6, 100), min_size=1, max_size=600)


def recorded(latency, elapsed_s=10.0, kinds=None):
    recording = Recording()
    for number, value in enumerate(latency):
        recording.add(number * elapsed_s / len(latency), value, 0.0, kinds[number] if kinds else "ok")
    recording.elapsed_s = elapsed_s
    return recording


@settings(max_examples=60, deadline=None)
@given(latencies, st.sampled_from([0.5, 0.9, 0.99]))
def test_percentiles_are_numpys_inverted_cdf_when_there_are_samples_enough(values, quantile):
    found = percentile(np.sort(values), quantile)
    if len(values) < samples_needed(quantile):
        assert found.seconds is None
        return
    assert found.seconds == np.percentile(values, quantile * 100, method="inverted_cdf")
    assert found.low <= found.seconds <= found.high


@pytest.mark.parametrize(("quantile", "needed"), [(0.5, 4), (0.9, 35), (0.99, 381), (0.999, 3838)])
def test_a_percentile_beyond_the_sample_is_unknown_and_says_what_it_needs(quantile, needed):
    assert samples_needed(quantile) == needed
    values = np.arange(float(needed))
    assert percentile(values[:-1], quantile).seconds is None
    assert percentile(values[:-1], quantile).needed == needed
    assert percentile(values, quantile).seconds is not None


def test_the_interval_of_a_percentile_covers_the_truth_nineteen_times_of_twenty():
    random, truth = np.random.default_rng(1), scipy.stats.lognorm(1).ppf(0.9)
    found = [percentile(np.sort(random.lognormal(0, 1, 400)), 0.9) for _ in range(1000)]
    covered = np.mean([p.low <= truth <= p.high for p in found])
    assert 0.93 < covered < 0.98


@settings(max_examples=60, deadline=None)
@given(latencies, st.floats(1e-6, 100), st.integers(1, 8))
def test_throughput_goodput_and_means_are_what_they_say(values, target, rows):
    result = summarise("x", LoadPlan(), rows, recorded(values), target)
    assert result.per_s == pytest.approx(len(values) / 10)
    assert result.rows_per_s == pytest.approx(len(values) * rows / 10)
    assert result.goodput_per_s == pytest.approx(sum(v <= target for v in values) / 10)
    assert result.mean_s == pytest.approx(np.mean(values))
    assert result.max_s == max(values)
    assert sum(count for _, count in result.histogram) == len(values)
    assert all(s in values for _, s in result.curve)


@settings(max_examples=60, deadline=None)
@given(latencies)
def test_each_latency_lies_in_its_histogram_bin(values):
    histogram = summarise("x", LoadPlan(), 1, recorded(values)).histogram
    tops = [top for top, _ in histogram]
    running = np.cumsum([count for _, count in histogram])
    for top, upto in zip(tops, running, strict=True):
        below = sum(v <= top * (1 + 1e-9) for v in values)
        assert sum(v <= top * (1 - 1e-9) for v in values) <= upto <= below


def test_failed_requests_are_left_out_of_latency_and_goodput_and_noted():
    recording = recorded([0.1] * 10 + [0.0001] * 10, kinds=["ok"] * 10 + ["HTTP 500"] * 10)
    result = summarise("x", LoadPlan(), 1, recording, target_s=0.01)
    assert (result.answered, result.requests, result.errors) == (10, 20, {"HTTP 500": 10})
    assert result.goodput_per_s == 0
    assert result.mean_s == pytest.approx(0.1)
    assert any("10 of 20 requests failed" in note for note in result.notes)


def test_a_run_without_answers_still_gives_a_result():
    result = summarise("x", LoadPlan(), 1, recorded([0.1] * 3, kinds=["HTTP 500"] * 3), target_s=1.0)
    assert (result.per_s, result.mean_s, result.curve, result.histogram) == (0, None, [], [])
    assert price(result, [ProcessUse(1, "p", 1.0, 10)], 0.05, 2, False).cost is None


def test_the_timeline_counts_answers_when_they_came():
    result = summarise("x", LoadPlan(), 1, recorded([0.05] * 1000))
    whole = [slot for slot in result.timeline if 0.5 < slot.at_s < 9]
    assert all(slot.per_s == pytest.approx(100, rel=0.15) for slot in whole)
    assert all(slot.p50_s == pytest.approx(0.05) for slot in whole)


def test_a_busy_generator_is_named_as_the_limit():
    result = summarise("x", LoadPlan(), 1, recorded([0.1] * 10), cpu_share=0.97)
    assert any("load generator was 97% busy" in note for note in result.notes)


def test_a_target_that_falls_behind_the_rate_is_noted():
    result = summarise("x", LoadPlan(rate=1000), 1, recorded([0.1] * 500))
    assert any("fell behind" in note for note in result.notes)


def test_cost_by_hand():
    result = summarise("x", LoadPlan(), 4, recorded([0.1] * 500))
    uses = [ProcessUse(1, "gateway", 3.0, 100), ProcessUse(2, "replica", 5.0, 50)]
    cost = price(result, uses, price_per_core_hour=0.36, cores=2, shared=False).cost
    assert cost.cpu_s_per_1000 == pytest.approx(8 / 2)
    assert cost.busy_dollars_per_1000 == pytest.approx(4 * 0.0001)
    assert cost.provisioned_dollars_per_1000 == pytest.approx(2 * 10 / 2 * 0.0001)


def test_a_process_tree_is_watched_from_root_to_children():
    grandchild = "print('up', flush=True); input()"
    child = (
        f'import subprocess, sys; p = subprocess.Popen([sys.executable, "-c", "{grandchild}"], stdin=subprocess.PIPE);'
        "input(); p.communicate(b'x'); "
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", child], stdin=pipe, stdout=pipe) as process:
        process.stdout.readline()
        watch = ProcessWatch(process.pid)
        watch.start()
        uses = watch.stop()
        process.communicate(b"x\n")
    assert uses[0].pid == process.pid
    assert len(uses) == 2
    assert all(use.rss_bytes > 2**20 and use.cpu_s >= 0 for use in uses)


def test_a_process_that_is_gone_gives_no_use():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    watch = ProcessWatch(process.pid)
    watch.start()
    assert watch.stop() == []


def test_the_server_behind_a_local_url_is_found(unused_port_server):
    assert find_server(f"http://127.0.0.1:{unused_port_server}/v2") == os.getpid()
    assert find_server("http://192.0.2.1:80/") is None
    assert find_server("http://example.invalid/") is None


@pytest.fixture
def unused_port_server():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
