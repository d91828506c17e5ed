"""A connection to NATS and its errors as ours. Secrets come from the environment: FORETELL_NATS_USER and _PASSWORD, or
FORETELL_NATS_TOKEN, or FORETELL_NATS_CREDS (a file); FORETELL_NATS_TLS=yes encrypts.
"""

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.ends import EndUrl

CONNECT_S = 5.0
PING_S = 10.0
PATIENCE_S = 30.0
ID, BEFORE, KEY = "Nats-Msg-Id", "Nats-Expected-Last-Msg-Id", "Foretell-Key"
FAULTS = (nats.errors.Error, OSError, asyncio.TimeoutError)
"""What the client raises when something is away."""


class Fault(msgspec.Struct):
    """Why JetStream does not store a message."""

    err_code: int = 0
    description: str = ""


class Stored(msgspec.Struct):
    """What JetStream says of a message that was sent to it."""

    error: Fault | None = None


_stored = msgspec.json.Decoder(Stored).decode


class NatsClient:
    """One connection. It is not mended but made anew: what was asked of the old one would be unknown."""

    def __init__(self, url: EndUrl) -> None:
        if not url.host:
            raise ConfigError(f'"{url.text}" names no server; write nats://HOST:4222/NAME')
        self._nats: Any = None
        self._servers = [f"nats://{host}" for host in url.host.split(",")]
        self._where = f"NATS at {url.host}"
        self._js: Any = None
        self._waiting: dict[str, asyncio.Future[Stored]] = {}
        self._inbox = ""
        self._number = 0

    @property
    def nats(self) -> Any:
        """The client beneath JetStream, after `connect`."""
        return self._nats

    @property
    def alive(self) -> bool:
        """Whether the connection is there."""
        return self._nats is not None and self._nats.is_connected

    async def connect(self) -> Any:
        """JetStream, on a connection that is alive."""
        if self._js is not None and self.alive:
            return self._js
        await self.close()
        self._nats = Client()
        given = {name: os.environ.get(f"FORETELL_NATS_{name.upper()}") for name in ("user", "password", "token")}
        with self.told():
            await self._nats.connect(
                self._servers,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0.05,
                connect_timeout=CONNECT_S,
                ping_interval=PING_S,
                error_cb=_silent,
                user_credentials=os.environ.get("FORETELL_NATS_CREDS"),
                tls=ssl.create_default_context() if os.environ.get("FORETELL_NATS_TLS") == "yes" else None,
                **given,
            )
            self._inbox = self._nats.new_inbox()
            await self._nats.subscribe(f"{self._inbox}.*", cb=self._acknowledged)
        self._js = self._nats.jetstream(timeout=CONNECT_S)
        return self._js

    async def close(self) -> None:
        client, self._nats, self._js = self._nats, None, None
        for waiting in self._waiting.values():
            waiting.cancel()
        self._waiting.clear()
        if client is not None and not client.is_closed:
            with contextlib.suppress(*FAULTS):
                await client.close()

    async def store_in_order(
        self, subject: str, messages: "Sequence[tuple[bytes, dict[str, str]]]"
    ) -> tuple[int, Fault]:
        """How many of them are stored, and why the next one is not: none is that another one should be before."""
        sent = []
        before: dict[str, str] = {}
        for value, headers in messages:
            sent.append(await self.store(subject, value, headers | before))
            before = {BEFORE: headers[ID]}
        faults = ((at, each.error) for at, each in enumerate(await self.stored(sent)) if each.error is not None)
        return next(faults, (len(sent), Fault()))

    async def store(self, subject: str, value: bytes, headers: dict[str, str]) -> "asyncio.Future[Stored]":
        """Send a message to be stored; see `stored`. Leaner than the library's, which waits for each in a task."""
        self._number += 1
        reply = f"{self._inbox}.{self._number}"
        waiting = self._waiting[reply] = asyncio.get_running_loop().create_future()
        try:
            await self._nats.publish(subject, value, reply, headers)
        except BaseException:
            del self._waiting[reply]
            raise
        return waiting

    async def stored(self, sent: "list[asyncio.Future[Stored]]") -> list[Stored]:
        """What the server says of all of them. Raises `StreamError` where it says nothing."""
        until = time.monotonic() + PATIENCE_S
        left = {each for each in sent if not each.done()}
        while left:
            _, left = await asyncio.wait(left, timeout=1.0)
            if left and (not self.alive or time.monotonic() > until):
                raise StreamError(f"{self._where}: no acknowledgement")
        if any(each.cancelled() for each in sent):
            raise StreamError(f"{self._where}: the connection is gone")
        return [each.result() for each in sent]

    async def _acknowledged(self, item: Any) -> None:
        waiting = self._waiting.pop(item.subject, None)
        if waiting is None or waiting.done():
            return
        if item.headers and item.headers.get("Status") == "503":
            waiting.set_result(Stored(Fault(0, "no stream stores this subject now")))
        else:
            waiting.set_result(_stored(item.data))

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Errors of NATS as ours."""
        try:
            yield
        except nats.errors.AuthorizationError as error:
            raise ConfigError(f"{self._where}: {error}. Set FORETELL_NATS_USER, _TOKEN or _CREDS") from None
        except FAULTS as error:
            text = str(error) or type(error).__name__
            if "Authorization Violation" in text:
                raise ConfigError(f"{self._where}: {text}. Set FORETELL_NATS_USER, _TOKEN or _CREDS") from None
            raise StreamError(f"{self._where}: {text}") from None


async def _silent(error: Exception) -> None:
    """Whoever asks is told; nothing is to be printed besides."""
