"""How works become runs of the graph: what is joined, what is parted, and that nothing is lost or done twice."""

from hypothesis import given
from hypothesis import strategies as st

from foretell.llm.executors.base import Work
from foretell.llm.executors.runs import split


def shapes(*works):
    return [(run.first, len(run.tokens), len(run.tokens[0])) for run in split(works)]


def test_single_tokens_of_neighbouring_slots_run_together():
    assert shapes(*(Work(slot, 5, [1], 1) for slot in (2, 0, 1))) == [(0, 3, 1)]


def test_an_idle_slot_parts_a_run():
    assert shapes(Work(0, 5, [1], 1), Work(2, 5, [1], 1), Work(3, 5, [1], 1)) == [(0, 1, 1), (2, 2, 1)]


def test_a_chunk_between_single_tokens_lends_its_first_token():
    assert shapes(Work(0, 5, [1], 1), Work(1, 0, [1, 2, 3], 0), Work(2, 5, [1], 1)) == [(0, 3, 1), (1, 1, 2)]


def test_a_chunk_at_the_edge_or_beside_an_idle_slot_stays_whole():
    assert shapes(Work(0, 0, [1, 2], 0), Work(1, 5, [1], 1)) == [(1, 1, 1), (0, 1, 2)]
    assert shapes(Work(0, 5, [1], 1), Work(1, 0, [1, 2], 0)) == [(0, 1, 1), (1, 1, 2)]
    assert shapes(Work(0, 5, [1], 1), Work(1, 0, [1, 2], 0), Work(3, 5, [1], 1)) == [(0, 1, 1), (3, 1, 1), (1, 1, 2)]


def test_nothing_to_do_is_no_run():
    assert split([]) == []


@st.composite
def steps(draw):
    works = []
    for slot in draw(st.lists(st.integers(0, 9), unique=True, max_size=10)):
        count = draw(st.sampled_from([1, 1, 1, 2, 3, 7]))
        tokens = [100 * slot + number for number in range(count)]
        works.append(Work(slot, draw(st.integers(0, 20)), tokens, draw(st.integers(0, count))))
    return works


@given(steps())
def test_every_token_runs_once_in_its_slot_and_in_order_and_every_score_has_its_row(works):
    ran = {work.slot: [] for work in works}
    rows = {}
    for run in split(works):
        length = len(run.tokens[0])
        assert length == 1 or len(run.tokens) == 1, "several sequences with several tokens"
        for place, (tokens, past) in enumerate(zip(run.tokens, run.past, strict=True)):
            assert len(tokens) == length
            ran[run.first + place] += [(past + number, token) for number, token in enumerate(tokens)]
        assert run.rows == sorted(run.rows)
        for position, row in zip(run.wanted, run.rows, strict=True):
            assert row not in rows
            rows[row] = run.tokens[position // length][position % length]
    for work in works:
        assert ran[work.slot] == [(work.past + number, token) for number, token in enumerate(work.tokens)]
    wanted = [token for work in works for token in work.tokens[len(work.tokens) - work.outputs :]]
    assert [rows[row] for row in range(len(rows))] == wanted
