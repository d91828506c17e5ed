"""Predictions beside the truth: counts add up over parts, intervals are those of the textbooks."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, mean_absolute_error, r2_score, root_mean_squared_error

from foretell.batch.accuracy import Comparison, add, judge, wilson
from foretell.batch.spec import Label
from foretell.core.errors import InvalidInput

SCORES = pa.list_(pa.float32())


def compare(truth, said, kind=None):
    """The quality of one output (of a `kind`), its rows counted in two parts."""
    truth, said = pa.array(truth), pa.array(said, kind)
    comparison = Comparison(Label("t"), truth.type, pa.schema([("y", said.type)]))
    half = len(truth) // 2
    return judge(add([comparison.tally(truth[:half], said[:half]), comparison.tally(truth[half:], said[half:])]))


@pytest.mark.filterwarnings("ignore:A single label")
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=60))
def test_classes_are_counted_as_scikit_learn_counts_them(rows):
    truth, said = zip(*rows, strict=True)
    quality = compare(truth, said)
    assert quality.rows == len(rows)
    assert quality.estimates[0].value == pytest.approx(accuracy_score(truth, said))
    classes = [int(name) for name in quality.classes]
    assert classes == sorted(set(truth) | set(said))
    assert quality.confusion == confusion_matrix(truth, said, labels=classes).tolist()


def test_numbers_are_measured_as_scikit_learn_measures_them():
    chance = np.random.default_rng(0)
    truth = chance.normal(size=500)
    said = truth + chance.normal(scale=0.3, size=500)
    found = {estimate.name: estimate for estimate in compare(truth, said).estimates}
    assert found["mean absolute error"].value == pytest.approx(mean_absolute_error(truth, said))
    assert found["root mean square error"].value == pytest.approx(root_mean_squared_error(truth, said))
    assert found["R²"].value == pytest.approx(r2_score(truth, said))
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in found.values())


def test_the_interval_of_the_mean_error_covers_the_true_one_as_often_as_it_says():
    chance = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        errors = chance.exponential(size=200)
        estimate = compare(np.zeros(200), errors).estimates[0]
        covered += estimate.low <= 1.0 <= estimate.high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_interval_of_a_share_is_wilsons():
    low, high = wilson(45, 50)
    assert (low, high) == (pytest.approx(0.7864, abs=1e-4), pytest.approx(0.9565, abs=1e-4))
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0


def test_scores_are_compared_by_the_place_of_the_largest_and_a_probability_by_one_half():
    assert compare([1, 0], [[0.1, 0.9], [0.2, 0.8]], SCORES).estimates[0].value == 0.5
    assert compare([True, False], [0.7, 0.6], pa.float32()).estimates[0].value == 0.5


def test_words_and_categories_are_compared_as_they_are():
    assert compare(["a", "b"], ["a", "a"]).classes == ["a", "b"]
    truth = pa.array(["a", "b"]).dictionary_encode()
    comparison = Comparison(Label("t"), truth.type, pa.schema([("y", pa.string())]))
    assert judge(comparison.tally(truth, pa.array(["a", "b"]))).estimates[0].value == 1.0


def test_rows_without_truth_count_nowhere():
    assert compare([1, None, 0, None], [1, 1, 1, 1]).rows == 2
    assert compare([1.0, None, float("nan")], [1.5, 1.0, 1.0]).rows == 1


def test_of_several_outputs_the_first_that_fits_is_taken_or_the_one_that_is_named():
    outputs = pa.schema([("text", pa.string()), ("label", pa.int64()), ("score", pa.float32())])
    assert Comparison(Label("t"), pa.int64(), outputs).output == "label"
    assert Comparison(Label("t"), pa.float64(), outputs).output == "score"
    assert Comparison(Label("t", "score"), pa.int64(), outputs).way == "number"
    with pytest.raises(InvalidInput, match=r"no output can be compared with that .*--label t=OUTPUT"):
        Comparison(Label("t"), pa.date32(), outputs)
