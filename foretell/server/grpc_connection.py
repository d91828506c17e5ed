"""One HTTP/2 connection that carries gRPC calls: frames in and out, windows, limits. Knows no methods.

The reading half: answers and the peer's windows are the sender's.
"""

import asyncio
from typing import TYPE_CHECKING, cast

import hpack

from foretell.server import http2
from foretell.server.grpc_call import STREAM_WINDOW, Call, Opening, read_opening
from foretell.server.grpc_sender import GrpcSender
from foretell.server.http2 import HEAD, HEAD_SIZE, ConnectionFault

if TYPE_CHECKING:
    from foretell.server.grpc_lean import LeanTransport

CONNECTION_WINDOW = 16 * 2**20
MAX_FRAME = 64 * 2**10
_MAX_HEADERS = 16 * 2**10
_MAX_OPENINGS = 256


class GrpcConnection(asyncio.Protocol):
    """The protocol of one accepted socket. `opened_at` and `heard_at` (when the peer last said something) are
    loop times; `greeted` once the peer showed that it speaks HTTP/2; `pinged` while a keep-alive is out.
    """

    def __init__(self, server: "LeanTransport") -> None:
        self.opened_at = self.heard_at = server.loop.time()
        self.greeted = False
        self.pinged = False
        self._server = server
        self._routes = server.routes
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._out: GrpcSender = cast(GrpcSender, None)
        self._decoder = hpack.Decoder(_MAX_HEADERS)
        self._openings: dict[bytes, Opening] = {}
        self._rest = bytearray()
        self._last_stream = 0
        self._draining = False
        self._block: tuple[int, int, bytearray] | None = None
        self._credit = 0

    # -- what the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._out = GrpcSender(self._transport, self._server.loop, self._server.settings.max_body_bytes)
        if not self._server.admit(self):
            self._transport.abort()
            return
        self._out.write(
            http2.settings(
                {
                    http2.SETTING_MAX_CONCURRENT_STREAMS: self._server.settings.max_connection_streams,
                    http2.SETTING_INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                    http2.SETTING_MAX_FRAME_SIZE: MAX_FRAME,
                    http2.SETTING_MAX_HEADER_LIST_SIZE: _MAX_HEADERS,
                }
            )
            + http2.window_update(0, CONNECTION_WINDOW - http2.DEFAULT_WINDOW)
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._out.cancel_all()
        self._server.forget(self)

    def pause_writing(self) -> None:
        # Whoever does not read its answers may not ask more; windows bound what is already under way.
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._server.loop.time()
        self.pinged = False
        if self._rest:
            self._rest += data
            data = bytes(self._rest)
            self._rest.clear()
        try:
            at = self._parse(data) if self.greeted else self._greet(data)
        except ConnectionFault as fault:
            self._out.write(http2.goaway(self._last_stream, fault.code, str(fault)))
            self._transport.close()
            return
        if at < len(data):
            self._rest += memoryview(data)[at:]

    # -- what the server asks

    def drain(self) -> None:
        """Take no new calls; close when those that run are answered."""
        self._draining = True
        self._out.write(http2.goaway(self._last_stream, http2.NO_ERROR, "draining"))
        self._out.drain()

    def ping(self) -> None:
        self.pinged = True
        self._out.write(http2.frame(http2.PING, 0, 0, b"foretell"))

    def abort(self) -> None:
        self._transport.abort()

    # -- receiving

    def _greet(self, data: bytes) -> int:
        size = len(http2.PREFACE)
        if data[:size] != http2.PREFACE[: len(data)]:
            raise ConnectionFault(http2.PROTOCOL_ERROR, "this port speaks gRPC (HTTP/2 without TLS) only")
        if len(data) < size:
            return 0
        self.greeted = True
        return self._parse(data, size)

    def _parse(self, data: bytes, at: int = 0) -> int:
        """Handle the whole frames in `data` from `at` on; return where the first incomplete one begins."""
        end = len(data)
        while end - at >= HEAD_SIZE:
            high, low, kind, flags, stream = HEAD.unpack_from(data, at)
            length = high << 8 | low
            if length > MAX_FRAME:
                raise ConnectionFault(http2.FRAME_SIZE_ERROR, f"a frame of {length} bytes; the limit is {MAX_FRAME}")
            stop = at + HEAD_SIZE + length
            if stop > end:
                break
            payload = data[at + HEAD_SIZE : stop]
            at = stop
            stream &= http2.MAX_WINDOW
            if self._block is not None and (kind != http2.CONTINUATION or stream != self._block[0]):
                raise ConnectionFault(http2.PROTOCOL_ERROR, "a header block was interrupted")
            if kind == http2.DATA:
                self._on_data(stream, flags, payload)
            elif kind == http2.HEADERS:
                self._on_headers(stream, flags, payload)
            else:
                self._on_other(kind, stream, flags, payload)
        return at

    def _on_data(self, stream: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._credit += size
        if self._credit >= CONNECTION_WINDOW // 2:
            self._out.write(http2.window_update(0, self._credit))
            self._credit = 0
        call = self._out.calls.get(stream)
        if call is None or call.ended:
            if stream == 0 or stream > self._last_stream:
                raise ConnectionFault(http2.PROTOCOL_ERROR, f"DATA on stream {stream}, which is not open")
            return
        call.allowance -= size
        if call.allowance < 0:
            raise ConnectionFault(http2.FLOW_CONTROL_ERROR, f"stream {stream} sent more than its window")
        call.credit += size
        if flags & http2.PADDED:
            payload = http2.without_padding(payload, flags & http2.PADDED)
        call.receive(payload, bool(flags & http2.END_STREAM))
        if call.credit >= STREAM_WINDOW // 2 and stream in self._out.calls:
            self._out.grant(call)

    def _on_headers(self, stream: int, flags: int, payload: bytes) -> None:
        if stream % 2 == 0:
            raise ConnectionFault(http2.PROTOCOL_ERROR, f"HEADERS on stream {stream}, which no client may open")
        if flags & (http2.PADDED | http2.WITH_PRIORITY):
            payload = http2.without_padding(payload, flags)
        if flags & http2.END_HEADERS:
            self._on_block(stream, flags, payload)
        else:
            self._block = (stream, flags, bytearray(payload))

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(http2.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        stream, first_flags, block = self._block
        block += payload
        if len(block) > _MAX_HEADERS or not payload:
            raise ConnectionFault(http2.ENHANCE_YOUR_CALM, f"headers of more than {_MAX_HEADERS} bytes")
        if flags & http2.END_HEADERS:
            self._block = None
            self._on_block(stream, first_flags, bytes(block))

    def _on_block(self, stream: int, flags: int, block: bytes) -> None:
        """A call's opening, or the trailers that end its requests."""
        opening = self._opening(block)
        call = self._out.calls.get(stream)
        if call is not None:
            if not flags & http2.END_STREAM:
                raise ConnectionFault(http2.PROTOCOL_ERROR, "second HEADERS of a stream without its end")
            call.end()
            return
        if stream <= self._last_stream:
            return  # trailers of a call that was answered before its client had sent all
        self._last_stream = stream
        if self._draining:
            return
        if len(self._out.calls) >= self._server.settings.max_connection_streams:
            self._out.write(http2.rst_stream(stream, http2.REFUSED_STREAM))
            return
        if opening is None:
            self._out.write(http2.rst_stream(stream, http2.PROTOCOL_ERROR))
            return
        opened = self._out.calls[stream] = Call(self._out, stream, opening, self._out.call_window)
        opened.begin()
        if flags & http2.END_STREAM:
            opened.end()

    def _opening(self, block: bytes) -> Opening | None:
        """What a header block says. Blocks of nothing but references into the header table mean the same as
        long as the table does not change, so they are read once.
        """
        known = self._openings.get(block)
        if known is not None:
            return known
        try:
            headers = list(self._decoder.decode(block, raw=True))
        except hpack.HPACKError as error:
            raise ConnectionFault(http2.COMPRESSION_ERROR, f"headers cannot be read: {error}") from None
        opening = read_opening(headers, self._routes)
        if block and min(block) >= 0x80 and max(block) < 0xFF and len(self._openings) < _MAX_OPENINGS:
            if opening is not None:
                self._openings[block] = opening
        else:
            self._openings.clear()
        return opening

    def _on_other(self, kind: int, stream: int, flags: int, payload: bytes) -> None:
        if kind == http2.WINDOW_UPDATE:
            self._out.on_window(stream, http2.read_u32(payload))
        elif kind == http2.RST_STREAM:
            http2.read_u32(payload)
            self._out.cancel(stream)
        elif kind == http2.SETTINGS:
            if not flags & http2.ACK:
                self._out.on_settings(payload)
        elif kind == http2.PING:
            if len(payload) != 8:
                raise ConnectionFault(http2.FRAME_SIZE_ERROR, "PING of another size than 8")
            if not flags & http2.ACK:
                self._out.write(http2.frame(http2.PING, http2.ACK, 0, payload))
        elif kind == http2.CONTINUATION:
            self._on_continuation(flags, payload)
        elif kind == http2.PUSH_PROMISE:
            raise ConnectionFault(http2.PROTOCOL_ERROR, "a client cannot promise pushes")
        # PRIORITY, the client's GOAWAY and unknown types ask nothing of us.
