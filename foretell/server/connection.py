"""One HTTP/1.1 connection: bytes in, handlers called in order, bytes out. Knows HTTP and limits, not routes.

Requests of a connection are answered one after the other; those that arrive meanwhile wait in `_waiting`, and
reading stops when too many do. Bodies of known, large size are received straight into their own buffer.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

import httptools

from foretell.core.errors import ForetellError, InvalidInput, PayloadTooLarge
from foretell.server.compression import compressed, decoded
from foretell.server.http import (
    CONTINUE,
    Body,
    HeadersTooLarge,
    Request,
    RequestTimeout,
    Response,
    encode_head,
)

if TYPE_CHECKING:
    from foretell.server.listener import HttpServer

_IDLE, _HEAD, _BODY, _LINGER = range(4)
_DIRECT_FROM = 64 * 2**10
_MAX_WAITING = 16
_JOIN_UP_TO = 16 * 2**10
_LINGER_S = 2.0
_CLOSE = b"connection: close\r\n"
_KEEP = b"connection: keep-alive\r\n"


class Connection(asyncio.BufferedProtocol):
    """The protocol of one accepted socket. `since` is when the current phase began (loop time), for the sweep."""

    __slots__ = (
        "_app", "_big", "_chunks", "_continue_due", "_direct", "_ending", "_filled", "_head_bytes", "_headers",
        "_loop", "_parser", "_phase", "_read_paused", "_server", "_since", "_size", "_target", "_task",
        "_transport", "_waiting", "_writable", "_write_paused_at",
    )  # fmt: skip

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._app = server.app
        self._loop = server.loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._phase = _IDLE
        self._since = server.loop.time()
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._chunks: list[bytes] = []
        self._size = 0
        self._big: bytearray | None = None
        self._filled = 0
        self._direct: memoryview | None = None
        self._waiting: deque[Request | Response] = deque()
        self._task: asyncio.Task[None] | None = None
        self._ending = False
        self._continue_due = False
        self._read_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._write_paused_at = 0.0

    # -- the socket's events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._server.admit(self):
            self._refuse(ForetellError("connection limit"), status=503)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.forget(self)
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
        if self._writable is not None and not self._writable.done():
            self._writable.cancel()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.scratch if self._direct is None else self._direct

    def buffer_updated(self, nbytes: int) -> None:
        if self._direct is not None:
            self._filled += nbytes
            self._direct = self._direct[nbytes:]
            if not self._direct:
                self._end_direct_body()
        elif self._phase != _LINGER:
            self._feed(self._server.scratch[:nbytes])

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()
        self._write_paused_at = self._loop.time()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)
        if self._task is None and self._waiting:
            self._next()

    # -- the parser's events

    def on_message_begin(self) -> None:
        self._phase = _HEAD
        self._target = b""
        self._headers = {}
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._server.settings.max_header_bytes:
            raise self._headers_too_large()

    def on_headers_complete(self) -> None:
        self._phase = _BODY
        self._size = 0
        headers = self._headers
        length = int(headers.get(b"content-length", b"0"))
        if length > self._server.settings.max_body_bytes:
            raise self._too_large(length)
        if length >= _DIRECT_FROM:
            self._big = bytearray(length)
            self._filled = 0
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
            if self._task is None and not self._waiting:
                self._transport.write(CONTINUE)
            else:
                self._continue_due = True

    def on_body(self, body: bytes) -> None:
        if self._big is not None:
            self._big[self._filled : self._filled + len(body)] = body
            self._filled += len(body)
            return
        self._chunks.append(body)
        self._size += len(body)
        if self._size > self._server.settings.max_body_bytes:
            raise self._too_large(self._size)

    def on_message_complete(self) -> None:
        body: Body
        chunks = self._chunks
        if self._big is not None:
            body, self._big = self._big, None
        elif len(chunks) == 1:
            body = chunks[0]
        else:
            body = b"".join(chunks)
        if chunks:
            self._chunks = []
        self._phase = _IDLE
        parser = self._parser
        request = Request(
            parser.get_method(),
            self._target,
            self._headers,
            body,
            {},
            parser.should_keep_alive(),
            parser.get_http_version() == "1.0",
        )
        if self._task is None and not self._waiting and self._writable is None:
            self._task = self._loop.create_task(self._answer(request))
        else:
            self._wait(request)

    # -- reading

    def _feed(self, data: memoryview) -> None:
        headers = self._headers
        before = self._phase
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request was answered as plain HTTP; what follows on this connection is another protocol's.
            self._end_reading()
            return
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, ForetellError) else error)
            return
        except httptools.HttpParserError as error:
            self._refuse(InvalidInput(f"this is not HTTP/1.1: {error}. Check the request line and headers"))
            return
        if self._big is not None:
            self._direct = memoryview(self._big)[self._filled :]
        if self._phase == _IDLE:
            return
        if self._phase != before or self._headers is not headers:
            self._since = self._loop.time()
        elif self._phase == _HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self._server.settings.max_header_bytes:
                self._refuse(self._headers_too_large())

    def _end_direct_body(self) -> None:
        """The large body is in; the parser that read its head is still waiting for it, so a new one goes on."""
        self._direct = None
        self.on_message_complete()
        self._parser = httptools.HttpRequestParser(self)

    def _wait(self, item: Request | Response) -> None:
        self._waiting.append(item)
        if len(self._waiting) >= _MAX_WAITING and not self._read_paused:
            self._transport.pause_reading()
            self._read_paused = True

    def _too_large(self, size: int) -> PayloadTooLarge:
        limit = self._server.settings.max_body_bytes
        return PayloadTooLarge(
            f"the body has {size} bytes or more, this server takes {limit}. Send fewer rows, or"
            " raise max_body_bytes"
        )

    def _headers_too_large(self) -> HeadersTooLarge:
        limit = self._server.settings.max_header_bytes
        return HeadersTooLarge(f"the request's head is over {limit} bytes. Send fewer or shorter headers")

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

    async def _stream(
        self, request: Request, response: Response, chunks: AsyncIterator[bytes], keep: bool
    ) -> bool:
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
            self._end_reading()
        elif self._waiting:
            if self._writable is None:
                self._next()
        else:
            self._since = self._loop.time()
            if self._continue_due:
                self._continue_due = False
                if self._phase == _BODY:
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
            self._end_reading()

    def _refuse(self, error: Exception, status: int = 0) -> None:
        """Answer a request that cannot be read to its end, after those before it; then close."""
        response = self._app.refusal(None, error)
        response.status = status or response.status
        self._phase = _LINGER
        self._direct = self._big = None
        self._since = self._loop.time()
        if self._task is None and not self._waiting:
            self._write(None, response, cast(bytes, response.body), keep=False)
            self._end_reading()
        else:
            self._wait(response)

    def _end_reading(self) -> None:
        """Close once all is sent. What the client still sends is read and dropped for a moment: closing over
        unread bytes would reset the connection and could destroy the answer on its way.
        """
        self._phase = _LINGER
        self._direct = self._big = None
        self._since = self._loop.time()
        self._ending = True
        if self._task is not None or self._waiting:
            return
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        else:
            self._transport.close()

    # -- the server's orders

    @property
    def idle(self) -> bool:
        return self._task is None and not self._waiting and self._phase in (_IDLE, _LINGER)

    def sweep(self, now: float) -> None:
        """Called by the server's timer: close what has taken too long."""
        settings = self._server.settings
        waited = now - self._since
        if self._writable is not None and now - self._write_paused_at > settings.write_timeout_s:
            self._transport.abort()
        elif self._task is not None or self._waiting:
            return
        elif self._phase == _IDLE:
            if waited > settings.idle_timeout_s:
                self._transport.close()
        elif self._phase == _HEAD:
            if waited > settings.header_timeout_s:
                self._refuse(RequestTimeout(f"no complete head within {settings.header_timeout_s:g} s"))
        elif self._phase == _BODY:
            received = self._size + self._filled if self._big is not None else self._size
            if waited > settings.body_timeout_s + received / settings.min_body_rate:
                self._refuse(RequestTimeout(f"the body stopped after {received} bytes"))
        elif waited > _LINGER_S:
            self._transport.abort()

    def drain(self) -> None:
        if self.idle and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._transport.abort()
