"""The router of generations: every admitted one ends once, whatever replicas do; the books balance."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.core.errors import Cancelled, DeadlineExceeded, InvalidInput, NotReady, Overloaded, ReplicaCrashed
from foretell.core.generation import Finished, GenerateRequest, Piece, Started, Stops
from foretell.core.settings import BatchingSettings
from foretell.scheduling.generations import MAX_STRIKES, TRIAL_S, Generations


class Ear:
    """A listener that fails the test when anything is said after the end."""

    def __init__(self) -> None:
        self.events = []
        self.ends = []

    def hear(self, event) -> None:
        assert not self.ends
        self.events.append(event)

    def end(self, error) -> None:
        assert not self.ends
        self.ends.append(error)


class Lane:
    def __init__(self) -> None:
        self.streams = {}
        self.cancelled = []
        self.refuse = None

    def send(self, stream) -> None:
        if self.refuse:
            raise self.refuse

    def cancel(self, stream) -> None:
        self.cancelled.append(stream.number)


class World:
    def __init__(self, lanes: int = 1, idempotent: bool = True, **limits) -> None:
        self.now = 0.0
        self.lanes = [Lane() for _ in range(lanes)]
        self.generations = Generations(BatchingSettings(**limits), self.lanes, lambda: self.now, idempotent)

    def ask(self, prompt="x" * 40, **fields):
        ear = Ear()
        return self.generations.submit(GenerateRequest(prompt, **fields), ear), ear

    def hear(self, stream, *events) -> None:
        for event in events:
            self.generations.heard(stream, event)

    def kill(self, lane: Lane) -> None:
        self.lanes.remove(lane)
        self.generations.lost(lane, "the replica died")

    def revive(self) -> Lane:
        self.lanes.append(Lane())
        self.generations.resume()
        return self.lanes[-1]


def test_events_are_heard_in_order_and_the_last_finish_ends_it():
    world = World()
    stream, ear = world.ask(n=2)
    events = [Started(5, 0), Piece(0, "a", [1]), Finished(0, "stop", 1), Piece(1, "b", [2]), Finished(1, "stop", 1)]
    world.hear(stream, *events[:-1])
    assert not ear.ends
    world.hear(stream, events[-1], Piece(0, "late", [3]))
    assert ear.events == events
    assert ear.ends == [None]
    assert world.generations.outstanding == world.generations.queued == 0
    assert not world.lanes[0].streams


def test_the_replica_with_the_fewest_tokens_to_run_gets_the_next_one():
    world = World(lanes=2)
    long, _ = world.ask(stops=Stops(max_tokens=1000))
    shorts = [world.ask(stops=Stops(max_tokens=100))[0] for _ in range(3)]
    assert all(short.lane is not long.lane for short in shorts)
    world.hear(long, Started(10, 0), Piece(0, "…", list(range(950))))
    assert world.ask()[0].lane is long.lane


def test_more_than_the_queue_holds_is_refused_with_a_time_to_retry():
    world = World(max_queue_rows=3)
    world.ask(n=2)
    world.ask()
    with pytest.raises(Overloaded) as refused:
        world.ask()
    assert refused.value.retry_after_s > 0
    with pytest.raises(InvalidInput, match="split it"):
        world.ask(n=4)


def test_a_request_that_would_wait_past_its_deadline_is_refused_once_the_pace_is_known():
    world = World()
    for _ in range(30):
        stream, _ = world.ask()
        world.now += 2.0
        world.hear(stream, Started(5, 0))
    waiting = [world.ask()[0] for _ in range(5)]
    with pytest.raises(Overloaded, match="deadline"):
        world.ask(deadline=world.now + 5.0)
    assert world.ask(deadline=world.now + 60.0)[0].lane is not None
    with pytest.raises(DeadlineExceeded):
        world.ask(deadline=world.now - 1.0)
    assert len(waiting) == 5


def test_what_spoke_ends_with_its_replica_and_what_did_not_moves():
    world = World(lanes=2)
    spoke, ear = world.ask()
    world.hear(spoke, Started(5, 0), Piece(0, "a", [1]))
    lane = spoke.lane
    begun, begun_ear = world.ask(stops=Stops(max_tokens=1))
    while begun.lane is not lane:
        begun, begun_ear = world.ask(stops=Stops(max_tokens=1))
    world.hear(begun, Started(5, 0))
    world.kill(lane)
    assert isinstance(ear.ends[0], ReplicaCrashed)
    assert "in the middle" in ear.ends[0].message
    assert begun.lane is world.lanes[0]
    world.hear(begun, Started(5, 5), Piece(0, "b", [1]), Finished(0, "stop", 1))
    assert [type(event) for event in begun_ear.events] == [Started, Piece, Finished], "started is said once"
    assert begun_ear.ends == [None]


def test_without_replicas_requests_wait_for_the_restart():
    world = World(lanes=1)
    stream, ear = world.ask()
    world.kill(world.lanes[0])
    late, _ = world.ask()
    assert stream.lane is late.lane is None
    lane = world.revive()
    assert set(lane.streams) == {stream.number, late.number}
    assert not ear.ends


def test_a_poisonous_request_is_found_and_the_others_live():
    world = World(lanes=1)
    asked = [world.ask() for _ in range(6)]
    poison = asked[2][0]
    crashes = 0
    while any(not ear.ends for _, ear in asked):
        lane = world.lanes[0] if world.lanes else world.revive()
        if poison.number in lane.streams:
            world.kill(lane)
            crashes += 1
            continue
        assert len(lane.streams) == 1, "suspects are tried one at a time"
        (stream,) = lane.streams.values()
        world.hear(stream, Started(1, 0), Piece(0, "a", [1]), Finished(0, "stop", 1))
    assert crashes == 2
    assert [type(ear.ends[0]) for _, ear in asked] == [type(None)] * 2 + [ReplicaCrashed] + [type(None)] * 3
    assert "2 times" in asked[2][1].ends[0].message


def test_a_suspect_that_only_waits_its_turn_holds_nobody_up():
    world = World(lanes=1)
    for _ in range(3):
        world.ask()
    world.kill(world.lanes[0])
    lane = world.revive()
    world.generations.stepped(0.01)
    assert len(lane.streams) == 1
    world.now += TRIAL_S + 1.0
    world.generations.stepped(0.01)
    assert len(lane.streams) == 2


def test_nothing_is_tried_for_ever():
    world = World(lanes=1)
    stream, ear = world.ask()
    for _ in range(MAX_STRIKES):
        lane = world.lanes[0] if world.lanes else world.revive()
        if stream.lane is lane:
            world.hear(stream, Started(9, 0))  # out of trial each time
        world.kill(lane)
    assert isinstance(ear.ends[0], ReplicaCrashed)
    assert f"{MAX_STRIKES} times" in ear.ends[0].message


def test_new_requests_do_not_wait_for_the_trial_of_suspects():
    world = World(lanes=1)
    for _ in range(3):
        world.ask()
    world.kill(world.lanes[0])
    lane = world.revive()
    assert len(lane.streams) == 1
    fresh, _ = world.ask()
    assert fresh.number in lane.streams


def test_many_cancelled_suspects_are_skipped():
    world = World(lanes=1)
    asked = [world.ask()[0] for _ in range(3000)]
    world.kill(world.lanes[0])
    for stream in asked[:-1]:
        world.generations.drop(stream, Cancelled("gone"))
    assert set(world.revive().streams) == {asked[-1].number}


def test_a_package_that_is_not_idempotent_moves_nothing():
    world = World(lanes=2, idempotent=False)
    stream, ear = world.ask()
    world.kill(stream.lane)
    assert isinstance(ear.ends[0], ReplicaCrashed)


def test_dropping_tells_the_replica_at_once():
    world = World()
    stream, ear = world.ask()
    lane = stream.lane
    world.generations.drop(stream, Cancelled("gone"))
    world.generations.drop(stream, Cancelled("gone"))
    assert lane.cancelled == [stream.number]
    assert len(ear.ends) == 1
    assert not lane.streams


def test_a_request_that_no_frame_can_hold_fails_alone():
    world = World()
    world.lanes[0].refuse = InvalidInput("half a character")
    _, ear = world.ask()
    assert isinstance(ear.ends[0], InvalidInput)
    assert world.generations.outstanding == 0


def test_an_unhealthy_version_fails_what_waits_and_recovers():
    world = World(lanes=1)
    _, ear = world.ask()
    world.kill(world.lanes[0])
    world.generations.stop(NotReady("crashes again and again"))
    assert isinstance(ear.ends[0], NotReady)
    with pytest.raises(NotReady, match="again and again"):
        world.ask()
    world.revive()
    assert world.ask()[0].lane is not None


def test_draining_refuses_new_requests_and_lets_running_ones_end():
    world = World()
    stream, ear = world.ask()
    world.generations.refuse()
    with pytest.raises(NotReady):
        world.ask()
    world.hear(stream, Started(5, 0), Finished(0, "length", 0))
    assert ear.ends == [None]


def test_a_killed_replica_of_a_draining_version_still_moves_its_requests():
    world = World(lanes=2)
    stream, ear = world.ask()
    world.generations.refuse()
    world.kill(stream.lane)
    assert stream.lane is world.lanes[0]
    world.generations.abandon(NotReady("stopped"))
    assert isinstance(ear.ends[0], NotReady)


def test_busy_time_is_shared_by_tokens():
    world = World()
    (a, _), (b, _) = world.ask(), world.ask()
    world.generations.stepped(1.0)
    world.hear(a, Started(30, 20))
    world.hear(b, Started(10, 0))
    world.generations.stepped(3.0)
    world.hear(b, Piece(0, "…", list(range(20))), Finished(0, "stop", 20))
    assert b.cost_s == pytest.approx(4.0 * 30 / 40)
    world.hear(a, Finished(0, "stop", 0))
    assert a.cost_s == pytest.approx(1.0)


operations = st.lists(
    st.tuples(
        st.sampled_from(["ask", "start", "say", "finish", "fail", "drop", "kill", "revive", "stop", "step", "twins"]),
        st.integers(0, 30),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(operations, st.integers(0, 3), st.booleans())
def test_every_admitted_request_ends_exactly_once_and_the_books_balance(operations, lanes, idempotent):
    world = World(lanes, idempotent, max_queue_rows=12)
    asked, dead = [], []
    for name, pick in operations:
        world.now += 0.1
        live = [s for lane in world.lanes for s in lane.streams.values()]
        stream = live[pick % len(live)] if live else None
        if name in ("ask", "twins"):
            try:
                asked.append(world.ask(n=2 if name == "twins" else 1, stops=Stops(max_tokens=pick)))
            except (Overloaded, NotReady):
                pass
        elif name == "kill" and world.lanes:
            lane = world.lanes[pick % len(world.lanes)]
            dead.append(lane)
            world.kill(lane)
        elif name == "revive":
            world.revive()
        elif name == "stop":
            world.generations.stop(NotReady("no"))
        elif name == "step":
            world.generations.stepped(0.1)
        elif name == "drop" and asked:
            world.generations.drop(asked[pick % len(asked)][0], Cancelled("gone"))
        elif stream is not None:
            said = {"start": Started(9, 3), "say": Piece(0, "a", [1, 2]), "fail": InvalidInput("no")}
            world.hear(stream, said.get(name) or Finished(0, "stop", 1))
        held = [s for lane in world.lanes for s in lane.streams.values()]
        assert all(not lane.streams for lane in dead)
        assert len({s.number for s in held}) == len(held)
        assert all(not s.over for s in held)
        open_ones = [s for s, _ in asked if not s.over]
        assert world.generations.outstanding == len(open_ones)
        assert world.generations.queued == sum(s.rows for s in open_ones if s.started is None)
    world.revive()  # with a replica that works, everything comes to its end
    while world.generations.outstanding:
        held = [s for lane in world.lanes for s in lane.streams.values()]
        assert held, "a request waits although a replica is ready"
        for stream in held:
            world.hear(stream, Started(9, 3), *[Finished(choice, "stop", 1) for choice in range(stream.left)])
    assert all(len(ear.ends) == 1 for _, ear in asked)
    assert world.generations.outstanding == world.generations.queued == 0
    for _, ear in asked:
        assert sum(isinstance(event, Started) for event in ear.events) <= 1
