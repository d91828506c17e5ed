"""Medians, their intervals and ratios as the comparison uses them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.stats import coverage_of, ratios, summarise

VALUES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=30)


def test_six_rounds_are_the_fewest_whose_extremes_cover_the_median_with_95_percent() -> None:
    assert coverage_of(5, 0) < 0.95 <= coverage_of(6, 0)


def test_few_rounds_give_minimum_and_maximum_and_admit_their_lower_coverage() -> None:
    summary = summarise([3.0, 1.0, 2.0])
    assert (summary.low, summary.middle, summary.high, summary.coverage) == (1.0, 2.0, 3.0, 0.75)


def test_many_rounds_give_an_interval_that_leaves_outliers_out() -> None:
    summary = summarise([1000.0, *[float(i) for i in range(1, 20)], -1000.0])
    assert -1000 < summary.low < summary.middle < summary.high < 1000


@given(VALUES)
def test_the_interval_encloses_the_median(values: list[float]) -> None:
    summary = summarise(values)
    assert summary.low <= summary.middle <= summary.high
    assert 0.0 <= summary.coverage < 1.0


def test_no_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def test_ratios_pair_equal_rounds_and_leave_out_rounds_without_a_rival() -> None:
    assert ratios({0: 10.0, 1: 20.0, 2: 30.0}, {0: 5.0, 2: 10.0}) == [2.0, 3.0]


def test_a_rival_that_answered_nothing_gives_no_ratio() -> None:
    assert ratios({0: 10.0}, {0: 0.0}) == []
