"""The lean transport as an HTTP/2 server: odd but legal peers are served, illegal ones are cut, nobody else
notices.
"""

import asyncio
import gzip
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from foretell.server import http2, oip_pb2
from foretell.server.grpc import GrpcServer, GrpcSettings
from foretell.server.grpc_connection import GrpcConnection
from foretell.server.grpc_lean import LeanTransport
from foretell.server.grpc_service import SERVICE, InferenceService
from foretell.server.http2 import DATA, END_HEADERS, END_STREAM, HEADERS
from foretell.testing import FakePlane
from tests.grpc.peer import INFER, Peer, message

LIMIT = 2**16


def question(model: str = "digits", rows: int = 1) -> bytes:
    request = oip_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="pixels", datatype="FP32", shape=[rows, 4])
    request.raw_input_contents.append(np.ones((rows, 4), np.float32).tobytes())
    return request.SerializeToString()


@pytest.fixture
def settings() -> GrpcSettings:
    return GrpcSettings(max_body_bytes=LIMIT, max_connection_streams=4, max_connections=8)


@pytest.fixture
def transport() -> type[LeanTransport]:
    return LeanTransport


@pytest.fixture
async def peer(server):
    peer = await Peer.connect(server.port)
    yield peer
    peer.close()


async def answered(peer: Peer, stream: int) -> bool:
    """Whether a call ended well, with the answer of `digits` to one row of ones."""
    code, _ = await peer.status(stream)
    if code:
        return False
    answer = oip_pb2.ModelInferResponse.FromString(bytes(peer.body[stream][5:]))
    return np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [4.0]


async def test_a_call_is_answered(peer):
    peer.call(1, message(question()))
    assert await answered(peer, 1)


async def test_many_calls_share_a_connection_and_its_header_table(peer):
    for stream in range(1, 40, 2):
        peer.call(stream, message(question()), grpc_timeout=f"{stream}S")
        assert await answered(peer, stream)


async def test_a_call_sent_byte_by_byte_is_answered(server):
    peer = await Peer.connect(server.port, greet=False)
    block = peer.opening()
    whole = (
        http2.PREFACE
        + http2.settings({})
        + http2.frame(HEADERS, END_HEADERS, 1, block)
        + http2.frame(DATA, END_STREAM, 1, message(question()))
    )
    for at in range(len(whole)):
        peer.send(whole[at : at + 1])
        if at % 16 == 0:
            await asyncio.sleep(0)
    assert await answered(peer, 1)
    peer.close()


async def test_a_message_may_come_in_many_frames_and_end_with_an_empty_one(peer):
    peer.send(http2.frame(HEADERS, END_HEADERS, 1, peer.opening()))
    whole = message(question())
    for at in range(0, len(whole), 7):
        peer.send(http2.frame(DATA, 0, 1, whole[at : at + 7]))
    peer.send(http2.frame(DATA, END_STREAM, 1))
    assert await answered(peer, 1)


async def test_trailers_may_end_the_request(peer):
    peer.send(http2.frame(HEADERS, END_HEADERS, 1, peer.opening()))
    peer.send(http2.frame(DATA, 0, 1, message(question())))
    peer.send(http2.frame(HEADERS, END_HEADERS | END_STREAM, 1, http2.header_block([("x-note", "done")])))
    assert await answered(peer, 1)


async def test_headers_may_be_split_padded_and_carry_a_priority(peer):
    block = peer.opening()
    first = b"\x03" + b"\0\0\0\0\x10" + block[:9] + b"\0\0\0"
    peer.send(http2.frame(HEADERS, http2.PADDED | http2.WITH_PRIORITY, 1, first))
    peer.send(http2.frame(http2.CONTINUATION, 0, 1, block[9:20]))
    peer.send(http2.frame(http2.CONTINUATION, END_HEADERS, 1, block[20:]))
    peer.send(http2.frame(DATA, END_STREAM | http2.PADDED, 1, b"\x02" + message(question()) + b"\0\0"))
    assert await answered(peer, 1)


async def test_pings_are_answered_and_unknown_frames_ignored(peer):
    peer.send(http2.frame(0x77, 0, 0, b"what?"))
    peer.send(http2.frame(http2.PRIORITY, 0, 1, b"\0\0\0\0\x10"))
    peer.send(http2.frame(http2.PING, 0, 0, b"12345678"))
    assert (await peer.until(http2.PING, flag=http2.ACK)).payload == b"12345678"


async def test_an_answer_waits_for_the_peers_windows_and_comes_whole(server):
    peer = await Peer.connect(server.port, {http2.SETTING_INITIAL_WINDOW_SIZE: 10})
    peer.call(1, message(question()))
    assert len((await peer.until(DATA, 1)).payload) <= 10
    peer.send(http2.window_update(1, 7))
    while len(peer.body[1]) < 17:
        await peer.frame()
    assert len(peer.body[1]) == 17
    peer.send(http2.settings({http2.SETTING_INITIAL_WINDOW_SIZE: 2**16}))
    assert await answered(peer, 1)
    peer.close()


async def test_the_connections_window_holds_all_calls_back(server, plane: FakePlane):
    plane.served[1].predict = lambda inputs: {"total": np.zeros(30_000, np.float32)}
    peer = await Peer.connect(server.port, {http2.SETTING_INITIAL_WINDOW_SIZE: 2**20})
    peer.call(1, message(question()))
    while len(peer.body.get(1, b"")) < http2.DEFAULT_WINDOW:
        await peer.frame()
    peer.send(http2.window_update(0, 2**20))
    assert await peer.status(1) == (0, "")
    assert len(peer.body[1]) > 120_000
    peer.close()


async def test_a_reset_cancels_the_call_and_no_other(peer, plane: FakePlane):
    peer.call(1, message(question("slow")))
    while not plane.requests:
        await asyncio.sleep(0.01)
    peer.send(http2.rst_stream(1, 8))
    peer.call(3, message(question()))
    assert await answered(peer, 3)
    assert plane.cancelled == 1


async def test_more_calls_than_allowed_are_refused_and_may_be_tried_again(peer, plane: FakePlane):
    for stream in (1, 3, 5, 7, 9):
        peer.call(stream, message(question("slow")))
    refused = await peer.until(http2.RST_STREAM)
    assert (refused.stream, int.from_bytes(refused.payload)) == (9, http2.REFUSED_STREAM)
    peer.send(http2.rst_stream(1, 8))
    peer.call(11, message(question()))
    assert await answered(peer, 11)


async def test_a_length_over_the_limit_is_refused_before_its_bytes_come(peer):
    peer.send(http2.frame(HEADERS, END_HEADERS, 1, peer.opening()))
    peer.send(http2.frame(DATA, 0, 1, b"\0\x40\0\0\0" + b"only a few bytes"))
    code, text = await peer.status(1)
    assert code == 8
    assert "1073741824" in text and str(LIMIT) in text
    assert int.from_bytes((await peer.until(http2.RST_STREAM, 1)).payload) == http2.NO_ERROR
    peer.send(http2.frame(DATA, END_STREAM, 1, b"late bytes of a call that is over"))
    peer.call(3, message(question()))
    assert await answered(peer, 3)


async def test_compressed_messages_are_read_up_to_the_limit(peer):
    peer.call(1, message(gzip.compress(question()), 1), grpc_encoding="gzip")
    assert await answered(peer, 1)
    peer.call(3, message(zlib.compress(question()), 1), grpc_encoding="deflate")
    assert await answered(peer, 3)
    bomb = gzip.compress(bytes(50 * LIMIT))
    peer.call(5, message(bomb, 1), grpc_encoding="gzip")
    assert (await peer.status(5))[0] == 8


WRONG = {
    "no message": (b"", {}, 3, "no message"),
    "two messages": (message(question()) * 2, {}, 3, "takes one message"),
    "a message cut short": (message(question())[:-3], {}, 3, "ended inside a message"),
    "no protobuf": (message(b"\xff\xff\xff"), {}, 3, "not a inference.ModelInferRequest"),
    "an unknown compression": (message(question()), {"grpc_encoding": "zstd"}, 12, "zstd"),
    "compressed but not said so": (message(gzip.compress(question()), 1), {}, 3, "names no compression"),
    "not compressed though said so": (message(question(), 1), {"grpc_encoding": "gzip"}, 3, "decompress"),
    "a compressed message cut short": (
        message(gzip.compress(question())[:-9], 1),
        {"grpc_encoding": "gzip"},
        3,
        "cut short",
    ),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_call_gets_a_status_and_the_connection_lives(peer, case):
    body, extra, code, text = WRONG[case]
    peer.call(1, body, **extra)
    got, said = await peer.status(1)
    assert got == code
    assert text in said
    peer.call(3, message(question()))
    assert await answered(peer, 3)


async def test_headers_that_are_no_grpc_call_are_reset(peer):
    peer.send(http2.frame(HEADERS, END_HEADERS | END_STREAM, 1, peer.opening(content_type="text/html")))
    assert int.from_bytes((await peer.until(http2.RST_STREAM, 1)).payload) == http2.PROTOCOL_ERROR
    peer.call(3, message(question()))
    assert await answered(peer, 3)


FAULTS = {
    "a frame over the limit": (b"\xff\xff\xff\0\0\0\0\0\x01", http2.FRAME_SIZE_ERROR),
    "DATA on a stream that is not open": (http2.frame(DATA, 0, 5, b"x"), http2.PROTOCOL_ERROR),
    "DATA on stream 0": (http2.frame(DATA, 0, 0, b"x"), http2.PROTOCOL_ERROR),
    "an even stream": (http2.frame(HEADERS, END_HEADERS, 2, b"\x82"), http2.PROTOCOL_ERROR),
    "headers that cannot be decoded": (http2.frame(HEADERS, END_HEADERS, 1, b"\xff\xff"), http2.COMPRESSION_ERROR),
    "an interrupted header block": (
        http2.frame(HEADERS, 0, 1, b"\x82") + http2.frame(http2.PING, 0, 0, bytes(8)),
        http2.PROTOCOL_ERROR,
    ),
    "CONTINUATION of nothing": (http2.frame(http2.CONTINUATION, 0, 1, b"\x82"), http2.PROTOCOL_ERROR),
    "headers without end": (
        http2.frame(HEADERS, 0, 1, b"\x82") + http2.frame(http2.CONTINUATION, 0, 1, bytes(9000)) * 3,
        http2.ENHANCE_YOUR_CALM,
    ),
    "padding longer than the frame": (http2.frame(HEADERS, END_HEADERS | http2.PADDED, 1, b"\x09a"), 1),
    "a window update of 0": (http2.window_update(0, 0), http2.PROTOCOL_ERROR),
    "a window that overflows": (http2.window_update(0, http2.MAX_WINDOW), http2.FLOW_CONTROL_ERROR),
    "a window update of 3 bytes": (http2.frame(http2.WINDOW_UPDATE, 0, 0, b"abc"), http2.FRAME_SIZE_ERROR),
    "a short PING": (http2.frame(http2.PING, 0, 0, b"abc"), http2.FRAME_SIZE_ERROR),
    "SETTINGS of an odd size": (http2.frame(http2.SETTINGS, 0, 0, b"abc"), http2.FRAME_SIZE_ERROR),
    "an initial window too large": (
        http2.settings({http2.SETTING_INITIAL_WINDOW_SIZE: 2**31}),
        http2.FLOW_CONTROL_ERROR,
    ),
    "a largest frame too small": (http2.settings({http2.SETTING_MAX_FRAME_SIZE: 1}), http2.PROTOCOL_ERROR),
    "a push": (http2.frame(http2.PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02\x82"), http2.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("case", FAULTS)
async def test_a_peer_that_breaks_the_protocol_is_told_and_cut_and_nobody_else_is(server, peer, case):
    data, code = FAULTS[case]
    bad = await Peer.connect(server.port)
    bad.send(data)
    assert await bad.fault() == code
    assert await bad.closed()
    bad.close()
    peer.call(1, message(question()))
    assert await answered(peer, 1)


async def test_another_protocol_is_cut_at_its_first_bytes(server):
    peer = await Peer.connect(server.port, greet=False)
    peer.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert await peer.closed()
    peer.close()


async def test_one_connection_too_many_is_cut(server):
    peers = [await Peer.connect(server.port) for _ in range(8)]
    await peers[-1].frame()
    extra = await Peer.connect(server.port)
    assert await extra.closed()
    peers[0].call(1, message(question()))
    assert await answered(peers[0], 1)
    for peer in [*peers, extra]:
        peer.close()


async def test_a_silent_peer_is_pinged_and_a_dead_one_cut(plane: FakePlane):
    server = GrpcServer(plane, GrpcSettings(keepalive_s=0.1))
    peer = await Peer.connect(await server.start("127.0.0.1", 0))
    assert (await peer.until(http2.PING)).flags == 0
    assert await peer.closed()
    peer.close()
    await server.drain(0)


async def test_a_peer_that_never_greets_is_cut(plane: FakePlane):
    server = GrpcServer(plane, GrpcSettings(keepalive_s=0.1))
    peer = await Peer.connect(await server.start("127.0.0.1", 0), greet=False)
    peer.send(http2.PREFACE[:5])
    assert await peer.closed()
    peer.close()
    await server.drain(0)


async def test_a_streaming_call_holds_the_client_back_while_its_requests_wait(server, plane: FakePlane):
    """Requests not yet taken up are not granted again, so a client cannot fill the server's memory."""
    peer = await Peer.connect(server.port)
    peer.send(http2.frame(HEADERS, END_HEADERS, 1, peer.opening(f"/{SERVICE}/ModelStreamInfer")))
    big = message(question("slow", rows=2000))
    for _ in range(200):
        for at in range(0, len(big), 2**14):
            peer.send(http2.frame(DATA, 0, 1, big[at : at + 2**14]))
    try:
        assert await peer.fault() == http2.FLOW_CONTROL_ERROR
    except ConnectionResetError:
        pass  # the kernel may drop the last words of a connection whose peer still sends
    assert await peer.closed()
    peer.close()
    assert len(plane.requests) <= 16


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    abort = pause_reading = resume_reading = close


async def feed(plane: FakePlane, chunks: list[bytes]) -> Wire:
    service = InferenceService(plane, "1", 4)
    wire = Wire()
    connection = GrpcConnection(LeanTransport(service.routes(), GrpcSettings(max_body_bytes=LIMIT)))
    connection.connection_made(wire)
    for chunk in chunks:
        if not wire.closed:
            connection.data_received(chunk)
    for _ in range(5):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    return wire


@hypothesis_settings(deadline=None, max_examples=60)
@given(cuts=st.lists(st.integers(0, 400), max_size=12))
def test_where_the_bytes_are_cut_makes_no_difference(cuts):
    plane = FakePlane()
    peer = Peer(None, None)
    whole = b"".join(
        (
            http2.PREFACE,
            http2.settings({}),
            *(
                http2.frame(HEADERS, END_HEADERS, stream, peer.opening())
                + http2.frame(DATA, END_STREAM, stream, message(question()))
                for stream in (1, 3)
            ),
        )
    )
    edges = [0, *sorted(c for c in cuts if c < len(whole)), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    assert asyncio.run(feed(plane, pieces)).sent == asyncio.run(feed(plane, [whole])).sent


frames = st.builds(
    http2.frame,
    st.integers(0, 12),
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D]),
    st.sampled_from([0, 1, 1, 1, 3, 3, 5, 2]),
    st.one_of(
        st.binary(max_size=24),
        st.just(message(question())),
        st.builds(
            lambda path: Peer(None, None).opening(path), st.sampled_from([INFER, "/x", f"/{SERVICE}/ModelStreamInfer"])
        ),
    ),
)


@hypothesis_settings(deadline=None, max_examples=300)
@given(st.lists(frames, max_size=12), st.binary(max_size=20))
def test_any_frames_are_answered_or_end_the_connection_and_raise_nothing(sent, tail):
    wire = asyncio.run(feed(FakePlane(), [http2.PREFACE + http2.settings({}), *sent, tail]))
    assert wire.sent
