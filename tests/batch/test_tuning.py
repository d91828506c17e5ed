"""How large requests and parts are: as large as it pays, no larger than may be lost or held."""

from hypothesis import given
from hypothesis import strategies as st

from foretell.batch.tuning import GAIN, MOST_BYTES, MOST_ROWS, PART_BYTES, PART_S, SIZES, part_rows, sizes


def chosen(fixed_s: float, row_s: float, rows: int = 100_000, row_bytes: float = 1.0) -> tuple[int, list[int]]:
    """The size that is chosen for a model of this cost, and the sizes that were tried."""
    trial = sizes(rows, row_bytes, MOST_BYTES)
    tried = [next(trial)]
    try:
        while True:
            tried.append(trial.send(fixed_s + row_s * tried[-1]))
    except StopIteration as end:
        return end.value, tried


def test_a_model_whose_rows_get_cheaper_runs_in_the_largest_requests():
    assert chosen(fixed_s=0.001, row_s=1e-6)[0] == SIZES[-1]


def test_a_model_that_gains_nothing_runs_in_small_ones_and_little_is_tried():
    assert chosen(fixed_s=0.0, row_s=0.01) == (SIZES[0], [SIZES[0], *SIZES[:2]])


def test_a_request_is_no_larger_than_its_bytes_its_rows_and_its_time_allow():
    assert chosen(0.001, 1e-6, row_bytes=MOST_BYTES / 100)[0] == 100
    assert chosen(0.001, 1e-6, rows=100) == (64, [16, 16, 64])
    assert chosen(0.001, 1e-6, rows=10) == (16, [5, 5]), "a few rows tell what a row costs"
    assert chosen(1.0, 1e-6)[1] == [SIZES[0]], "what takes a second already is not made larger"


@given(st.floats(0, 1), st.floats(1e-7, 1), st.integers(1, 10_000), st.floats(1, 1e9))
def test_the_chosen_size_was_tried_and_is_about_the_cheapest_of_them(fixed_s, row_s, rows, row_bytes):
    size, tried = chosen(fixed_s, row_s, rows, row_bytes)
    assert size in tried or (rows < 2 * SIZES[0] and size <= SIZES[0])
    assert sum(tried) <= max(rows, 2)
    best = min(fixed_s / each + row_s for each in tried)
    assert (fixed_s / size + row_s) * GAIN <= best * 1.0001


@given(st.integers(1, 4096), st.floats(0, 10), st.floats(0, 1e9))
def test_a_part_is_whole_requests_within_what_a_kill_may_cost(batch, row_s, row_bytes):
    rows = part_rows(batch, row_s, row_bytes)
    assert rows % batch == 0
    assert rows == batch or rows * row_s <= PART_S * 1.5
    assert rows == batch or rows * row_bytes <= PART_BYTES * 1.5
    assert rows <= MOST_ROWS * 1.5
