"""A live HTTP server over a FakePlane, in a thread of its own so that blocking clients can call it."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import uvloop

from foretell.server.app import App, serve_http
from foretell.server.http import HttpSettings
from foretell.server.listener import HttpServer
from foretell.testing import Client, FakePlane, client
from tests.server.models import models


class Live:
    """A running server; `call` runs a coroutine function in its loop."""

    def __init__(self, settings: HttpSettings) -> None:
        self.plane = FakePlane(*models())
        self.app = App(self.plane, version="test")
        self.server: HttpServer
        self._settings = settings
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server = self.call(lambda: serve_http(self.app, port=0, settings=settings))
        self.port = self.server.port
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"

    def call(self, make: Callable):
        return asyncio.run_coroutine_threadsafe(make(), self._loop).result(20)

    def start_call(self, make: Callable):
        return asyncio.run_coroutine_threadsafe(make(), self._loop)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def send(self, raw: bytes) -> bytes:
        """Everything the server answers to raw bytes until it closes the connection."""
        with self.connect() as sock:
            sock.sendall(raw)
            return receive_all(sock)

    def close(self) -> None:
        self.call(lambda: self.server.drain(1.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


def receive_all(sock: socket.socket) -> bytes:
    parts = []
    while True:
        try:
            part = sock.recv(65536)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


@pytest.fixture
def serve() -> Iterator[Callable[..., Live]]:
    """Starts servers with the settings given; they are drained when the test ends."""
    running: list[Live] = []

    def start(**settings) -> Live:
        running.append(Live(HttpSettings(**settings)))
        return running[-1]

    yield start
    for live in running:
        live.close()


@pytest.fixture
def live(serve) -> Live:
    return serve()


@pytest.fixture(scope="module")
def shared() -> Iterator[Live]:
    """One server for a module's read-only tests."""
    one = Live(HttpSettings(max_body_bytes=10 * 2**20))
    yield one
    one.close()


@pytest.fixture
def http() -> Client:
    """The in-process client of an application over all test models."""
    return client(App(FakePlane(*models()), version="test"))
