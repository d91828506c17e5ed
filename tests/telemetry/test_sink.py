"""The sink loses nothing it accepted, counts what it refused, and never waits for a consumer."""

import logging
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.telemetry.sink import CHUNK, Detached, Sink
from tests.telemetry.observations import observation


class Keeps:
    dropped = 0

    def __init__(self):
        self.seen, self.sizes, self.ticks, self.closed = [], [], 0, 0

    def consume(self, batch):
        self.seen.extend(o.request_id for o in batch)
        self.sizes.append(len(batch))

    def tick(self):
        self.ticks += 1

    def close(self):
        self.closed += 1


class Raises(Keeps):
    def consume(self, batch):
        raise RuntimeError("broken consumer")


class Hangs(Keeps):
    """Holds on to its first batch until `free` is set; `entered` says that it has it."""

    def __init__(self):
        super().__init__()
        self.entered, self.free = threading.Event(), threading.Event()

    def consume(self, batch):
        self.entered.set()
        assert self.free.wait(10)
        super().consume(batch)


def fill(sink, count, start=0):
    for number in range(start, start + count):
        sink.record(observation(request_id=str(number)))


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 40),
    steps=st.lists(st.one_of(st.integers(1, 30), st.just("drain")), max_size=20),
)
def test_everything_recorded_is_delivered_once_in_order_or_counted_as_dropped(capacity, steps):
    keeps = Keeps()
    sink = Sink(capacity, [keeps])
    recorded, expected, waiting = 0, [], 0
    for step in steps:
        if step == "drain":
            assert sink.drain() == waiting
            waiting = 0
        else:
            fill(sink, step, recorded)
            taken = min(step, capacity - waiting)
            expected += [str(n) for n in range(recorded, recorded + taken)]
            waiting += taken
            recorded += step
    sink.close()
    assert keeps.seen == expected
    assert sink.dropped == recorded - len(expected)
    assert keeps.closed == 1


def test_a_drain_hands_over_chunks_of_bounded_size():
    keeps = Keeps()
    sink = Sink(10_000, [keeps])
    fill(sink, 2 * CHUNK + 5)
    assert sink.drain() == 2 * CHUNK + 5
    assert keeps.sizes == [CHUNK, CHUNK, 5]


def test_the_thread_lets_go_of_the_interpreter_between_chunks_and_ticks():
    keeps, breaths, ticked = Keeps(), [], threading.Event()
    keeps.tick = ticked.set
    sink = Sink(10_000, [keeps], interval_s=0.001, sleep=breaths.append)
    fill(sink, 3 * CHUNK)
    sink.start()
    sink.start()
    assert ticked.wait(10)
    sink.close()
    assert len(keeps.seen) == 3 * CHUNK
    assert len(breaths) == 3


def test_making_a_sink_starts_no_thread():
    before = threading.active_count()
    Sink(10, [Detached(Keeps(), 10)])
    assert threading.active_count() == before


def test_drops_from_many_threads_are_counted_exactly():
    sink = Sink(0, [])
    threads = [threading.Thread(target=fill, args=(sink, 2000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.dropped == 8000


def test_a_consumer_that_raises_costs_the_others_nothing_and_is_logged_once_a_minute(caplog):
    now, keeps = [100.0], Keeps()
    sink = Sink(100, [Raises(), keeps], clock=lambda: now[0])
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            fill(sink, 1)
            sink.drain()
        assert len(caplog.records) == 1
        now[0] += 61
        fill(sink, 1)
        sink.drain()
    assert len(caplog.records) == 2
    assert len(keeps.seen) == 4
    assert sink.failures == {"Raises": 4, "Keeps": 0}


def test_a_hanging_consumer_blocks_neither_recording_nor_a_scrape():
    hangs = Hangs()
    sink = Sink(5, [hangs], interval_s=0.001)
    fill(sink, 1)
    sink.start()
    assert hangs.entered.wait(10)
    fill(sink, 8, start=1)
    assert (sink.waiting, sink.dropped) == (5, 3)
    assert sink.drain(patience_s=0.001) == 0
    hangs.free.set()
    sink.close()
    assert hangs.seen == [str(n) for n in range(6)]


def test_closing_gives_up_on_a_consumer_that_hangs(caplog):
    hangs = Hangs()
    sink = Sink(5, [hangs], interval_s=0.001)
    fill(sink, 1)
    sink.start()
    assert hangs.entered.wait(10)
    sink.close(timeout_s=0.01)
    assert "hangs" in caplog.text
    hangs.free.set()


def test_a_detached_consumer_sees_every_batch_and_is_closed_after_the_last():
    keeps = Keeps()
    detached = Detached(keeps, capacity=1000)
    detached.start()
    for number in range(20):
        detached.consume([observation(request_id=str(number))])
    detached.close()
    assert keeps.seen == [str(n) for n in range(20)]
    assert keeps.closed == 1


def test_a_detached_consumer_that_was_never_started_gets_its_batches_on_close():
    keeps = Keeps()
    detached = Detached(keeps, capacity=10)
    detached.consume([observation()])
    detached.close()
    assert (keeps.seen, keeps.closed) == (["r1"], 1)


def test_ticks_reach_a_detached_consumer():
    ticked = threading.Event()
    keeps = Keeps()
    keeps.tick = ticked.set
    detached = Detached(keeps, capacity=10)
    detached.start()
    detached.tick()
    assert ticked.wait(10)
    detached.close()


def test_behind_a_hanging_detached_consumer_the_others_go_on_and_the_overflow_is_counted():
    hangs, keeps = Hangs(), Keeps()
    detached = Detached(hangs, capacity=4)
    sink = Sink(100, [detached, keeps])
    detached.start()
    fill(sink, 1)
    sink.drain()
    assert hangs.entered.wait(10)
    fill(sink, 3, start=1)
    sink.drain()
    fill(sink, 2, start=4)
    sink.drain()
    assert len(keeps.seen) == 6
    assert detached.dropped == 2
    hangs.free.set()
    sink.close()
    assert hangs.seen == ["0", "1", "2", "3"]


def test_a_detached_consumer_that_raises_goes_on_with_the_next_batch():
    raises = Raises()
    detached = Detached(raises, capacity=10)
    detached.consume([observation()])
    detached.consume([observation()])
    detached.close()
    assert detached.failures == 2
    assert raises.closed == 1


@pytest.mark.parametrize("patience_s", [0.1, -1])
def test_draining_an_empty_sink_is_nothing(patience_s):
    assert Sink(5, [Keeps()]).drain(patience_s) == 0
