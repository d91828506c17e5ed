"""The comparison of language models: numbers of answers, ratios of rounds, the page that tells them."""

import math

import pytest

from benchmarks.llm_engines import Served
from benchmarks.llm_report import GOALS, OURS, Goal, Record, judge, markdown, missed, write
from benchmarks.llm_workloads import DECODE, WORKLOADS, alone, decoding, throughput
from benchmarks.report import BEGIN, END, insert


def test_decoding_counts_only_while_all_streams_decode():
    early = Served(0.0, [1.0, 2.0, 3.0, 4.0], 4)
    late = Served(0.0, [3.0, 3.5, 4.0, 4.5, 9.0], 5)
    # From 3.0 (the last stream begins) to 4.0 (the first one ends): one token of the first, two of the second.
    assert decoding([early, late]) == pytest.approx(3.0)


def test_answers_one_after_the_other_count_without_their_prompts():
    assert alone([Served(0.0, [1.0, 2.0, 3.0], 3), Served(3.0, [9.0, 11.0], 2)]) == pytest.approx(3 / 4)


def test_a_piece_of_several_tokens_counts_as_many():
    assert decoding([Served(0.0, [1.0, 2.0, 3.0], 6)]) == pytest.approx(2.0)


def test_streams_that_never_overlap_fall_back_to_the_whole():
    served = [Served(0.0, [1.0, 2.0], 2), Served(0.0, [3.0, 4.0], 2)]
    assert decoding(served) == throughput(served) == pytest.approx(1.0)


def rounds(ours, theirs):
    values = [(OURS, ours), ("llama.cpp", theirs)]
    return [
        Record("decode", 8, engine, number, {DECODE: rate})
        for engine, rates in values
        for number, rate in enumerate(rates)
    ]


def test_a_ratio_is_taken_within_its_round():
    summary = judge(rounds([100, 400, 300], [50, 100, 150]), Goal("decode", 8, DECODE, "llama.cpp", 2.1))
    assert summary.middle == 2.0
    assert judge(rounds([1.0], [1.0]), Goal("decode", 32, DECODE, "llama.cpp", 2.1)) is None


def test_the_page_says_which_goals_were_missed():
    records = rounds([200.0, 200.0], [100.0, 100.0])
    page = markdown(records, {"foretell": "defaults"}, {"openvino": "not here"}, ["when"])
    assert "| decode | 8 | decode tokens/s | foretell | llama.cpp | 2.00 (2.00–2.00) | ≥ 2.1 | **missed** |" in page
    assert "| llama.cpp | 100 (100–100) |" in page
    assert "openvino: not here" in page
    assert missed(records) == 1


def test_both_parts_of_the_results_keep_their_places(tmp_path):
    (tmp_path / "RESULTS.md").write_text(insert("# Results\n", "classic"))
    for _ in range(2):
        write(tmp_path, "language", rounds([1.0], [1.0]), command="x")
    page = (tmp_path / "RESULTS.md").read_text()
    assert page.count("language") == page.count("classic") == 1
    assert page.index(BEGIN) < page.index(END) < page.index("language")
    assert (tmp_path / "llm.json").read_text().count('"decode"') == 2


def test_every_goal_is_about_a_workload_that_is_measured():
    measured = {(workload.name, workload.streams) for workload in WORKLOADS}
    assert {(goal.workload, goal.streams) for goal in GOALS} <= measured
    assert all(goal.least > 0 and math.isfinite(goal.least) for goal in GOALS)
