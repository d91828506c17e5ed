"""The lean gRPC transport: a listening socket, its HTTP/2 connections, keep-alive and drain."""

import asyncio

from foretell.server.grpc_connection import GrpcConnection
from foretell.server.grpc_method import Routes
from foretell.server.grpc_status import GrpcSettings


class LeanTransport:
    """Carries `routes` over HTTP/2 without TLS on the running loop. `start`, then `drain`; not reusable."""

    def __init__(self, routes: Routes, settings: GrpcSettings) -> None:
        self.loop = asyncio.get_running_loop()
        self.routes = routes
        self.settings = settings
        self._connections: set[GrpcConnection] = set()
        self._empty = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the bound port. Raises `OSError` if the address cannot be had."""
        self._listener = await self.loop.create_server(lambda: GrpcConnection(self), host, port, backlog=1024)
        self._sweep()
        return int(self._listener.sockets[0].getsockname()[1])

    async def drain(self, grace_s: float) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.drain()
        try:
            if self._connections:
                await asyncio.wait_for(self._empty.wait(), grace_s)
        except TimeoutError:
            pass
        for connection in list(self._connections):
            connection.abort()
        while self._connections:
            await asyncio.sleep(0)

    def admit(self, connection: GrpcConnection) -> bool:
        """Count a connection in. False if it is one too many."""
        self._connections.add(connection)
        self._empty.clear()
        return len(self._connections) <= self.settings.max_connections

    def forget(self, connection: GrpcConnection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def _sweep(self) -> None:
        """Ping the silent, cut the dead: one coarse timer for all connections."""
        now = self.loop.time()
        patience = self.settings.keepalive_s
        for connection in list(self._connections):
            silent = now - connection.heard_at
            if silent > 2 * patience or (not connection.greeted and now - connection.opened_at > patience):
                connection.abort()
            elif silent > patience and not connection.pinged:
                connection.ping()
        self._sweeper = self.loop.call_later(patience / 4, self._sweep)
