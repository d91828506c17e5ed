"""Bytes of one connection become requests, within the limits on heads and bodies. Knows neither sockets nor time-outs.

Bodies of a known, large size are received straight into their own buffer (`direct`), past the parser.
"""

from collections.abc import Callable
from typing import Protocol

import httptools

from foretell.core.errors import ForetellError, InvalidInput, PayloadTooLarge
from foretell.server.http import Body, HeadersTooLarge, HttpSettings, Request

IDLE, HEAD, BODY = range(3)
_DIRECT_FROM = 64 * 2**10


class Upgraded(Exception):
    """The client asked to change the protocol; its request was delivered, what follows (`rest`) is not HTTP."""

    def __init__(self, rest: bytes) -> None:
        self.rest = rest


class Sink(Protocol):
    """Who gets the requests."""

    def request_ready(self, request: Request) -> None: ...
    def continue_wanted(self) -> None:
        """The client waits for "100 Continue" before it sends the body."""


class Assembler:
    """Parses one connection's bytes. `phase` is where the current request stands, `began` since when (for the
    head and the body), `received` how much of its body is in.
    """

    __slots__ = (
        "_big", "_chunks", "_head_bytes", "_headers", "_parser", "_settings", "_sink", "_target", "_time",
        "began", "direct", "phase", "received",
    )  # fmt: skip

    def __init__(self, settings: HttpSettings, sink: Sink, time: Callable[[], float]) -> None:
        self._settings = settings
        self._sink = sink
        self._time = time
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._chunks: list[bytes] = []
        self._big: bytearray | None = None
        self.direct: memoryview | None = None
        self.phase = IDLE
        self.received = 0
        self.began = 0.0

    def feed(self, data: memoryview) -> None:
        """Take the next bytes (while `direct` is None). Raises `Upgraded`, or the `InvalidInput` to answer with."""
        headers, before = self._headers, self.phase
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise Upgraded(bytes(data[error.args[0] :])) from None
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            raise (cause if isinstance(cause, ForetellError) else error) from None
        except httptools.HttpParserError as error:
            raise InvalidInput(f"this is not HTTP/1.1: {error}. Check the request line and headers") from None
        if self.phase == IDLE:
            return
        if self._big is not None:
            self.direct = memoryview(self._big)[self.received :]
        if self.phase != before or self._headers is not headers:
            self.began = self._time()
        elif self.phase == HEAD:
            # Counts what the parser holds back: a name or value that does not end.
            self._head_bytes += len(data)
            self._check_head()

    def direct_received(self, nbytes: int) -> None:
        """Tell that `nbytes` were written into `direct`."""
        assert self.direct is not None
        self.received += nbytes
        self.direct = self.direct[nbytes:]
        if not self.direct:
            self.direct = None
            self.on_message_complete()
            # The parser that read the head is still waiting for this body, so a new one goes on.
            self._parser = httptools.HttpRequestParser(self)

    def stop(self) -> None:
        """Let go of the request that is being read."""
        self.direct = self._big = None
        self._chunks = []

    # -- the parser's events

    def on_message_begin(self) -> None:
        self.phase = HEAD
        self._target = b""
        self._headers = {}
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._settings.max_header_bytes:
            self._check_head()

    def on_headers_complete(self) -> None:
        self.phase = BODY
        self.received = 0
        headers = self._headers
        length = int(headers.get(b"content-length", b"0"))
        if length > self._settings.max_body_bytes:
            raise self._too_large(length)
        if length >= _DIRECT_FROM:
            self._big = bytearray(length)
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
            self._sink.continue_wanted()

    def on_body(self, body: bytes) -> None:
        if self._big is not None:
            self._big[self.received : self.received + len(body)] = body
            self.received += len(body)
            return
        self._chunks.append(body)
        self.received += len(body)
        if self.received > self._settings.max_body_bytes:
            raise self._too_large(self.received)

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
        self.phase = IDLE
        parser = self._parser
        self._sink.request_ready(
            Request(
                parser.get_method(),
                self._target,
                self._headers,
                body,
                {},
                parser.should_keep_alive(),
                parser.get_http_version() == "1.0",
            )
        )

    def _too_large(self, size: int) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"the body has {size} bytes or more, this server takes {self._settings.max_body_bytes}. Send fewer"
            " rows, or raise max_body_bytes"
        )

    def _check_head(self) -> None:
        limit = self._settings.max_header_bytes
        if self._head_bytes > limit:
            raise HeadersTooLarge(f"the request's head is over {limit} bytes. Send fewer or shorter headers")
