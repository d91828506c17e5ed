"""Every admitted request ends once; rows come back to whom they belong; one bad request harms nobody else."""

from concurrent.futures import Future
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.core.errors import DeadlineExceeded, ForetellError, ModelFailed, NotReady, Overloaded, ReplicaCrashed
from foretell.core.request import Request
from foretell.core.settings import BatchingSettings
from foretell.scheduling.dispatcher import Batch, Dispatcher
from foretell.scheduling.queue import Ticket

POISON, KILLER = -1.0, -2.0


class World:
    """Time, timers and replicas of a simulated deployment. A replica doubles its rows."""

    def __init__(self, replicas: int = 1, **batching) -> None:
        self.now = 0.0
        self.due: list = []
        self.timer: tuple[float, object] | None = None
        self.lanes: list[FakeLane] = []
        self.sizes: list[int] = []
        self.dispatcher = Dispatcher(BatchingSettings(**batching), self.lanes, lambda: self.now, self)
        for _ in range(replicas):
            self.lanes.append(FakeLane(self))

    def soon(self, action) -> None:
        self.due.append(action)

    def at(self, when: float, action) -> None:
        self.timer = (when, action)

    def submit(self, *values: float, **fields) -> Future:
        request = Request({"x": np.array(values)}, len(values), **fields)
        ticket = Ticket(request, Future(), self.now)
        self.dispatcher.submit(ticket)
        self.tickets = [*getattr(self, "tickets", []), ticket]
        return ticket.future

    def settle(self) -> None:
        """Run callbacks that are due now."""
        while self.due:
            self.due.pop(0)()

    def run(self) -> None:
        """Let everything finish."""
        for _ in range(10_000):
            self.settle()
            busy = [lane for lane in self.lanes if lane.batches]
            if busy:
                busy[0].step()
            elif self.timer:
                (when, action), self.timer = self.timer, None
                self.now = max(self.now, when)
                action()
            elif not self.due:
                return
        raise AssertionError("it never comes to rest")


class FakeLane:
    def __init__(self, world: World) -> None:
        self.world = world
        self.batches: list[Batch] = []
        self.running_since = 0.0

    def send(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.world.sizes.append(batch.rows)

    def step(self) -> None:
        """Finish the oldest batch: an answer, an error if it holds poison, a death if it holds a killer."""
        batch = self.batches[0]
        rows = np.concatenate([ticket.request.inputs["x"] for ticket in batch.tickets])
        dispatcher = self.world.dispatcher
        self.world.now += 0.01
        if KILLER in rows:
            self.die()
            self.world.lanes.append(FakeLane(self.world))
            dispatcher.pump()
            return
        self.batches.pop(0)
        self.running_since = self.world.now
        if POISON in rows:
            dispatcher.failed(batch, ModelFailed("poison"))
        else:
            dispatcher.finished(batch, {"y": rows * 2}, 0.01, 0.01)

    def die(self) -> None:
        held, self.batches = self.batches, []
        self.world.lanes.remove(self)
        self.world.dispatcher.lost(held[0] if held else None, held[1:], "the replica died: SIGKILL")


def test_requests_that_arrive_together_run_together_and_get_their_own_rows():
    world = World()
    futures = [world.submit(1.0), world.submit(2.0, 3.0), world.submit(4.0)]
    world.run()
    assert [f.result().outputs["y"].tolist() for f in futures] == [[2.0], [4.0, 6.0], [8.0]]
    assert world.sizes == [4]
    assert futures[1].result().timing.batch_rows == 4


def test_one_batch_runs_and_one_waits_in_the_socket():
    world = World(max_batch_size=1)
    for value in range(5):
        world.submit(float(value))
    world.settle()
    assert len(world.lanes[0].batches) == 2
    assert world.dispatcher.queue.rows == 3


def test_a_poison_request_fails_alone():
    world = World()
    good, bad, fine = world.submit(1.0), world.submit(POISON), world.submit(2.0)
    world.run()
    assert good.result().outputs["y"] == [2.0]
    assert fine.result().outputs["y"] == [4.0]
    with pytest.raises(ModelFailed, match="poison"):
        bad.result()


def test_a_request_that_kills_its_replica_is_tried_once_more_alone_and_spares_the_others():
    world = World(replicas=2)
    futures = [world.submit(1.0), world.submit(KILLER), world.submit(2.0), world.submit(3.0)]
    world.run()
    assert [f.result().outputs["y"][0] for f in (futures[0], *futures[2:])] == [2.0, 4.0, 6.0]
    with pytest.raises(ReplicaCrashed, match="2 times"):
        futures[1].result()


def test_a_request_that_is_not_idempotent_is_never_run_twice():
    world = World()
    world.dispatcher = Dispatcher(BatchingSettings(), world.lanes, lambda: world.now, world, idempotent=False)
    future = world.submit(1.0)
    world.settle()
    world.lanes[0].die()
    with pytest.raises(ReplicaCrashed, match="1 times"):
        future.result()


def test_a_batch_that_only_waited_in_a_dead_replicas_socket_is_no_suspect():
    world = World(max_batch_size=1)
    futures = [world.submit(float(n)) for n in range(2)]
    world.settle()
    world.lanes[0].die()
    assert [t.attempts for t in world.tickets] == [1, 0]
    world.lanes.append(FakeLane(world))
    world.dispatcher.pump()
    world.run()
    assert all(f.result() for f in futures)


def test_a_suspect_that_only_waited_in_a_dead_replicas_socket_still_runs_alone():
    world = World(replicas=0)
    world.submit(1.0)
    queue = world.dispatcher.queue
    (suspect,) = queue.cut(10, 1 << 20)
    suspect.alone = True
    world.submit(2.0)
    world.dispatcher.lost(None, [Batch([suspect], 0.0)], "the replica died")
    assert queue.cut(10, 1 << 20) == [suspect]


def test_what_a_dead_replica_held_ends_when_the_version_was_stopped_meanwhile():
    world = World(max_batch_size=1)
    futures = [world.submit(float(n)) for n in range(2)]
    world.settle()
    world.dispatcher.stop(NotReady("crashes again and again"))
    world.lanes[0].die()
    for future in futures:
        with pytest.raises(NotReady, match="again and again"):
            future.result()
    assert world.dispatcher.outstanding == 0


def test_a_stopped_version_takes_requests_again_once_a_replica_is_ready_but_a_draining_one_does_not():
    world = World()
    world.dispatcher.stop(NotReady("crashes"))
    world.dispatcher.resume()
    future = world.submit(1.0)
    world.run()
    assert future.result()
    world.dispatcher.refuse()
    world.dispatcher.resume()
    with pytest.raises(NotReady):
        world.submit(1.0)


def test_a_batch_that_cannot_be_sent_fails_its_own_requests_only():
    world = World(max_batch_size=1)
    send, world.lanes[0].send = world.lanes[0].send, lambda batch: 1 / 0
    broken = world.submit(1.0)
    world.settle()
    with pytest.raises(ModelFailed, match="could not be sent"):
        broken.result()
    world.lanes[0].send = send
    fine = world.submit(2.0)
    world.run()
    assert fine.result()


def test_an_expired_request_says_whether_it_waited_or_ran():
    world = World(max_batch_size=1)
    running, waiting = [world.submit(float(n), deadline=50.0) for n in range(2)], world.submit(9.0, deadline=50.0)
    world.settle()
    world.dispatcher.expire(world.tickets[2])
    with pytest.raises(DeadlineExceeded, match="waited"):
        waiting.result()
    world.dispatcher.expire(world.tickets[0])
    with pytest.raises(DeadlineExceeded, match="ran"):
        running[0].result()
    world.run()  # the late answer of a request that has ended is dropped
    assert running[1].result()


def test_a_full_queue_refuses_with_the_learned_wait():
    world = World(max_batch_size=1, max_queue_rows=3)
    for _ in range(50):
        world.dispatcher.service.observe(1, 0.5)
    world.submit(0.0)
    world.settle()
    world.submit(0.0)
    world.settle()
    for _ in range(3):
        world.submit(0.0)
    with pytest.raises(Overloaded) as caught:
        world.submit(0.0)
    assert caught.value.retry_after_s == pytest.approx(2.5, rel=0.01)  # two in the replica, three queued


def test_stop_ends_what_waits_and_refuses_what_comes():
    world = World(replicas=0)
    future = world.submit(1.0)
    world.settle()
    world.dispatcher.stop(NotReady("down"))
    with pytest.raises(NotReady):
        future.result()
    with pytest.raises(NotReady):
        world.submit(1.0)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 9))
def test_every_admitted_request_ends_exactly_once_with_its_own_rows(seed, replicas, max_batch):
    random = Random(seed)
    world = World(replicas, max_batch_size=max_batch, max_queue_rows=200)
    sent: list[tuple[Future, list[float]]] = []
    for _ in range(60):
        action = random.random()
        if action < 0.6:
            values = [random.choice([1.0, 2.0, 3.0, POISON if random.random() < 0.1 else 4.0])]
            values *= random.randint(1, 3)
            if random.random() < 0.03:
                values = [KILLER]
            sent.append((world.submit(*values, priority=random.randint(-1, 1)), values))
        elif action < 0.75:
            world.settle()
        elif action < 0.95:
            world.settle()
            if busy := [lane for lane in world.lanes if lane.batches]:
                random.choice(busy).step()
        elif sent:
            ticket = random.choice(world.tickets)
            if not ticket.finished:
                world.dispatcher.cancel(ticket)
    world.run()
    assert world.dispatcher.outstanding == 0
    assert world.dispatcher.queue.rows == 0
    for future, values in sent:
        assert future.done()
        error = future.exception()
        if error is None:
            assert future.result().outputs["y"].tolist() == [2 * v for v in values]
        else:
            assert isinstance(error, ForetellError)
            if isinstance(error, ModelFailed):
                assert POISON in values


def test_a_whole_request_runs_as_the_batch_it_is_however_large_and_is_joined_with_no_other():
    world = World(max_batch_size=4, max_queue_rows=100)
    futures = [world.submit(1.0), world.submit(*[2.0] * 9, whole=True), world.submit(3.0), world.submit(4.0)]
    world.run()
    assert world.sizes == [1, 9, 2]
    assert [len(future.result().outputs["y"]) for future in futures] == [1, 9, 1, 1]


def test_a_whole_request_is_in_the_replicas_socket_before_the_one_that_runs_has_ended():
    world = World(max_batch_size=64)
    world.dispatcher.service.observe(8, 10.0)
    world.submit(*[1.0] * 8, whole=True)
    world.submit(*[2.0] * 8, whole=True)
    world.settle()
    assert [batch.rows for batch in world.lanes[0].batches] == [8, 8]
