"""An HTTP/2 client that sends exactly the frames a test wants and shows exactly those that come."""

import asyncio
import struct

import hpack
import msgspec

from foretell.server import http2
from foretell.server.grpc_service import SERVICE

INFER = f"/{SERVICE}/ModelInfer"


class Frame(msgspec.Struct):
    kind: int
    flags: int
    stream: int
    payload: bytes


def message(body: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + struct.pack(">I", len(body)) + body


class Peer:
    """`answers` keeps, for each stream, its messages' bytes and its trailers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self.body: dict[int, bytearray] = {}
        self.headers: dict[int, dict[str, str]] = {}

    @classmethod
    async def connect(cls, port: int, settings: dict[int, int] | None = None, greet: bool = True) -> "Peer":
        peer = cls(*await asyncio.open_connection("127.0.0.1", port))
        if greet:
            peer.send(http2.PREFACE + http2.settings(settings or {}))
        return peer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def opening(self, path: str = INFER, **extra: str) -> bytes:
        """A header block that opens a call."""
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test"}
        fields |= {"content-type": "application/grpc", "te": "trailers"}
        fields |= {name.replace("_", "-"): value for name, value in extra.items()}
        return self._encoder.encode(fields.items())

    def call(self, stream: int, body: bytes, path: str = INFER, **extra: str) -> None:
        """Open a call and send `body` (framed messages) as all of its requests."""
        self.send(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, self.opening(path, **extra)))
        self.send(http2.frame(http2.DATA, http2.END_STREAM, stream, body))

    async def frame(self) -> Frame:
        """The next frame. Raises `IncompleteReadError` at the end of the connection."""
        head = await asyncio.wait_for(self._reader.readexactly(http2.HEAD_SIZE), 5)
        high, low, kind, flags, stream = http2.HEAD.unpack(head)
        frame = Frame(kind, flags, stream, await self._reader.readexactly(high << 8 | low))
        if kind == http2.HEADERS:
            self.headers.setdefault(stream, {}).update(self._decoder.decode(frame.payload))
        elif kind == http2.DATA:
            self.body.setdefault(stream, bytearray()).extend(frame.payload)
        return frame

    async def until(self, kind: int, stream: int | None = None, flag: int = 0) -> Frame:
        """Read on to a frame of this kind (and stream, and flag)."""
        while True:
            frame = await self.frame()
            if frame.kind == kind and stream in (None, frame.stream) and frame.flags & flag == flag:
                return frame

    async def status(self, stream: int) -> tuple[int, str]:
        """A call's status code and message, once it has ended."""
        await self.until(http2.HEADERS, stream, http2.END_STREAM)
        headers = self.headers[stream]
        return int(headers["grpc-status"]), headers.get("grpc-message", "")

    async def fault(self) -> int:
        """The code of the GOAWAY with which the server ends the connection."""
        frame = await self.until(http2.GOAWAY)
        return int.from_bytes(frame.payload[4:8])

    async def closed(self) -> bool:
        try:
            while True:
                await self.frame()
        except (asyncio.IncompleteReadError, ConnectionError):
            return True

    def close(self) -> None:
        self._writer.close()
