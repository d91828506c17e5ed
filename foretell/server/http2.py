"""The part of HTTP/2 that a gRPC server needs, as values: frame types, packing, faults. Does no I/O.

Headers are written without compression state (no dynamic table, no Huffman code), so that the blocks of an
answer are constants; reading them is left to the package `hpack`.
"""

import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD = struct.Struct(">HBBBI")
"""A frame's head: length (16 high bits, 8 low bits), type, flags, stream."""
HEAD_SIZE = 9

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

SETTING_MAX_CONCURRENT_STREAMS = 0x3
SETTING_INITIAL_WINDOW_SIZE = 0x4
SETTING_MAX_FRAME_SIZE = 0x5
SETTING_MAX_HEADER_LIST_SIZE = 0x6

DEFAULT_WINDOW = 65535
MAX_WINDOW = 2**31 - 1
MIN_FRAME = 16384
MAX_FRAME = 2**24 - 1

_U32 = struct.Struct(">I")
_SETTING = struct.Struct(">HI")


class ConnectionFault(Exception):
    """The peer broke the protocol: the connection ends with GOAWAY and this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def read_settings(payload: bytes) -> Iterable[tuple[int, int]]:
    if len(payload) % 6:
        raise ConnectionFault(FRAME_SIZE_ERROR, "SETTINGS of an odd size")
    return _SETTING.iter_unpack(payload)


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, _U32.pack(increment))


def rst_stream(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, _U32.pack(code))


def goaway(last_stream: int, code: int, reason: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, _U32.pack(last_stream) + _U32.pack(code) + reason.encode())


def read_u32(payload: bytes) -> int:
    """The only number of a WINDOW_UPDATE or RST_STREAM, without its reserved bit."""
    if len(payload) != 4:
        raise ConnectionFault(FRAME_SIZE_ERROR, "a frame that holds one number has another size")
    return int(_U32.unpack(payload)[0]) & MAX_WINDOW


def without_padding(payload: bytes, flags: int) -> bytes:
    """The payload of DATA or HEADERS without padding and priority."""
    start, stop = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise ConnectionFault(FRAME_SIZE_ERROR, "a padded frame without its pad length")
        start, stop = 1, stop - payload[0]
    if flags & WITH_PRIORITY:
        start += 5
    if start > stop:
        raise ConnectionFault(PROTOCOL_ERROR, "padding longer than the frame")
    return payload[start:stop]


def header_block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Headers as literals that leave no trace in the peer's table. `:status` must be "200"."""
    block = bytearray()
    for name, value in headers:
        if name == ":status":
            block.append(0x88)
            continue
        block.append(0x00)
        for text in (name.encode(), value.encode()):
            block += _length(len(text))
            block += text
    return bytes(block)


def _length(size: int) -> bytes:
    """A string's length as HPACK writes it: seven bits, then seven a byte."""
    if size < 127:
        return bytes((size,))
    out = bytearray((127,))
    size -= 127
    while size >= 128:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)
