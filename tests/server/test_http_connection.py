"""What a connection promises: order, limits, time-outs, cancellation, and an end that loses nothing."""

import asyncio
import gzip
import http.client
import json
import re
import socket
import time
import zlib

import msgspec
import pytest

from foretell.core.errors import ConfigError
from foretell.server.app import serve_http
from foretell.server.http import HttpSettings, Request, Response
from foretell.testing import FakePlane
from tests.server.conftest import Live, receive_all
from tests.server.models import body

INFER = msgspec.json.encode(body())


def post(raw: bytes = INFER, model: str = "double", *lines: str) -> bytes:
    head = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: here", f"Content-Length: {len(raw)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + raw


def statuses(answer: bytes) -> list[int]:
    return [int(s) for s in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def until(check, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.01)
    return bool(check())


# -- order


def test_pipelined_requests_are_answered_in_order(shared):
    raws = [msgspec.json.encode(body() | {"id": f"n{i}"}) for i in range(40)]
    raw = b"".join(post(r, "slow" if i == 0 else "double") for i, r in enumerate(raws))
    answer = shared.send(raw + post(INFER, "double", "Connection: close"))
    assert statuses(answer) == [200] * 41
    assert re.findall(rb'"id":"n(\d+)"', answer) == [str(i).encode() for i in range(40)]


def test_a_request_in_single_bytes_is_understood(shared):
    with shared.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post(INFER, "double", "Connection: close"):
            sock.send(bytes([byte]))
        assert statuses(receive_all(sock)) == [200]


def test_a_bad_request_behind_good_ones_is_refused_after_their_answers(shared):
    answer = shared.send(post(INFER, "slow") + post() + b"NONSENSE\r\n\r\n" + post())
    assert statuses(answer) == [200, 200, 400]
    assert b"connection: close" in answer


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunked_bodies_are_joined(shared, size):
    chunks = [INFER[i : i + size] for i in range(0, len(INFER), size)]
    raw = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    head = b"POST /v2/models/double/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert statuses(shared.send(head + raw)) == [200]


def test_large_bodies_arrive_whole_and_the_next_request_is_still_read(shared):
    rows = 50_000
    tail = bytes(range(256)) * (rows * 16 // 256)
    given = {"name": "x", "datatype": "UINT8", "shape": [rows, 16], "parameters": {"binary_data_size": len(tail)}}
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    line = f"Inference-Header-Content-Length: {len(head)}"
    raw = post(head + tail, "echo-UINT8", line)
    answer = shared.send(raw + raw + post(INFER, "double", "Connection: close"))
    assert statuses(answer) == [200, 200, 200]
    assert answer.count(tail) == 2


def test_http_1_0_closes_unless_asked_to_stay(shared):
    assert statuses(shared.send(b"GET /v2 HTTP/1.0\r\n\r\n")) == [200]
    with shared.connect() as sock:
        for _ in range(2):
            sock.sendall(b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert b"connection: keep-alive" in sock.recv(65536)


def test_head_has_the_headers_of_get_and_no_body(shared):
    answer = shared.send(b"HEAD /v2 HTTP/1.1\r\nConnection: close\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", answer)[1])
    assert length > 0 and answer.endswith(b"\r\n\r\n")


def test_expect_100_continue_is_answered_before_the_body(shared):
    head, _, raw = post(INFER, "double", "Expect: 100-continue", "Connection: close").partition(b"\r\n\r\n")
    with shared.connect() as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(raw)
        assert statuses(receive_all(sock)) == [200]


def test_expect_100_continue_behind_a_running_request_waits_for_its_answer(shared):
    head, _, raw = post(INFER, "double", "Expect: 100-continue", "Connection: close").partition(b"\r\n\r\n")
    with shared.connect() as sock:
        sock.sendall(post(INFER, "slow") + head + b"\r\n\r\n")
        answer = b""
        while b"100 Continue" not in answer:
            answer += sock.recv(65536)
        sock.sendall(raw)
        assert statuses(answer + receive_all(sock)) == [200, 100, 200]


def test_an_upgrade_is_ignored_and_the_connection_ends_after_the_answer(shared):
    answer = shared.send(b"GET /v2 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert statuses(answer) == [200] and b"connection: close" in answer


# -- limits


@pytest.mark.parametrize("model", ["double", "nobody"])
def test_a_100_mb_body_against_a_10_mb_limit_is_refused_before_it_is_read(shared, model):
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nContent-Length: {100 * 2**20}\r\n\r\n".encode()
    answer = shared.send(head + bytes(1000))
    assert statuses(answer) == [413] and b"max_body_bytes" in answer


def test_the_client_gets_to_read_the_413_while_it_is_still_sending(shared):
    sent = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=10)
    sent.putrequest("POST", "/v2/models/double/infer")
    sent.putheader("Content-Length", str(100 * 2**20))
    sent.endheaders()
    try:
        for _ in range(100):
            sent.send(bytes(2**20))
    except (BrokenPipeError, ConnectionResetError):
        pytest.fail("the connection broke before the answer could be read")
    assert sent.getresponse().status == 413
    sent.close()


def test_a_chunked_body_is_refused_as_soon_as_it_passes_the_limit(serve):
    live = serve(max_body_bytes=1000)
    head = b"POST /v2/models/double/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert statuses(live.send(head + b"3e9\r\n" + bytes(1001))) == [413]


@pytest.mark.parametrize("head", [
    b"GET /v2 HTTP/1.1\r\n" + b"A: " + b"b" * 40_000 + b"\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
    b"GET /" + b"v" * 200_000,
    b"GET /v2 HTTP/1.1\r\nA" + b"a" * 200_000,
])  # fmt: skip
def test_an_endless_head_is_refused(shared, head):
    assert statuses(shared.send(head)) in ([431], [404])


@pytest.mark.parametrize("raw", [
    b"\r\n\r\n\x00\x01\x02", b"GET\r\n\r\n", b"GET /v2 HTTP/9.9\r\n\r\n", b"GET /v2 HTTP/1.1\r\nA b\r\n\r\n",
    b"POST /v2 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v2 HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /v2 HTTP/1.1\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
    b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
])  # fmt: skip
def test_what_is_not_http_is_refused_and_the_connection_closed(shared, raw):
    answer = shared.send(raw)
    assert statuses(answer) == [400]
    assert b'{"error":"' in answer and b"connection: close" in answer


def test_connections_over_the_limit_are_told_so(serve):
    live = serve(max_connections=1)
    with live.connect() as first:
        first.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
        assert statuses(first.recv(65536)) == [200]
        with live.connect() as second:
            assert statuses(receive_all(second)) == [503]
        first.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
        assert statuses(first.recv(65536)) == [200]


# -- time


def test_a_slow_loris_head_is_answered_408_and_closed(serve):
    live = serve(header_timeout_s=0.2)
    with live.connect() as sock:
        sock.sendall(b"GET /v2 HTTP/1.1\r\nA: ")
        assert statuses(receive_all(sock)) == [408]


def test_dripping_bytes_does_not_extend_the_time_for_the_head(serve):
    live = serve(header_timeout_s=0.3)
    with live.connect() as sock:
        sock.settimeout(0.05)
        answer = b""
        for _ in range(100):
            try:
                sock.sendall(b"A")
                answer += sock.recv(65536)
            except TimeoutError:
                continue
            if answer:
                break
        assert statuses(answer) in ([408], [400])


@pytest.mark.parametrize("length", [200, 200_000])
def test_a_body_that_stops_is_answered_408_and_closed(serve, length):
    live = serve(body_timeout_s=0.2)
    head = f"POST /v2/models/double/infer HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode()
    answer = live.send(head + b"{")
    assert statuses(answer) == [408] and b"after 1 bytes" in answer


def test_an_idle_connection_is_closed(serve):
    live = serve(idle_timeout_s=0.2)
    with live.connect() as sock:
        sock.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
        assert statuses(receive_all(sock)) == [200]


def test_a_running_request_outlives_the_timeouts_for_reading(serve):
    live = serve(idle_timeout_s=0.1, header_timeout_s=0.1, body_timeout_s=0.1)
    assert statuses(live.send(post(INFER, "slow", "Connection: close"))) == [200]


def test_the_request_is_cancelled_when_the_client_goes_away(live):
    with live.connect() as sock:
        sock.sendall(post(INFER, "endless"))
        assert until(lambda: live.plane.requests)
    assert until(lambda: live.plane.cancelled == 1)
    assert until(lambda: live.server.connections == 0)


def test_a_reset_connection_cancels_too_and_drops_what_waits(live):
    sock = live.connect()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.sendall(post(INFER, "endless") + post())
    assert until(lambda: live.plane.requests)
    sock.close()
    assert until(lambda: live.plane.cancelled == 1)
    assert len(live.plane.requests) == 1


# -- compression


@pytest.mark.parametrize(
    ("encoding", "squeeze"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", lambda b: zlib.compress(b, wbits=-15)),
     ("identity", bytes), ("GZIP", gzip.compress)],
)  # fmt: skip
def test_compressed_requests_are_understood(shared, encoding, squeeze):
    raw = post(squeeze(INFER), "double", f"Content-Encoding: {encoding}", "Connection: close")
    assert statuses(shared.send(raw)) == [200]


@pytest.mark.parametrize(
    ("encoding", "raw", "status"),
    [("gzip", gzip.compress(bytes(64 * 2**20)), 413), ("deflate", zlib.compress(bytes(64 * 2**20)), 413),
     ("gzip", gzip.compress(INFER, mtime=0)[:-9], 400), ("gzip", b"junk", 400), ("deflate", b"junk", 400),
     ("gzip", gzip.compress(INFER, mtime=0) + b"more", 400), ("br", b"junk", 415), ("gzip, gzip", b"junk", 415)],
)  # fmt: skip
def test_compression_bombs_and_corrupt_streams_are_refused(shared, encoding, raw, status):
    answer = shared.send(post(raw, "double", f"Content-Encoding: {encoding}", "Connection: close"))
    assert statuses(answer) == [status] and b'{"error":"' in answer


@pytest.mark.parametrize(("accept", "wbits"), [("gzip", 31), ("deflate", 15), ("gzip, deflate, br", 0)])
def test_answers_are_compressed_for_a_client_that_asks_for_one_encoding(shared, accept, wbits):
    answer = shared.send(
        f"GET /openapi.json HTTP/1.1\r\nAccept-Encoding: {accept}\r\nConnection: close\r\n\r\n".encode()
    )
    head, _, raw = answer.partition(b"\r\n\r\n")
    assert (b"content-encoding" in head) == bool(wbits)
    assert json.loads(zlib.decompress(raw, wbits) if wbits else raw)["openapi"] == "3.1.0"


# -- streams


class StreamApp:
    """Streams `chunks` and notes how the stream ended."""

    def __init__(self, chunks: int, size: int, fail_at: int = -1) -> None:
        self.chunks, self.size, self.fail_at = chunks, size, fail_at
        self.made, self.closed = 0, False

    def find(self, request: Request):
        return self.answer

    async def answer(self, request: Request) -> Response:
        return Response(self.stream(), 200, b"text/event-stream")

    async def stream(self):
        try:
            for i in range(self.chunks):
                if i == self.fail_at:
                    raise RuntimeError("broke")
                self.made += 1
                yield b"x" * self.size
                await asyncio.sleep(0)
        finally:
            self.closed = True

    def refusal(self, request, error) -> Response:
        return Response(b"{}", 500)


async def stream(app: StreamApp, raw: bytes, read: bool = True, **settings) -> bytes:
    server = await serve_http(app, port=0, settings=HttpSettings(**settings))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(raw)
    answer = b""
    try:
        answer = await asyncio.wait_for(reader.read() if read else asyncio.sleep(0.3, b""), 5)
    except ConnectionResetError:
        pass
    writer.close()
    await asyncio.sleep(0.05)
    await server.drain(0.5)
    return answer


async def test_streams_go_out_as_chunks():
    answer = await stream(StreamApp(3, 5), b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert b"transfer-encoding: chunked" in answer and answer.endswith(b"5\r\nxxxxx\r\n" * 3 + b"0\r\n\r\n")


async def test_streams_to_http_1_0_end_with_the_connection():
    answer = await stream(StreamApp(3, 5), b"GET / HTTP/1.0\r\n\r\n")
    assert b"chunked" not in answer and answer.endswith(b"\r\n\r\n" + b"x" * 15)


async def test_a_stream_that_fails_breaks_off_without_an_ending():
    app = StreamApp(3, 5, fail_at=2)
    answer = await stream(app, b"GET / HTTP/1.1\r\n\r\n")
    assert not answer.endswith(b"0\r\n\r\n") and app.closed


async def test_a_stream_waits_for_a_client_that_does_not_read_and_is_closed_when_it_leaves():
    app = StreamApp(100_000, 65536)
    await stream(app, b"GET / HTTP/1.1\r\n\r\n", read=False)
    assert app.made < 1000 and app.closed


async def test_a_client_that_never_reads_is_cut():
    app = StreamApp(100_000, 65536)
    server = await serve_http(app, port=0, settings=HttpSettings(write_timeout_s=0.1))
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    for _ in range(200):
        await asyncio.sleep(0.02)
        if app.closed:
            break
    assert app.closed and server.connections == 0
    server.close()


# -- the end


def test_drain_finishes_what_runs_closes_the_idle_and_refuses_the_new(serve):
    live: Live = serve()
    with live.connect() as idle, live.connect() as busy:
        idle.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
        assert statuses(idle.recv(65536)) == [200]
        busy.sendall(post(INFER, "slow"))
        assert until(lambda: live.plane.requests)
        done = live.start_call(lambda: live.server.drain(5.0))
        assert receive_all(idle) == b""
        answer = receive_all(busy)
        assert statuses(answer) == [200] and b"connection: close" in answer
        done.result(5)
    with pytest.raises(OSError):
        live.connect()


def test_drain_cuts_what_outlasts_the_grace_period(live):
    with live.connect() as sock:
        sock.sendall(post(INFER, "endless"))
        assert until(lambda: live.plane.requests)
        live.call(lambda: live.server.drain(0.1))
        assert receive_all(sock) == b""
    assert live.plane.cancelled == 1


def test_two_servers_on_one_port_are_refused_with_the_remedy(live):
    with pytest.raises(ConfigError, match=rf"port {live.port} on 127.0.0.1 is in use.*--port"):
        live.call(lambda: serve_http(live.app, port=live.port))


def test_an_address_that_is_not_ours_is_refused(live):
    with pytest.raises(ConfigError, match="--host"):
        live.call(lambda: serve_http(live.app, host="192.0.2.1", port=0))


def test_overload_says_when_to_come_back(live):
    from foretell.core.errors import Overloaded

    live.plane.refuse = Overloaded("the queue is full", 1.4)
    answer = live.send(post(INFER, "double", "Connection: close"))
    assert statuses(answer) == [429] and b"retry-after: 2\r\n" in answer


def test_two_servers_in_one_process_do_not_notice_each_other(serve):
    one, other = serve(), serve(max_body_bytes=10)
    assert statuses(other.send(post(INFER, "double", "Connection: close"))) == [413]
    assert statuses(one.send(post(INFER, "double", "Connection: close"))) == [200]
    assert isinstance(one.plane, FakePlane) and not other.plane.requests
