"""A lean keep-alive HTTP/1.1 client for load: prepared request bytes out, status (and the body as
it comes) in. Knows nothing above HTTP.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import cast
from urllib.parse import urlsplit

import httptools

from foretell.bench.load import RequestFailed
from foretell.core.errors import ConfigError


def request_bytes(url: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A whole POST request, ready to write."""
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"POST {path} HTTP/1.1", f"host: {parts.netloc}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class HttpPool:
    """Connections to the server of `url`, made when they are needed and kept."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f'"{url}" is not a URL of a server; write http://HOST:PORT')
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def exchange(self, request: bytes, on_body: Callable[[bytes], None] | None = None) -> int:
        """Send a whole request and return its answer's status when that is complete.

        `on_body` gets the parts of the answer's body as they arrive. A connection that ends raises the `OSError` of it.
        """
        connection = self._kept() or await self._new()
        while True:
            try:
                status = await connection.exchange(request, on_body)
                break
            except OSError:
                # A server may close a kept connection just as the next request goes out: that one was never read.
                self._drop(connection)
                if not connection.unheard:
                    raise
                connection = await self._new()
            except BaseException:
                # Cancelled or broken: an answer may still come, so this connection can't be used again.
                self._drop(connection)
                raise
        if connection.reusable:
            self._idle.append(connection)
        else:
            self._drop(connection)
        return status

    def close(self) -> None:
        for connection in self._all:
            connection.end()
        self._all.clear()
        self._idle.clear()

    def _drop(self, connection: "_Connection") -> None:
        connection.end()
        self._all.discard(connection)

    def _kept(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            self._all.discard(connection)
        return None

    async def _new(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        self._all.add(connection)
        return connection


class HttpTarget:
    """Posts prepared requests in turn over as many connections as are needed at once (a `Target`).

    requests: whole requests by `request_bytes`. An answer other than 2xx raises `RequestFailed("HTTP 503")`; a
    connection that ends raises the `OSError` of it.
    """

    def __init__(self, name: str, url: str, requests: Sequence[bytes], rows: int) -> None:
        self.name = name
        self.rows = rows
        self.url = url
        self._pool = HttpPool(url)
        self._requests = list(requests)

    async def open(self) -> None:
        """Nothing to prepare: connections are made when they are needed, and kept."""

    async def send(self, index: int) -> None:
        status = await self._pool.exchange(self._requests[index % len(self._requests)])
        if not 200 <= status < 300:
            raise RequestFailed(f"HTTP {status}")

    async def close(self) -> None:
        self._pool.close()


class _Connection(asyncio.Protocol):
    """One connection with at most one request on it."""

    def __init__(self) -> None:
        self.reusable = True
        self._exchanges = 0
        self._heard = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] | None = None
        self._on_body: Callable[[bytes], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports don't derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def exchange(self, request: bytes, on_body: Callable[[bytes], None] | None) -> "asyncio.Future[int]":
        """Write `request`; the future is its answer's status."""
        assert self._transport is not None
        self._on_body = on_body
        self._exchanges += 1
        self._heard = False
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    @property
    def unheard(self) -> bool:
        """It had carried a request before, and of the answer to this one nothing has come."""
        return self._exchanges > 1 and not self._heard

    def end(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(RequestFailed("malformed answer"))
            self.end()

    def on_body(self, body: bytes) -> None:
        if self._on_body is not None:
            self._on_body(body)

    def on_message_complete(self) -> None:
        self.reusable = self.reusable and self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self._parser.get_status_code())

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        self._fail(error or ConnectionResetError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
