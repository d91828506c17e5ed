"""The sending half of a gRPC connection: open calls, their answers, and the peer's windows. Reads nothing.

An answer that fits the windows is one write; any other waits in its call's outbox until the peer grants more.
"""

import asyncio
from collections import deque

from foretell.core.errors import ForetellError
from foretell.server import http2
from foretell.server.grpc_call import HEADERS, STREAM_WINDOW, TRAILERS, Call, refusal_block
from foretell.server.http2 import HEAD, ConnectionFault

_ENDING = http2.END_HEADERS | http2.END_STREAM
_HEADERS_LENGTH = len(HEADERS)
_TRAILERS_LENGTH = len(TRAILERS)
_LARGEST_FRAME = 2**20
_JOIN_UP_TO = 4 * 2**10
"""Messages up to this size go out in one frame with their prefix; copying a larger one would cost more."""


class GrpcSender:
    """Owns the calls of one connection. `draining` closes the connection with its last call; `max_body` is what
    calls may receive.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, max_body: int) -> None:
        self.loop = loop
        self.max_body = max_body
        self.calls: dict[int, Call] = {}
        self.call_window = http2.DEFAULT_WINDOW
        self._transport = transport
        self._blocked: dict[int, Call] = {}
        self._window = http2.DEFAULT_WINDOW
        self._max_frame = http2.MIN_FRAME
        self._draining = False

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def drain(self) -> None:
        """Close the connection when the calls that run are answered."""
        self._draining = True
        self._close_if_drained()

    def cancel(self, stream: int) -> None:
        """The client reset a call."""
        call = self.calls.pop(stream, None)
        self._blocked.pop(stream, None)
        if call is not None:
            call.cancel()
            self._close_if_drained()

    def cancel_all(self) -> None:
        for call in self.calls.values():
            call.cancel()
        self.calls.clear()
        self._blocked.clear()

    def finish(self, call: Call, body: bytes | None) -> None:
        """End a call well, after its last message `body` (None: there is none left)."""
        if self.calls.get(call.id) is not call:
            return
        stream = call.id
        if body is not None:
            size = len(body) + 5
            if not call.opened and size <= self._window and size <= call.window and size <= self._max_frame:
                self._window -= size
                self._transport.write(
                    b"".join(
                        (
                            HEAD.pack(0, _HEADERS_LENGTH, 1, http2.END_HEADERS, stream),
                            HEADERS,
                            HEAD.pack(size >> 8, size & 0xFF, 0, 0, stream),
                            (size - 5).to_bytes(5),
                            body,
                            HEAD.pack(0, _TRAILERS_LENGTH, 1, _ENDING, stream),
                            TRAILERS,
                        )
                    )
                )
                self._close(call)
                return
            self._enqueue(call, body)
        self._open(call)
        call.trailers = TRAILERS
        self._flush(call)

    async def send(self, call: Call, body: bytes) -> None:
        """Send one of several messages; returns when the peer's windows have taken it whole."""
        if self.calls.get(call.id) is not call:
            return
        self._open(call)
        self._enqueue(call, body)
        if not self._flush(call):
            call.drained = self.loop.create_future()
            await call.drained

    def refuse(self, call: Call, error: ForetellError) -> None:
        """End a call with an error."""
        if self.calls.get(call.id) is not call:
            return
        block = refusal_block(error, first=not call.opened)
        call.outbox = None
        self.write(http2.frame(http2.HEADERS, _ENDING, call.id, block))
        self._close(call)

    def grant(self, call: Call) -> None:
        """Let the peer send again what was taken up, once it is worth a frame."""
        if call.credit >= STREAM_WINDOW // 2 and not call.ended:
            self.write(http2.window_update(call.id, call.credit))
            call.allowance += call.credit
            call.credit = 0

    def _open(self, call: Call) -> None:
        if not call.opened:
            call.opened = True
            self.write(http2.frame(http2.HEADERS, http2.END_HEADERS, call.id, HEADERS))

    def _enqueue(self, call: Call, body: bytes) -> None:
        if call.outbox is None:
            call.outbox = deque()
        prefix = len(body).to_bytes(5)
        if len(body) <= _JOIN_UP_TO:
            call.outbox.append(prefix + body)
        else:
            call.outbox += (prefix, memoryview(body))

    def _flush(self, call: Call) -> bool:
        """Send what the windows allow. True if all of the call's outbox (and its trailers) went out."""
        outbox = call.outbox
        while outbox:
            chunk = outbox[0]
            size = min(len(chunk), self._window, call.window, self._max_frame)
            if size <= 0:
                self._blocked[call.id] = call
                return False
            self.write(HEAD.pack(size >> 8, size & 0xFF, http2.DATA, 0, call.id))
            self._transport.write(chunk[:size])
            self._window -= size
            call.window -= size
            if size == len(chunk):
                outbox.popleft()
            else:
                outbox[0] = memoryview(chunk)[size:]
        self._blocked.pop(call.id, None)
        if call.trailers:
            self.write(http2.frame(http2.HEADERS, _ENDING, call.id, call.trailers))
            self._close(call)
        elif call.drained is not None and not call.drained.done():
            call.drained.set_result(None)
        return True

    def _close(self, call: Call) -> None:
        """Forget an answered call; a client that is still sending is told to stop."""
        del self.calls[call.id]
        if self._blocked:
            self._blocked.pop(call.id, None)
        if not call.ended:
            self.write(http2.rst_stream(call.id, http2.NO_ERROR))
        if self._draining:
            self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self._draining and not self.calls:
            self._transport.close()

    def on_window(self, stream: int, increment: int) -> None:
        if increment == 0:
            raise ConnectionFault(http2.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        if stream == 0:
            self._window += increment
            if self._window > http2.MAX_WINDOW:
                raise ConnectionFault(http2.FLOW_CONTROL_ERROR, "the connection's window overflows")
            for call in list(self._blocked.values()):
                if self._window <= 0:
                    break
                self._flush(call)
            return
        asked = self.calls.get(stream)
        if asked is None:
            return
        asked.window += increment
        if asked.window > http2.MAX_WINDOW:
            raise ConnectionFault(http2.FLOW_CONTROL_ERROR, f"the window of stream {stream} overflows")
        if stream in self._blocked:
            self._flush(asked)

    def on_settings(self, payload: bytes) -> None:
        for name, value in http2.read_settings(payload):
            if name == http2.SETTING_INITIAL_WINDOW_SIZE:
                if value > http2.MAX_WINDOW:
                    raise ConnectionFault(http2.FLOW_CONTROL_ERROR, f"an initial window of {value}")
                for call in self.calls.values():
                    call.window += value - self.call_window
                self.call_window = value
            elif name == http2.SETTING_MAX_FRAME_SIZE:
                if not http2.MIN_FRAME <= value <= http2.MAX_FRAME:
                    raise ConnectionFault(http2.PROTOCOL_ERROR, f"a largest frame of {value}")
                self._max_frame = min(value, _LARGEST_FRAME)
        self.write(http2.frame(http2.SETTINGS, http2.ACK, 0))
        for call in list(self._blocked.values()):
            self._flush(call)
