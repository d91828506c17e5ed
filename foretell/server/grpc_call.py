"""One gRPC call on an HTTP/2 stream: messages cut from DATA, the method asked, its answers handed back.

Knows message framing, compression and status; leaves frames and windows to the sender.
"""

import asyncio
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from foretell.core.errors import ForetellError, InvalidInput, PayloadTooLarge, Unsupported
from foretell.server import http2
from foretell.server.grpc_method import Message, Method, Routes, StreamMethod, explain
from foretell.server.grpc_status import CODES, trailing_metadata

if TYPE_CHECKING:
    from foretell.server.grpc_sender import GrpcSender

STREAM_WINDOW = 4 * 2**20
PREFIX_SIZE = 5
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PLAIN = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_MAX_STATUS_MESSAGE = 4096
_COMMON = ((":status", "200"), ("content-type", "application/grpc"))
HEADERS = http2.header_block((*_COMMON, ("grpc-accept-encoding", "identity,deflate,gzip")))
TRAILERS = http2.header_block((("grpc-status", "0"),))


class Opening(msgspec.Struct, frozen=True):
    """What a call's request headers say. `method` is None where the path leads nowhere."""

    path: str
    method: Method | StreamMethod | None
    timeout_s: float | None
    encoding: str


def read_opening(headers: Iterable[tuple[bytes, bytes]], routes: Routes) -> Opening | None:
    """The meaning of request headers, or None if they are not those of a gRPC call."""
    fields = {bytes(name): bytes(value).decode("latin-1") for name, value in headers}
    path = fields.get(b":path", "")
    kind = fields.get(b"content-type", "")
    if fields.get(b":method") != "POST" or not path or not kind.startswith("application/grpc"):
        return None
    timeout = fields.get(b"grpc-timeout")
    return Opening(
        path,
        routes.get(path),
        None if timeout is None else _read_timeout(timeout),
        fields.get(b"grpc-encoding", "identity"),
    )


def _read_timeout(text: str) -> float | None:
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not (number.isascii() and number.isdigit()) or len(number) > 8:
        return None
    return int(number) * _UNITS[unit]


def refusal_block(error: ForetellError, first: bool) -> bytes:
    """Trailers that end a call with `error`; `first` where no headers went out before."""
    message = quote(error.message[:_MAX_STATUS_MESSAGE], safe=_PLAIN)
    return http2.header_block(
        (
            *(_COMMON if first else ()),
            ("grpc-status", str(CODES[error.grpc_code])),
            ("grpc-message", message),
            *trailing_metadata(error),
        )
    )


class Call:
    """The state of one open stream. `window` is what the peer lets us send, `allowance` what we let it send;
    `outbox` and `trailers` wait for windows. `credit` counts received bytes to be granted again.
    """

    __slots__ = (
        "_buffer",
        "_deadline",
        "_inbox",
        "_message",
        "_opening",
        "_sender",
        "_waiter",
        "allowance",
        "credit",
        "drained",
        "ended",
        "id",
        "opened",
        "outbox",
        "task",
        "trailers",
        "window",
    )  # fmt: skip

    def __init__(self, sender: "GrpcSender", stream: int, opening: Opening, window: int) -> None:
        self.id = stream
        self.window = window
        self.allowance = STREAM_WINDOW
        self.credit = 0
        self.ended = False
        self.opened = False
        self.outbox: deque[bytes | memoryview] | None = None
        self.trailers = b""
        self.drained: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self._sender = sender
        self._opening = opening
        self._deadline = None if opening.timeout_s is None else time.monotonic() + opening.timeout_s
        self._buffer: bytearray | None = None
        self._message: bytes | None = None
        self._inbox: deque[bytes | None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """Check the opening; start a streaming method, whose requests come later."""
        method = self._opening.method
        if method is None:
            self._refuse(Unsupported(f"there is no method {self._opening.path} here"))
        elif self._opening.encoding not in ("identity", "gzip", "deflate"):
            self._refuse(
                Unsupported(f'grpc-encoding "{self._opening.encoding}" is not read; send gzip, deflate or none')
            )
        elif isinstance(method, StreamMethod):
            self._inbox = deque()
            self.task = self._sender.loop.create_task(self._answer_stream(method))

    def receive(self, payload: bytes, ended: bool) -> None:
        """Take a DATA frame's bytes; `ended` says that no more will come."""
        if payload:
            size = len(payload) - PREFIX_SIZE
            if self._buffer is None and size >= 0 and int.from_bytes(payload[1:5]) == size:
                self._take(payload[0], payload[5:])
            else:
                if self._buffer is None:
                    self._buffer = bytearray()
                self._buffer += payload
                self._cut()
        if ended:
            self.end()

    def end(self) -> None:
        """The client sent all it will: answer a unary call, or close a streaming one's inbox."""
        if self.ended:
            return
        self.ended = True
        if self._buffer:
            self._refuse(InvalidInput("the stream ended inside a message"))
        elif self._inbox is not None:
            self._inbox.append(None)
            self._wake()
        elif self._message is not None:
            method = self._opening.method
            assert isinstance(method, Method)
            self.task = self._sender.loop.create_task(self._answer(method, self._message))
            self._message = None
        else:
            self._refuse(InvalidInput("the call carries no message"))

    def cancel(self) -> None:
        """The client is gone; nobody reads the answer."""
        if self.task is not None:
            self.task.cancel()

    def _cut(self) -> None:
        """Cut whole messages from the buffer; a length over the limit is refused before its bytes come."""
        buffer = self._buffer
        assert buffer is not None
        at = 0
        while len(buffer) - at >= PREFIX_SIZE:
            size = int.from_bytes(buffer[at + 1 : at + 5])
            if size > self._sender.max_body:
                self._refuse(self._too_large(size))
                return
            stop = at + PREFIX_SIZE + size
            if len(buffer) < stop:
                break
            with memoryview(buffer) as view:
                body = bytes(view[at + PREFIX_SIZE : stop])
            if not self._take(buffer[at], body):
                return
            at = stop
        if at:
            del buffer[:at]
        if not buffer:
            self._buffer = None

    def _take(self, flag: int, body: bytes) -> bool:
        """Keep one whole message for its method. False if that ended the call."""
        try:
            if len(body) > self._sender.max_body:
                raise self._too_large(len(body))
            if flag:
                body = self._decompressed(body)
        except ForetellError as error:
            self._refuse(error)
            return False
        if self._inbox is not None:
            self._inbox.append(body)
            self.credit -= len(body)
            self._wake()
        elif self._message is None:
            self._message = body
        else:
            self._refuse(InvalidInput(f"{self._opening.path} takes one message, more came"))
            return False
        return True

    def _decompressed(self, body: bytes) -> bytes:
        if self._opening.encoding == "identity":
            raise InvalidInput("a message is marked as compressed, but grpc-encoding names no compression")
        machine = zlib.decompressobj(wbits=47)
        limit = self._sender.max_body
        try:
            plain = machine.decompress(body, limit + 1)
        except zlib.error as error:
            raise InvalidInput(f"a message does not decompress as {self._opening.encoding}: {error}") from None
        if len(plain) > limit:
            raise self._too_large(len(plain))
        if not machine.eof:
            raise InvalidInput(f"a message's {self._opening.encoding} data is cut short")
        return plain

    def _too_large(self, size: int) -> PayloadTooLarge:
        limit = self._sender.max_body
        return PayloadTooLarge(
            f"a message of {size} bytes or more is over the limit of {limit}; send fewer rows, or raise max_body_bytes"
        )

    async def _answer(self, method: Method, body: bytes) -> None:
        try:
            answer = await method.answer(self._parsed(method, body), self._deadline)
            out = answer.SerializeToString()
        except Exception as error:
            self._sender.refuse(self, explain(error))
        else:
            self._sender.finish(self, out)

    async def _answer_stream(self, method: StreamMethod) -> None:
        try:
            async with aclosing(method.answer(self._messages(method), self._deadline)) as answers:
                async for answer in answers:
                    await self._sender.send(self, answer.SerializeToString())
        except Exception as error:
            self._sender.refuse(self, explain(error))
        else:
            self._sender.finish(self, None)

    async def _messages(self, method: StreamMethod) -> AsyncIterator[Message]:
        """The stream's requests; each grants the client its bytes again only when it is taken up."""
        inbox = self._inbox
        assert inbox is not None
        while True:
            while not inbox:
                self._waiter = self._sender.loop.create_future()
                await self._waiter
            body = inbox.popleft()
            if body is None:
                return
            self.credit += len(body)
            self._sender.grant(self)
            yield self._parsed(method, body)

    def _parsed(self, method: Method | StreamMethod, body: bytes) -> Message:
        try:
            return method.request.FromString(body)
        except Exception:
            raise InvalidInput(f"the message is not a {method.request.DESCRIPTOR.full_name}") from None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _refuse(self, error: ForetellError) -> None:
        self._message = None
        self._buffer = None
        self.cancel()
        self._sender.refuse(self, error)
