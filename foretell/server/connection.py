"""One HTTP/1.1 connection: requests in order to their handlers, answers in the same order out. Knows no routes.

Requests are answered one after the other; those that arrive meanwhile wait in `_waiting`, and reading stops when
too many do.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

from foretell.core.errors import InvalidInput, NotReady
from foretell.server.assembler import BODY, HEAD, IDLE, Assembler, Upgraded
from foretell.server.compression import compressed, decoded
from foretell.server.http import CONTINUE, Body, Request, RequestTimeout, Response, Takeover, encode_head

if TYPE_CHECKING:
    from foretell.server.listener import HttpServer

_MAX_WAITING = 16
_JOIN_UP_TO = 16 * 2**10
_LINGER_S = 2.0
_CLOSE = b"connection: close\r\n"
_KEEP = b"connection: keep-alive\r\n"

log = logging.getLogger("foretell.server")


class Connection(asyncio.BufferedProtocol):
    """The protocol of one accepted socket. `_since` is when the last answer went out (loop time), for the sweep.

    `_ending` says that nothing more is read: what waits is answered, then the connection closes.
    """

    __slots__ = (
        "_app", "_continue_due", "_ending", "_input", "_loop", "_read_paused", "_rest", "_server", "_since", "_task",
        "_transport", "_waiting", "_writable", "_write_paused_at",
    )  # fmt: skip

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._app = server.app
        self._loop = server.loop
        self._input = Assembler(server.settings, self, server.loop.time)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._since = server.loop.time()
        self._waiting: deque[Request | Response] = deque()
        self._task: asyncio.Task[None] | None = None
        self._ending = False
        self._rest: bytes | None = None
        self._continue_due = False
        self._read_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._write_paused_at = 0.0

    # -- the socket's events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._server.admit(self):
            self._refuse(NotReady("too many connections; retry later, or raise max_connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.forget(self)
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
        if self._writable is not None and not self._writable.done():
            self._writable.cancel()

    def get_buffer(self, sizehint: int) -> memoryview:
        direct = self._input.direct
        return self._server.scratch if direct is None else direct

    def buffer_updated(self, nbytes: int) -> None:
        if self._ending:
            return
        try:
            if self._input.direct is not None:
                self._input.direct_received(nbytes)
            else:
                self._input.feed(self._server.scratch[:nbytes])
        except Upgraded as upgraded:
            # Whether the protocol changes is the handler's to say; until then what follows stays where it is.
            self._rest = upgraded.rest
            self._transport.pause_reading()
            self._end()
        except Exception as error:
            self._refuse(error)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()
        self._write_paused_at = self._loop.time()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)
        if self._task is None and self._waiting:
            self._next()

    # -- requests, as the assembler delivers them

    def request_ready(self, request: Request) -> None:
        if self._task is None and not self._waiting and self._writable is None:
            self._task = self._loop.create_task(self._answer(request))
        else:
            self._wait(request)

    def continue_wanted(self) -> None:
        if self._task is None and not self._waiting:
            self._transport.write(CONTINUE)
        else:
            self._continue_due = True

    def _wait(self, item: Request | Response) -> None:
        self._waiting.append(item)
        if len(self._waiting) >= _MAX_WAITING and not self._read_paused:
            self._transport.pause_reading()
            self._read_paused = True

    # -- answering

    async def _answer(self, request: Request) -> None:
        """Call the handler and write what it returns; then start the next request that waits."""
        try:
            try:
                if b"content-encoding" in request.headers:
                    request.body = await decoded(request, self._server.settings.max_body_bytes)
                response = await self._app.find(request)(request)
            except Exception as error:
                response = self._app.refusal(request, error)
            if response.upgrade is not None:
                self._hand_over(response.upgrade)
                return
            if b"accept-encoding" in request.headers:
                response = compressed(request, response)
            keep = request.keep_alive and not response.close and not self._server.draining
            keep = keep and not (self._ending and not self._waiting)
            body = response.body
            if isinstance(body, bytes | bytearray | memoryview):
                self._write(request, response, body, keep)
            else:
                keep = await self._stream(request, response, body, keep)
            self._task = None
            self._after(keep)
        except asyncio.CancelledError:
            # Only the loss of the connection or the end of the grace period cancels: nobody is left to tell.
            self._transport.abort()
        except Exception:
            log.exception("an answer could not be written")
            self._task = None
            self._transport.abort()

    def _hand_over(self, successor: Takeover) -> None:
        """The connection goes on as something else, and this object ends."""
        self._task = None
        self._server.forget(self)
        if self._transport.is_closing():
            self._transport.abort()
        else:
            successor.begin(self._server, self._transport, self._rest or b"")

    def _write(self, request: Request | None, response: Response, body: Body, keep: bool) -> None:
        connection = b"" if keep else _CLOSE
        if keep and request is not None and request.http10:
            connection = _KEEP
        head = encode_head(response, len(body), connection, self._server.date)
        if request is not None and request.method == b"HEAD":
            self._transport.write(head)
        elif len(body) <= _JOIN_UP_TO:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    async def _stream(self, request: Request, response: Response, chunks: AsyncIterator[bytes], keep: bool) -> bool:
        """Write a body as it is made. Returns whether the connection may be kept."""
        chunked = not request.http10
        keep = keep and chunked
        write = self._transport.write
        write(encode_head(response, -1 if chunked else -2, b"" if keep else _CLOSE, self._server.date))
        try:
            if request.method != b"HEAD":
                async for chunk in chunks:
                    if chunk:
                        write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
                    if self._writable is not None:
                        await self._writable
                if chunked:
                    write(b"0\r\n\r\n")
        except Exception as error:
            # The head is out, so the only honest sign of failure is an answer that breaks off.
            self._app.refusal(request, error)
            self._transport.abort()
            return False
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()
        return keep

    def _after(self, keep: bool) -> None:
        if not keep:
            self._waiting.clear()
            self._end()
        elif self._waiting:
            if self._writable is None:
                self._next()
        else:
            self._since = self._loop.time()
            if self._continue_due:
                self._continue_due = False
                if self._input.phase == BODY:
                    self._transport.write(CONTINUE)

    def _next(self) -> None:
        item = self._waiting.popleft()
        if self._read_paused and len(self._waiting) < _MAX_WAITING // 2:
            self._transport.resume_reading()
            self._read_paused = False
        if isinstance(item, Request):
            self._task = self._loop.create_task(self._answer(item))
        else:
            self._write(None, item, cast(bytes, item.body), keep=False)
            self._end()

    # -- the end

    def _refuse(self, error: Exception) -> None:
        """Answer a request that cannot be read to its end, after those before it; then close."""
        response = self._app.refusal(None, error)
        if self._task is None and not self._waiting:
            self._write(None, response, cast(bytes, response.body), keep=False)
        else:
            self._waiting.append(response)
        self._end()

    def _end(self) -> None:
        """Read no more; close once all is sent. What the client still sends is taken and dropped for a moment:
        closing over unread bytes would reset the connection and could destroy the answer on its way.
        """
        self._ending = True
        self._input.stop()
        self._since = self._loop.time()
        if self._task is not None or self._waiting:
            return
        if self._rest is not None:
            self._transport.resume_reading()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        else:
            self._transport.close()

    # -- the server's orders

    @property
    def _busy(self) -> bool:
        return self._task is not None or bool(self._waiting)

    def sweep(self, now: float) -> None:
        """Called by the server's timer: end what has taken too long."""
        settings = self._server.settings
        if self._writable is not None and now - self._write_paused_at > settings.write_timeout_s:
            self._transport.abort()
        elif not self._busy:
            late = self._late(now)
            if self._ending:
                if now - self._since > _LINGER_S:
                    self._transport.abort()
            elif late is not None:
                self._refuse(late)
            elif self._input.phase == IDLE and now - self._since > settings.idle_timeout_s:
                self._transport.close()

    def _late(self, now: float) -> InvalidInput | None:
        settings, phase = self._server.settings, self._input.phase
        waited = now - max(self._input.began, self._since)
        if phase == HEAD and waited > settings.header_timeout_s:
            return RequestTimeout(f"the request's head was not complete after {settings.header_timeout_s:g} s")
        received = self._input.received
        if phase == BODY and waited > settings.body_timeout_s + received / settings.min_body_rate:
            return RequestTimeout(f"the request's body was not complete in time; it stopped after {received} bytes")
        return None

    def drain(self) -> None:
        """Close if nothing is being read or answered."""
        if not self._busy and self._input.phase == IDLE:
            self._transport.close()

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._transport.abort()
