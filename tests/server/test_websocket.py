"""Rows in, predictions out over a real WebSocket: order, errors that end nothing, back-pressure, time-outs."""

import base64
import json
import os
import time

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from foretell.core.errors import Overloaded
from foretell.server.websocket import MOST_OPEN, MOST_OPEN_BYTES
from tests.server.conftest import receive_all
from tests.server.models import body

ROW = '{"x": [1, 2, 3, 4]}'
DOUBLED = {"model": "double@3", "outputs": {"y": [2.0, 4.0, 6.0, 8.0], "total": 10.0}}


def dial(live, model: str = "double", **more):
    return connect(f"ws://{live.address}/v2/models/{model}/stream", **more)


def ask(socket, *messages) -> list[dict]:
    for message in messages:
        socket.send(message if isinstance(message, str | bytes) else json.dumps(message))
    return [json.loads(socket.recv(10)) for _ in messages]


def until(said, timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not said():
        assert time.monotonic() < end
        time.sleep(0.01)


def handshake(model: str = "double", **headers: str) -> bytes:
    fields = {
        "Host": "h",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
    } | headers
    lines = [f"GET /v2/models/{model}/stream HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def text_frame(data: bytes) -> bytes:
    """A short masked frame, by hand."""
    return bytes([0x81, 0x80 | len(data)]) + bytes(4) + data


def test_rows_are_answered_by_the_names_of_outputs(shared):
    with dial(shared) as socket:
        assert ask(socket, ROW, {"x": [0, 0, 0, 1]}) == [
            DOUBLED,
            {"model": "double@3", "outputs": {"y": [0.0, 0.0, 0.0, 2.0], "total": 1.0}},
        ]
    with dial(shared, "double/versions/1") as socket:
        assert ask(socket, ROW)[0]["model"] == "double@1"
    with dial(shared, "table") as socket:
        row = {"age": 7, "name": "Ünï"}
        assert ask(socket, row)[0]["outputs"] == row


def test_requests_of_the_protocol_are_answered_in_its_form(shared):
    with dial(shared) as socket:
        (answer,) = ask(socket, {**body(shape=(2, 4), data=[1] * 8), "id": "q7"})
    assert (answer["id"], answer["model_version"]) == ("q7", "3")
    assert [output["shape"] for output in answer["outputs"]] == [[2, 4], [2]]


WRONG = [
    ("{", 400, "no JSON object"),
    ("[1]", 400, "no JSON object"),
    (b"\x00", 400, "binary"),
    ({}, 400, '"x" is missing'),
    ({"X": 1}, 400, 'unknown input "X"'),
    ({"x": [1, 2]}, 400, "x"),
    ({"x": "no"}, 400, "x"),
    ({**body(name="z"), "id": "q"}, 400, 'unknown input "z"'),
    ({**body(), "parameters": {"binary_data_output": True}}, 400, "binary"),
    ({"inputs": 7}, 400, "inputs"),
    ('{"x":' + "[" * 5000, 400, ""),
]


@pytest.mark.parametrize(("message", "status", "words"), WRONG, ids=[repr(w[0])[:30] for w in WRONG])
def test_a_wrong_message_is_answered_with_what_is_wrong_and_ends_nothing(shared, message, status, words):
    with dial(shared) as socket:
        wrong, right = ask(socket, message, ROW)
    assert wrong["status"] == status and words in wrong["error"]
    assert right == DOUBLED


@pytest.mark.parametrize(("model", "status"), [("boom", 500), ("crash", 500), ("loading", 503)])
def test_a_model_that_fails_ends_nothing(shared, model, status):
    with dial(shared, model) as socket:
        assert [answer["status"] for answer in ask(socket, ROW, ROW)] == [status, status]


def test_the_id_of_a_wrong_request_comes_back(shared):
    with dial(shared) as socket:
        assert ask(socket, {**body(name="z"), "id": "q9"})[0]["id"] == "q9"


def test_answers_keep_the_order_of_messages_however_long_each_takes(live):
    with dial(live, "slow") as socket:
        answers = ask(socket, ROW, "{", {"x": [0, 0, 0, 1]}, "{")
    assert ["error" in answer for answer in answers] == [False, True, False, True]
    assert [answer["outputs"]["total"] for answer in answers[::2]] == [10.0, 1.0]


def test_only_so_many_messages_are_open_and_a_client_that_goes_cancels_them(live):
    with live.connect() as sock:
        sock.sendall(handshake("endless") + text_frame(ROW.encode()) * (MOST_OPEN + 10))
        until(lambda: len(live.plane.requests) == MOST_OPEN)
        time.sleep(0.1)
        assert len(live.plane.requests) == MOST_OPEN
    until(lambda: live.plane.cancelled == MOST_OPEN)


def long_frame(data: bytes) -> bytes:
    return bytes([0x81, 0xFF]) + len(data).to_bytes(8, "big") + bytes(4) + data


def fill(sock, frame: bytes, count: int) -> int:
    """Frames that the server took of so many, none of whose answers is read."""
    for _ in range(count):
        left = frame
        while left:
            left = left[sock.send(left) :]
    return count


def test_a_client_that_does_not_read_is_not_read_from(live):
    """Texts of 64 KB to a model that sends them back, for ever."""
    with live.connect() as sock:
        sock.settimeout(0.5)
        sock.sendall(handshake("text"))
        frame = long_frame(json.dumps({"t": ["x" * 2**16]}).encode())
        with pytest.raises(TimeoutError):
            fill(sock, frame, 100_000)
        answered = len(live.plane.requests)
        time.sleep(0.2)
        assert len(live.plane.requests) == answered, "it stands still"
        assert answered * len(frame) < 64 * 2**20
        sock.settimeout(10)
        for _ in range(answered // 2):
            assert sock.recv(2**17)
        until(lambda: len(live.plane.requests) > answered)


def test_a_full_queue_holds_the_stream_up_instead_of_failing_rows(live):
    live.plane.refuse = Overloaded("too many wait", 0.01)
    with dial(live) as socket:
        socket.send(ROW)
        time.sleep(0.1)
        live.plane.refuse = None
        assert json.loads(socket.recv(10)) == DOUBLED
        live.plane.refuse = Overloaded("too many wait", 0.01)
        assert ask(socket, {**body(), "parameters": {"timeout": 50_000}})[0]["status"] == 429


def test_what_is_no_websocket_of_ours_is_refused_before_it_begins(shared):
    with pytest.raises(InvalidStatus) as refused:
        dial(shared, "nobody")
    assert refused.value.response.status_code == 404
    with pytest.raises(InvalidStatus) as refused:
        dial(shared, origin="https://elsewhere.example")
    assert refused.value.response.status_code == 403
    with dial(shared, origin=f"http://{shared.address}") as socket:
        assert ask(socket, ROW) == [DOUBLED]
    plain = shared.send(b"GET /v2/models/double/stream HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert plain.startswith(b"HTTP/1.1 426 ") and b"upgrade: websocket" in plain
    assert shared.send(handshake(**{"Sec-WebSocket-Key": "short"})).startswith(b"HTTP/1.1 400 ")
    assert shared.send(handshake(Upgrade="h2c")).startswith(b"HTTP/1.1 426 ")


def test_what_comes_right_behind_the_handshake_is_not_lost(shared):
    with shared.connect() as sock:
        sock.sendall(handshake() + text_frame(ROW.encode()) + bytes([0x88, 0x80]) + bytes(4))
        assert b"HTTP/1.1 101 " in receive_all(sock)


def test_a_message_in_pieces_is_one_message(shared):
    with dial(shared) as socket:
        socket.send([ROW[:5], ROW[5:9], ROW[9:]])
        assert json.loads(socket.recv(10)) == DOUBLED


def test_a_message_over_the_limit_ends_the_connection_with_1009(shared):
    with shared.connect() as sock:
        sock.sendall(handshake() + bytes([0x81, 0xFF]) + (MOST_OPEN_BYTES + 1).to_bytes(8, "big") + bytes(4))
        assert (1009).to_bytes(2, "big") in receive_all(sock)


def test_bytes_that_are_no_frames_end_the_connection(shared):
    with shared.connect() as sock:
        sock.sendall(handshake() + b"\xff" * 20)
        assert b"\x88" in receive_all(sock)


def test_draining_answers_what_was_begun_and_says_goodbye(serve):
    live = serve()
    with dial(live, "slow") as socket:
        socket.send(ROW)
        until(lambda: live.plane.requests)
        ended = live.start_call(lambda: live.server.drain(5.0))
        assert json.loads(socket.recv(10))["outputs"]["total"] == 10.0
        with pytest.raises(ConnectionClosed):
            socket.recv(10)
    assert socket.close_code == 1001
    ended.result(10)
    assert live.server.connections == 0


def test_a_silent_client_is_pinged_and_cut_if_it_does_not_answer(serve):
    live = serve(idle_timeout_s=0.2)
    with dial(live) as socket, live.connect() as dead:
        dead.sendall(handshake())
        assert b"101" in receive_all(dead), "it ends, for nobody answers the ping"
        assert ask(socket, ROW) == [DOUBLED], "the other one is there still, for its library answers"


def test_a_client_that_never_reads_is_cut(serve):
    live = serve(write_timeout_s=0.2)
    with live.connect() as sock:
        sock.sendall(handshake("text"))
        with pytest.raises(OSError, match=r"reset|pipe|abort"):
            fill(sock, long_frame(json.dumps({"t": ["x" * 60_000]}).encode()), 100_000)
    until(lambda: live.server.connections == 0)


def test_connections_are_counted_once(serve):
    live = serve(max_connections=1)
    with dial(live) as socket:
        assert live.server.connections == 1
        assert live.send(b"GET /v2 HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503 ")
        assert ask(socket, ROW) == [DOUBLED]
    until(lambda: live.server.connections == 0)
