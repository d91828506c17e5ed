"""The listening socket and all its connections: accept, count, sweep for time-outs, drain."""

import asyncio
import errno
import ssl
from email.utils import formatdate
from typing import Protocol

from foretell.core.errors import ConfigError
from foretell.server.connection import Connection
from foretell.server.http import HttpApp, HttpSettings

_SCRATCH_BYTES = 64 * 2**10


class Member(Protocol):
    """A connection as the server sees it, whatever it speaks."""

    def sweep(self, now: float) -> None:
        """End what has taken too long."""

    def drain(self) -> None:
        """End once what was begun is answered."""

    def abort(self) -> None:
        """End at once."""


class HttpServer:
    """An HTTP/1.1 server on the running loop. `start`, then `drain` (or `close`); not reusable.

    `scratch` is the receive buffer that all connections share: the loop reads and parses one at a time.
    """

    def __init__(self, app: HttpApp, settings: HttpSettings) -> None:
        self.app = app
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self.date = _date_line()
        self.draining = False
        self._connections: set[Member] = set()
        self._empty = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port in use (for port 0: the one the system chose)."""
        return int(self._listener.sockets[0].getsockname()[1]) if self._listener else 0

    @property
    def connections(self) -> int:
        return len(self._connections)

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Listen. Raises `ConfigError` if the address cannot be had."""
        try:
            self._listener = await self.loop.create_server(
                lambda: Connection(self), host, port, ssl=tls, backlog=1024, start_serving=True
            )
        except OSError as error:
            raise ConfigError(_why_not(error, host, port)) from None
        self._sweep()

    async def drain(self, grace_s: float) -> None:
        """Stop accepting, let the requests in flight finish for up to `grace_s` seconds, cut the rest."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.drain()
        try:
            if self._connections:
                await asyncio.wait_for(self._empty.wait(), grace_s)
        except TimeoutError:
            pass
        self.close()

    def close(self) -> None:
        """Stop at once: close the socket, cancel what runs."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.abort()

    # -- what connections ask

    def admit(self, connection: Member) -> bool:
        """Count a connection in. False if it is one too many."""
        self._connections.add(connection)
        self._empty.clear()
        return len(self._connections) <= self.settings.max_connections

    def forget(self, connection: Member) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def _sweep(self) -> None:
        """One coarse timer for all connections: no request pays for a timer of its own."""
        settings = self.settings
        self.date = _date_line()
        now = self.loop.time()
        for connection in list(self._connections):
            connection.sweep(now)
        shortest = min(
            settings.header_timeout_s, settings.body_timeout_s, settings.idle_timeout_s, settings.write_timeout_s
        )
        self._sweeper = self.loop.call_later(min(1.0, max(0.02, shortest / 4)), self._sweep)


def _date_line() -> bytes:
    return b"date: " + formatdate(usegmt=True).encode() + b"\r\n"


def _why_not(error: OSError, host: str, port: int) -> str:
    where = f"port {port} on {host}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another program. Choose another with --port (0 picks a free one)"
    if error.errno == errno.EACCES:
        return f"{where} needs privileges. Choose a port above 1023 with --port"
    return f"cannot listen at {where}: {error.strerror or error}. Check --host and --port"
