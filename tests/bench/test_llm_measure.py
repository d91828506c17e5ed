"""The numbers of a language model agree with plain loops over the same answers, and say when they are not known."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.bench.llm.measure import Answer, Targets, gaps, latency, meets, summarise, time_per_token
from foretell.bench.load import LoadPlan, Recording


@st.composite
def answers(draw):
    steps = draw(st.lists(st.floats(1e-4, 2), min_size=1, max_size=20))
    pieces = len(steps)
    tokens = draw(st.integers(pieces, 3 * pieces))
    prompt = draw(st.integers(1, 500))
    return Answer(list(np.cumsum(steps)), tokens, prompt, draw(st.integers(0, prompt)), counted=True)


def recorded(found, gap_s=0.1, late_s=0.0, failed=0, elapsed_s=None):
    recording = Recording()
    for number, answer in enumerate(found):
        recording.add(number * gap_s, late_s + answer.times[-1], late_s)
    for _ in range(failed):
        recording.add(0.0, 0.1, 0.0, "HTTP 500")
    recording.elapsed_s = elapsed_s or 1e3
    return recording


ALL = LoadPlan(requests=1)
"""A plan by count: rates are over the whole run."""


@settings(max_examples=80, deadline=None)
@given(st.lists(answers(), min_size=1, max_size=20), st.integers(0, 5), st.floats(0.001, 3), st.floats(0.001, 3))
def test_goodput_counts_the_requests_that_keep_both_targets(found, failed, ttft, itl):
    result = summarise("x", ALL, recorded(found, failed=failed), found, Targets(ttft, itl))
    good = 0
    for answer in found:
        pieces = len(answer.times)
        per_token = 0.0
        if pieces > 1:
            per_token = (answer.times[-1] - answer.times[0]) / (answer.tokens * (pieces - 1) / pieces)
        good += answer.times[0] <= ttft and per_token <= itl
    assert result.goodput_per_s == pytest.approx(good / 1e3)
    assert result.good_share == pytest.approx(good / (len(found) + failed))
    assert result.goodput_per_s <= result.requests_per_s + 1e-12


@settings(max_examples=60, deadline=None)
@given(st.lists(answers(), min_size=1, max_size=20))
def test_goodput_grows_with_its_targets(found):
    ttft = np.array([answer.times[0] for answer in found])
    per_token = np.array([time_per_token(answer) for answer in found])
    counts = [meets(Targets(limit, limit), ttft, per_token).sum() for limit in (0.0, 0.1, 1.0, math.inf)]
    assert counts == sorted(counts)
    assert counts[-1] == len(found)


@settings(max_examples=80, deadline=None)
@given(st.lists(answers(), min_size=1, max_size=20), st.floats(0.5, 60))
def test_rates_count_the_tokens_that_came_inside_the_window(found, window):
    recording = recorded(found, elapsed_s=1e3)
    result = summarise("x", LoadPlan(duration_s=window), recording, found, price_per_hour=0.1)
    output = prompt = 0.0
    for number, answer in enumerate(found):
        sent = number * 0.1
        output += sum(sent + t <= window for t in answer.times) * answer.tokens / len(answer.times)
        prompt += answer.prompt_tokens * (sent + answer.times[0] <= window)
    assert result.output_per_s == pytest.approx(output / window)
    assert result.total_per_s == pytest.approx((output + prompt) / window)
    if output:
        assert result.cost.per_million_output == pytest.approx(0.1 / 3600 * window / output * 1e6)
        assert result.cost.per_million_total <= result.cost.per_million_output
    else:
        assert result.cost is None


@settings(max_examples=60, deadline=None)
@given(st.lists(answers(), min_size=1, max_size=20))
def test_the_timeline_holds_every_token_of_its_slots(found):
    result = summarise("x", LoadPlan(duration_s=15.0), recorded(found), found)
    assert [slot.at_s for slot in result.timeline] == [n * 0.25 for n in range(60)]
    assert sum(slot.per_s for slot in result.timeline) * 0.25 == pytest.approx(result.output_per_s * 15)


def test_waiting_for_room_counts_into_the_first_token_and_the_whole_answer():
    found = [Answer([0.5, 1.0], 2)]
    result = summarise("x", ALL, recorded(found, late_s=2.0), found)
    assert result.ttft.max_s == pytest.approx(2.5)
    assert result.whole.max_s == pytest.approx(3.0)
    assert result.gaps.max_s == pytest.approx(0.5)


def test_gaps_never_reach_from_one_answer_to_the_next():
    found = [Answer([1.0, 1.1], 2), Answer([5.0], 1), Answer([9.0, 9.2, 9.5], 3)]
    assert gaps(found) == pytest.approx([0.1, 0.2, 0.3])


def test_time_per_token_spreads_a_pieces_tokens():
    assert time_per_token(Answer([1.0, 2.0, 3.0], 3)) == pytest.approx(1.0)
    assert time_per_token(Answer([1.0, 2.0, 3.0], 6)) == pytest.approx(0.5)
    assert math.isnan(time_per_token(Answer([1.0], 1)))


def test_a_percentile_beyond_the_sample_is_unknown_and_a_note_says_so():
    found = [Answer([1.0, 1.5], 2, 10, 0, True)] * 20
    result = summarise("x", ALL, recorded(found), found)
    assert [p.seconds for p in result.ttft.points] == [1.0, None, None]
    assert any("too few" in note for note in result.notes)


def test_gaps_have_no_interval_since_they_depend_on_each_other():
    assert latency(np.ones(1000)).points[0].low == 1.0
    assert latency(np.ones(1000), independent=False).points[0].low is None


def test_notes_tell_uncounted_tokens_failures_and_big_pieces():
    plain, big = [Answer([1.0], 1)] * 4, [Answer([1.0, 2.0], 8, 5, 0, True)] * 4
    assert any("no usage" in note for note in summarise("x", ALL, recorded(plain), plain).notes)
    assert any("4.00 tokens" in note for note in summarise("x", ALL, recorded(big), big).notes)
    assert any("1 of 5" in note for note in summarise("x", ALL, recorded(big, failed=1), big).notes)


def test_nothing_answered_is_a_result_too():
    result = summarise("x", LoadPlan(duration_s=2), recorded([], failed=3), [], Targets(1.0, 1.0), 0.1)
    assert (result.answered, result.output_per_s, result.goodput_per_s, result.cost) == (0, 0, 0, None)
    assert result.errors == {"HTTP 500": 3}
    assert msgspec.json.decode(msgspec.json.encode(result))["ttft"]["mean_s"] is None
