"""The values of HTTP: requests, responses, limits, the errors only HTTP has. Knows neither sockets nor models."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qsl, unquote

import msgspec

from foretell.core.errors import ForetellError, InvalidInput, Overloaded

if TYPE_CHECKING:
    from foretell.server.listener import HttpServer

log = logging.getLogger("foretell.server")

Body = bytes | bytearray | memoryview
JSON = b"application/json"
BINARY = b"application/octet-stream"


class HttpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of one HTTP entrance. Sizes are bytes, times seconds.

    A body may take `body_timeout_s` plus its length at `min_body_rate` bytes a second; `idle_timeout_s` ends
    kept-alive connections between requests; a client that does not read its answer is cut after
    `write_timeout_s`.
    """

    max_body_bytes: int = 64 * 2**20
    max_header_bytes: int = 32 * 2**10
    max_connections: int = 4096
    header_timeout_s: float = 10.0
    body_timeout_s: float = 20.0
    min_body_rate: int = 16 * 2**10
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 30.0


class MethodNotAllowed(InvalidInput):
    """The path exists, but not with this method; the Allow header lists those it has."""

    http_status = 405

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class RequestTimeout(InvalidInput):
    """The client took too long to send its request. Send it in one go, or raise the entrance's time-outs."""

    http_status = 408


class UnsupportedEncoding(InvalidInput):
    """The body has a Content-Encoding this server cannot undo. Send gzip, deflate or no encoding."""

    http_status = 415


class UpgradeRequired(InvalidInput):
    """The path is a WebSocket, and the request does not ask for one."""

    http_status = 426


class HeadersTooLarge(InvalidInput):
    """The request line and headers exceed `max_header_bytes`."""

    http_status = 431


class Request(msgspec.Struct, gc=False):
    """One HTTP request. Header names are lower-case bytes; a repeated header keeps its last value.

    `target` is the raw request target; `params` holds the path segments that the router captured.
    """

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: Body = b""
    params: dict[str, str] = {}
    keep_alive: bool = True
    http10: bool = False

    @property
    def raw_path(self) -> bytes:
        return raw_path(self.target)

    @property
    def path(self) -> str:
        return unquote(self.raw_path.decode("latin-1"))

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition(b"?")[2].decode("latin-1"), keep_blank_values=True))

    def header(self, name: bytes, default: bytes = b"") -> bytes:
        """The value of a header (`name` in lower case), or `default`."""
        return self.headers.get(name, default)


class Takeover(Protocol):
    """What a connection becomes that has changed its protocol; it writes the answer to the request itself."""

    def begin(self, server: "HttpServer", transport: asyncio.Transport, rest: bytes) -> None:
        """Go on with the connection, which does not read yet; `rest` is what came behind the request."""


class Response(msgspec.Struct):
    """One HTTP answer. An iterator as `body` is sent chunk by chunk as the client reads.

    `headers` are finished header lines, as `header_line` makes them. With `upgrade` nothing of it is written.
    """

    body: Body | AsyncIterator[bytes] = b""
    status: int = 200
    content_type: bytes = JSON
    headers: bytes = b""
    close: bool = False
    upgrade: Takeover | None = None


Handler = Callable[[Request], Awaitable[Response]]


class HttpApp(Protocol):
    """What a connection asks of the application."""

    def find(self, request: Request) -> Handler:
        """The handler of a request (its `params` filled in). Raises `NotFound` or `MethodNotAllowed`."""

    def refusal(self, request: Request | None, error: Exception) -> Response:
        """The answer that tells about `error`; without a request when it could not even be parsed."""


def raw_path(target: bytes) -> bytes:
    """The path of a request target, still percent-encoded; also of the absolute form `http://host/path`.

    >>> raw_path(b"/v2/models?x=1"), raw_path(b"http://here/v2")
    (b'/v2/models', b'/v2')
    """
    path = target.partition(b"?")[0]
    if path[:1] == b"/":
        return path
    scheme, mark, rest = path.partition(b"://")
    return b"/" + rest.partition(b"/")[2] if mark and scheme else path


def header_line(name: bytes, value: str | bytes) -> bytes:
    """One header line, with line breaks in the value made harmless.

    >>> header_line(b"allow", "GET, POST")
    b'allow: GET, POST\\r\\n'
    """
    raw = value.encode("latin-1", "replace") if isinstance(value, str) else value
    return name + b": " + raw.replace(b"\r", b" ").replace(b"\n", b" ") + b"\r\n"


def json_response(value: object, status: int = 200, headers: bytes = b"") -> Response:
    """`value` as JSON (msgspec structs, dicts, lists)."""
    return Response(msgspec.json.encode(value), status, JSON, headers)


def explain(error: Exception) -> ForetellError:
    """What a caller may know of an error: our own as they are; of anything else, a bug, where the log has it."""
    if isinstance(error, ForetellError):
        return error
    mark = secrets.token_hex(4)
    log.error("unexpected error %s", mark, exc_info=error)
    return ForetellError(f"unexpected error; the server's log has it under {mark}")


def status_of(error: BaseException) -> int:
    return error.http_status if isinstance(error, ForetellError) else 500


def headers_of(error: BaseException) -> bytes:
    """The header lines an error brings along: Retry-After, Allow, Accept-Encoding."""
    if isinstance(error, Overloaded):
        return b"retry-after: %d\r\n" % max(1, -int(-error.retry_after_s // 1))
    if isinstance(error, UpgradeRequired):
        return b"upgrade: websocket\r\n"
    if isinstance(error, MethodNotAllowed):
        return header_line(b"allow", error.allowed)
    if isinstance(error, UnsupportedEncoding):
        return b"accept-encoding: gzip, deflate\r\n"
    return b""


STATUS_LINES: dict[int, bytes] = {
    status: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
} | {499: b"HTTP/1.1 499 Client Closed Request\r\n"}

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_JSON_OK = STATUS_LINES[200] + b"content-type: application/json\r\ncontent-length: "
_BODILESS = (204, 304)


def encode_head(response: Response, length: int, connection: bytes, date: bytes) -> bytes:
    """Status line and headers; `length` -1 announces chunks, -2 a body that ends with the connection."""
    status = response.status
    if status == 200 and length >= 0 and response.content_type is JSON:
        return b"%b%d\r\n%b%b%b\r\n" % (_JSON_OK, length, date, response.headers, connection)
    parts = [STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status, date]
    if status not in _BODILESS:
        parts.append(header_line(b"content-type", response.content_type))
        if length >= 0:
            parts.append(b"content-length: %d\r\n" % length)
        elif length == -1:
            parts.append(b"transfer-encoding: chunked\r\n")
    parts += (response.headers, connection, b"\r\n")
    return b"".join(parts)
