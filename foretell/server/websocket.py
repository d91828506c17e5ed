"""A connection that has become a WebSocket: text messages in, an answer to each out, in order. Knows no model.

Frames and handshake are those of `websockets` without its I/O. Back-pressure goes both ways: at most `MOST_OPEN`
messages are being answered and as many wait; while they do, or while the client does not read, nothing more is read.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.protocol import Protocol, Side, State
from websockets.server import ServerProtocol

from foretell.core.errors import InvalidInput
from foretell.server.http import Request, Response, UpgradeRequired

if TYPE_CHECKING:
    from foretell.server.listener import HttpServer

MOST_OPEN = 64
MOST_OPEN_BYTES = 16 * 2**20
"""Of messages that are being answered, and of those that wait; one alone may be as large."""
_CLOSING_S = 5.0
_NOT_TEXT = b'{"error":"a binary message; send JSON as text messages","status":400}'

Answer = Callable[[bytes], Awaitable[bytes]]
"""Makes the answer to a message. Raises nothing but what is a bug."""

log = logging.getLogger("foretell.server")


class ForeignOrigin(InvalidInput):
    """A page of another site asks, and browsers would let it read the answers. Serve the page from the same host."""

    http_status = 403


def upgrade(request: Request, answer: Answer) -> Response:
    """The response that makes the connection of `request` a WebSocket, whose messages go to `answer`.

    Raises `UpgradeRequired` for a request that asks for none, `ForeignOrigin`, or `InvalidInput`.
    """
    headers = request.headers
    if headers.get(b"upgrade", b"").lower() != b"websocket":
        raise UpgradeRequired(f"{request.path} is a WebSocket; connect to it as ws://")
    origin, host = headers.get(b"origin"), headers.get(b"host", b"")
    if origin is not None and urlsplit(origin.decode("latin-1")).netloc != host.decode("latin-1"):
        raise ForeignOrigin(f"a page of {origin.decode('latin-1')[:100]} may not stream rows through this server")
    handshake = ServerProtocol()
    told = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers.items()])
    reply = handshake.accept(Handshake(request.target.decode("latin-1"), told))
    if reply.status_code != 101:
        raise InvalidInput(f"the WebSocket handshake is wrong: {bytes(reply.body).decode('utf-8', 'replace').strip()}")
    handshake.send_response(reply)
    return Response(status=101, upgrade=WebSocket(b"".join(handshake.data_to_send()), answer))


class WebSocket(asyncio.Protocol):
    """Takes over a connection; see `http.Takeover`. `_waiting` is what was read and is not begun, `_open` what is."""

    def __init__(self, head: bytes, answer: Answer) -> None:
        self._head = head
        self._protocol = Protocol(Side.SERVER, max_size=MOST_OPEN_BYTES)
        self._answer = answer
        self._server: HttpServer | None = None
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        self._is_text = True
        self._waiting: deque[bytes | None] = deque()
        self._open: deque[tuple[int, asyncio.Task[bytes]]] = deque()
        self._open_bytes = 0
        self._waiting_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._paused = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._blocked_at = 0.0
        self._heard_at = 0.0
        self._pinged = False
        self._ending = False
        self._closing_at = 0.0

    def begin(self, server: "HttpServer", transport: asyncio.Transport, rest: bytes) -> None:
        """Go on with the connection; `rest` is what came behind the request."""
        self._server, self._transport = server, transport
        server.admit(self)
        self._heard_at = server.loop.time()
        transport.set_protocol(self)
        transport.write(self._head)
        transport.resume_reading()
        if rest:
            self.data_received(rest)

    # -- the socket's events

    def data_received(self, data: bytes) -> None:
        assert self._server is not None
        self._heard_at, self._pinged = self._server.loop.time(), False
        self._protocol.receive_data(data)
        for frame in self._protocol.events_received():
            if isinstance(frame, Frame):
                self._take(frame)
        self._flush()
        self._go()

    def eof_received(self) -> None:
        self._protocol.receive_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._server is not None:
            self._server.forget(self)
        self._waiting.clear()
        for _, task in self._open:
            task.cancel()
        if self._writing is not None:
            self._writing.cancel()

    def pause_writing(self) -> None:
        assert self._server is not None
        self._blocked_at = self._server.loop.time()
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # -- messages

    def _take(self, frame: Frame) -> None:
        """Frames of one message come together; what is no text is answered with an error in its turn."""
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._is_text = frame.opcode is Opcode.TEXT
            self._parts = [bytes(frame.data)]
        elif frame.opcode is Opcode.CONT:
            self._parts.append(bytes(frame.data))
        else:
            return
        if frame.fin and not self._ending:
            data = b"".join(self._parts) if self._is_text else None
            self._waiting.append(data)
            self._waiting_bytes += len(data or b"")
            self._parts = []

    def _go(self) -> None:
        """Begin as much of what waits as may be open. Read on while little waits, so that a client is seen to go."""
        assert self._server is not None
        assert self._transport is not None
        while self._waiting and len(self._open) < MOST_OPEN:
            data = self._waiting[0]
            size = len(data or b"")
            if self._open and self._open_bytes + size > MOST_OPEN_BYTES:
                break
            self._waiting.popleft()
            self._waiting_bytes -= size
            self._open_bytes += size
            self._open.append((size, self._server.loop.create_task(self._answered(data))))
        if self._open and self._writing is None:
            self._writing = self._server.loop.create_task(self._write())
        full = len(self._waiting) >= MOST_OPEN or self._waiting_bytes >= MOST_OPEN_BYTES
        if full and not self._paused:
            self._transport.pause_reading()
        elif self._paused and not full:
            self._transport.resume_reading()
        self._paused = full

    async def _answered(self, data: bytes | None) -> bytes:
        return _NOT_TEXT if data is None else await self._answer(data)

    async def _write(self) -> None:
        """Send answers in order, as the client reads them."""
        try:
            while self._open:
                size, task = self._open[0]
                answer = await task
                await self._writable.wait()
                self._open.popleft()
                self._open_bytes -= size
                if self._protocol.state is State.OPEN:
                    self._protocol.send_text(answer)
                self._flush()
                self._go()
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("an answer could not be written")
            self._protocol.fail(CloseCode.INTERNAL_ERROR)
            self._flush()
        self._writing = None
        if self._ending:
            self._say_goodbye()

    def _flush(self) -> None:
        assert self._transport is not None
        for data in self._protocol.data_to_send():
            if self._transport.is_closing():
                return
            if data:
                self._transport.write(data)
            else:
                self._transport.close()

    def _say_goodbye(self) -> None:
        """The connection ends when the client has said so, too; see `sweep`."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(CloseCode.GOING_AWAY, "the server ends")
        self._flush()
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._paused = False

    # -- the server's orders

    def sweep(self, now: float) -> None:
        """End what has taken too long; see whether a silent client is there at all."""
        assert self._server is not None
        assert self._transport is not None
        settings = self._server.settings
        if not self._writable.is_set():
            if now - self._blocked_at > settings.write_timeout_s:
                self._transport.abort()
        elif self._protocol.state is not State.OPEN:
            self._closing_at = self._closing_at or now
            if now - self._closing_at > _CLOSING_S:
                self._transport.abort()
        elif not self._open and now - self._heard_at > settings.idle_timeout_s:
            if self._pinged:
                self._transport.abort()
            else:
                self._pinged, self._heard_at = True, now
                self._protocol.send_ping(b"")
                self._flush()

    def drain(self) -> None:
        """Begin no more; say goodbye once what was begun is answered."""
        self._ending = True
        self._waiting.clear()
        if self._writing is None:
            self._say_goodbye()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
