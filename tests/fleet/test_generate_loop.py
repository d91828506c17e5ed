"""A replica's loop around a generator, over a socket pair in this process."""

import socket
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.core.errors import ContextExceeded, DeadlineExceeded, InvalidInput, ModelFailed, Overloaded
from foretell.core.generation import (
    Chat,
    Finished,
    GenerateRequest,
    Grammar,
    Load,
    Piece,
    Sampling,
    Started,
    Stops,
    TokenLogprob,
    ToolCall,
)
from foretell.fleet import wire
from foretell.fleet.faults import describe, revive
from foretell.fleet.generate_loop import INTAKE_S, GenerateLoop, send, warm_up
from tests.fleet.scripted import ScriptedGenerator, prompt


class Gateway:
    """The other end: sends frames, reads frames."""

    def __init__(self, generator: ScriptedGenerator) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(10.0)
        self.generator = generator
        self._reader = wire.FrameReader()
        self._thread = threading.Thread(target=self._run, args=(theirs,), daemon=True)
        self._thread.start()

    def _run(self, sock: socket.socket) -> None:
        with sock:
            GenerateLoop(sock, self.generator).run()

    def send(self, *headers: wire.Header) -> None:
        for header in headers:
            send(self.sock, wire.frame(header))

    def ask(self, number: int, text: str, **fields) -> None:
        self.send(wire.Generate(number, wire.pack_request(GenerateRequest(text, **fields))))

    def frame(self) -> wire.Header | None:
        while (received := self._reader.next()) is None:
            count = self.sock.recv_into(self._reader.room())
            if not count:
                return None
            self._reader.received(count)
        return received[0]

    def until_idle(self) -> list[tuple[int, object]]:
        """Every event until the generator holds nothing."""
        events = []
        while True:
            frame = self.frame()
            assert isinstance(frame, wire.Events)
            events += frame.events
            if not frame.load.running and not frame.load.waiting:
                return events

    def hang_up(self) -> None:
        self.sock.close()
        self._thread.join(10.0)
        assert not self._thread.is_alive()


@pytest.fixture
def gateway():
    gateway = Gateway(ScriptedGenerator())
    yield gateway
    gateway.hang_up()


def test_events_of_a_request_come_in_order_one_frame_a_step(gateway):
    gateway.ask(1, prompt(tokens=2, reading=2))
    frames = [gateway.frame() for _ in range(5)]
    assert [frame.events for frame in frames] == [
        [],
        [(1, Started(7, 2))],
        [(1, Piece(0, " 0", [0]))],
        [(1, Piece(0, " 1", [1]))],
        [(1, Finished(0, "stop", 2))],
    ]
    assert frames[0].rss > 0
    assert frames[0].compute_s > 0.0
    assert frames[0].load.running == 1
    assert frames[-1].load.running == 0


def test_requests_that_come_while_a_step_runs_join_the_next_one(gateway):
    gateway.ask(1, prompt(tokens=3, step_s=0.1))
    gateway.frame()
    gateway.ask(2, prompt(tokens=1))
    events = gateway.until_idle()
    assert [e for n, e in events if n == 1][-1] == Finished(0, "stop", 3)
    assert [e for n, e in events if n == 2] == [Started(7, 2), Piece(0, " 0", [0]), Finished(0, "stop", 1)]


def test_a_cancelled_request_is_never_heard_of_again_and_its_memory_is_told_to_be_free(gateway):
    gateway.ask(1, prompt(tokens=1000, step_s=0.05))
    assert gateway.frame().events
    gateway.send(wire.Cancel(1))
    last = gateway.until_idle()
    assert all(not isinstance(event, Finished) for _, event in last)
    assert gateway.generator.cancelled == [1]


def test_running_streams_wait_for_a_few_of_a_burst_and_not_for_all():
    """Taking in a request takes time, by the loop's clock."""
    time_s, before_step = [0.0], []

    class Slow(ScriptedGenerator):
        def submit(self, number, request):
            time_s[0] += INTAKE_S * 0.6
            before_step[-1] += 1
            super().submit(number, request)

        def step(self):
            before_step.append(0)
            return super().step()

    ours, theirs = socket.socketpair()
    burst = [wire.Generate(n, wire.pack_request(GenerateRequest(prompt(tokens=1)))) for n in range(1, 12)]
    for header in burst:
        send(ours, wire.frame(header))
    before_step.append(0)
    ours.shutdown(socket.SHUT_WR)
    with ours, theirs:
        GenerateLoop(theirs, Slow(), lambda: time_s[0]).run()
    assert before_step[:6] == [2, 2, 2, 2, 2, 1]
    assert sum(before_step) == len(burst)


def test_a_cancellation_of_an_unknown_number_changes_nothing(gateway):
    gateway.send(wire.Cancel(99))
    gateway.ask(1, prompt(tokens=1))
    assert len(gateway.until_idle()) == 3


@pytest.mark.parametrize(
    ("refuse", "kind"), [("invalid", InvalidInput), ("overloaded", Overloaded), ("bug", ModelFailed)]
)
def test_a_refused_request_fails_alone(gateway, refuse, kind):
    gateway.ask(1, prompt(tokens=2))
    gateway.ask(2, prompt(refuse=refuse))
    events = gateway.until_idle()
    (fault,) = [event for number, event in events if number == 2]
    assert isinstance(revive(fault.error, fault.message, fault.retry_after_s), kind)
    assert fault.retry_after_s == (1.5 if refuse == "overloaded" else 0.0)
    assert len([event for number, event in events if number == 1]) == 4


def test_a_refusal_is_told_though_nothing_runs(gateway):
    gateway.ask(1, prompt(refuse="invalid"))
    assert [number for number, _ in gateway.until_idle()] == [1]


def test_a_request_of_the_wrong_types_fails_alone(gateway):
    wrong = msgspec.Raw(msgspec.msgpack.encode({"prompt": "x", "sampling": {"temperature": "hot"}}))
    gateway.send(wire.Generate(1, wrong))
    ((_, fault),) = gateway.until_idle()
    assert fault.error == "InvalidInput"
    assert "temperature" in fault.message


def test_a_request_that_fails_on_the_way_leaves_the_others(gateway):
    gateway.ask(1, prompt(tokens=3, fails=1))
    gateway.ask(2, prompt(tokens=3))
    events = gateway.until_idle()
    assert [event for number, event in events if number == 1][-1] == wire.Fault("InvalidInput", "this one cannot go on")
    assert [event for number, event in events if number == 2][-1] == Finished(0, "stop", 3)


def test_a_broken_engine_says_why_and_ends(gateway):
    gateway.ask(1, prompt(breaks=1))
    while isinstance(frame := gateway.frame(), wire.Events):
        pass
    assert isinstance(frame, wire.Failed)
    assert "the engine is broken" in frame.message
    assert gateway.frame() is None


def test_hanging_up_ends_the_loop_in_the_middle_of_work():
    gateway = Gateway(ScriptedGenerator())
    gateway.ask(1, prompt(tokens=10_000, step_s=0.01))
    gateway.frame()
    gateway.hang_up()


def test_warming_up_leaves_nothing_behind_and_raises_what_it_meets():
    generator = ScriptedGenerator()
    warm_up(generator)
    assert generator.load().running == 0

    class Broken(ScriptedGenerator):
        def step(self):
            return [(0, ModelFailed("no such kernel"))]

    with pytest.raises(ModelFailed, match="no such kernel"):
        warm_up(Broken())


class TestFaults:
    @pytest.mark.parametrize(
        "error", [InvalidInput("a"), ContextExceeded("too long"), Overloaded("b", 2.0), DeadlineExceeded("c")]
    )
    def test_known_errors_keep_their_class(self, error):
        name, message = describe(error)
        assert type(revive(name, message, 2.0)) is type(error)
        assert revive(name, message).message == error.message

    def test_unknown_ones_are_the_models_failure_and_name_the_place(self, capsys):
        try:
            raise KeyError("w")
        except KeyError as error:
            name, message = describe(error)
        assert type(revive(name, message)) is ModelFailed
        assert "KeyError" in message
        assert "test_generate_loop.py" in message


texts = st.text(max_size=20)
ids = st.integers(0, 2**31)
finite = st.floats(allow_nan=False, width=32)
logprobs = st.builds(
    TokenLogprob,
    ids,
    texts,
    st.binary(max_size=5),
    finite,
    st.lists(st.tuples(ids, st.binary(max_size=5), finite), max_size=3),
)
events = st.one_of(
    st.builds(Started, ids, ids),
    st.builds(Piece, ids, texts, st.lists(ids, max_size=3), st.lists(logprobs, max_size=2)),
    st.builds(ToolCall, ids, ids, texts, texts),
    st.builds(Finished, ids, st.sampled_from(["stop", "length", "tool_calls"]), ids, ids, ids),
    st.builds(wire.Fault, texts, texts, finite),
)
messages = st.dictionaries(texts, st.one_of(texts, ids, st.none(), st.lists(texts, max_size=2)), max_size=3)
requests = st.builds(
    GenerateRequest,
    st.one_of(texts, st.lists(ids, max_size=5), st.builds(Chat, st.lists(messages, max_size=3), tool_choice=texts)),
    st.builds(Sampling, temperature=st.none() | finite, seed=st.none() | ids, logit_bias=st.dictionaries(ids, finite)),
    st.builds(Stops, st.none() | ids, stop=st.lists(texts, max_size=2).map(tuple), ignore_eos=st.booleans()),
    st.none() | st.builds(Grammar, st.sampled_from(["json", "json_schema", "regex", "lark"]), texts),
    n=st.integers(1, 4),
    deadline=st.none() | finite,
)
frames = st.one_of(
    st.builds(wire.Generate, ids, requests.map(wire.pack_request)),
    st.builds(wire.Cancel, ids),
    st.builds(wire.Events, st.lists(st.tuples(ids, events), max_size=5), finite, st.builds(Load, ids, ids), ids),
)


@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 300), min_size=1, max_size=10))
def test_generation_frames_survive_any_cutting_of_the_stream(sent, cuts):
    stream = b"".join(bytes(part) for header in sent for part in wire.frame(header))
    reader, got, at, turn = wire.FrameReader(reuse=True), [], 0, 0
    while at < len(stream):
        room = reader.room()
        size = min(len(room), len(stream) - at, cuts[turn % len(cuts)])
        room[:size] = stream[at : at + size]
        at, turn = at + size, turn + 1
        reader.received(size)
        while (received := reader.next()) is not None:
            header = received[0]
            got.append((type(header), header.number, wire.unpack_request(header.request))
                       if isinstance(header, wire.Generate) else header)  # fmt: skip
    assert got == [
        (wire.Generate, h.number, wire.unpack_request(h.request)) if isinstance(h, wire.Generate) else h for h in sent
    ]


@pytest.mark.parametrize("wrong", ["\ud800", 2**70])
def test_what_no_frame_can_hold_is_refused_before_it_is_sent(wrong):
    with pytest.raises(InvalidInput, match="cannot be passed on"):
        wire.pack_request(GenerateRequest(Chat([{"content": wrong}])))
