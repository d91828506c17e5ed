"""The queue orders by priority, deadline and arrival, joins only equal shapes, and its row count always balances."""

from concurrent.futures import Future

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foretell.core.request import Request
from foretell.scheduling.queue import RequestQueue, Ticket


def ticket(rows: int = 1, priority: int = 0, deadline: float | None = None, width: int = 2) -> Ticket:
    inputs = {"x": np.zeros((rows, width), np.float32)}
    return Ticket(Request(inputs, rows, priority=priority, deadline=deadline), Future(), 0.0)


def test_smaller_priority_numbers_run_first_then_earlier_deadlines_then_earlier_arrivals():
    queue = RequestQueue()
    late, soon, urgent, plain = ticket(deadline=9.0), ticket(deadline=1.0), ticket(priority=-1), ticket()
    for item in (plain, late, soon, urgent):
        queue.push(item)
    assert queue.cut(10, 1 << 20) == [urgent, soon, late, plain]


def test_a_batch_holds_one_shape_only():
    queue = RequestQueue()
    narrow, wide, narrow_too = ticket(width=2), ticket(width=3), ticket(width=2)
    for item in (narrow, wide, narrow_too):
        queue.push(item)
    assert queue.cut(10, 1 << 20) == [narrow, narrow_too]
    assert queue.cut(10, 1 << 20) == [wide]
    assert queue.cut(10, 1 << 20) == []


def test_the_cut_stops_at_rows_and_at_bytes_but_always_takes_one():
    queue = RequestQueue()
    big = ticket(rows=8)
    for item in (big, ticket(rows=2), ticket(rows=2)):
        queue.push(item)
    assert queue.cut(4, 1 << 20) == [big]
    assert len(queue.cut(10, max_bytes=2 * 2 * 4)) == 1


def test_a_cancelled_ticket_neither_counts_nor_runs():
    queue = RequestQueue()
    gone, stays = ticket(rows=3), ticket(rows=1)
    queue.push(gone)
    queue.push(stays)
    gone.future.cancel()
    queue.forget(gone)
    assert queue.rows == 1
    assert queue.cut(10, 1 << 20) == [stays]
    assert queue.rows == 0


def test_a_retried_ticket_runs_before_all_others_and_alone():
    queue = RequestQueue()
    other, again = ticket(priority=-5), ticket()
    queue.push(other)
    queue.retry(again)
    assert queue.cut(10, 1 << 20) == [again]
    assert again.alone


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(1, 5), st.integers(-2, 2)),
            st.tuples(st.just("retry"), st.integers(1, 5), st.just(0)),
            st.tuples(st.just("cut"), st.integers(1, 8), st.just(0)),
            st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
        )
    )
)
def test_rows_balance_and_no_ticket_is_lost_or_doubled(steps):
    queue, waiting, taken = RequestQueue(), [], []
    for action, number, priority in steps:
        if action == "push":
            waiting.append(ticket(number, priority, width=number % 2 + 1))
            queue.push(waiting[-1])
        elif action == "retry":
            waiting.append(ticket(number))
            queue.retry(waiting[-1])
        elif action == "cut":
            batch = queue.cut(number, 1 << 20)
            assert sum(t.rows for t in batch) <= number or len(batch) == 1
            taken += batch
            waiting = [t for t in waiting if t not in batch]
        elif waiting:
            gone = waiting.pop(number % len(waiting))
            gone.future.cancel()
            queue.forget(gone)
        assert queue.rows == sum(t.rows for t in waiting)
    assert set(queue.drain()) == set(waiting)
    assert queue.rows == 0
    assert len(set(taken)) == len(taken)
