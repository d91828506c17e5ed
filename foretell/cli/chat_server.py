"""A chat on any server with OpenAI's API, streamed. Standard library only; knows no terminal."""

import http.client
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from foretell.core.errors import ForetellError, InvalidInput, NotFound, NotReady, did_you_mean

Message = dict[str, str]

CONNECT_S = 10.0
SILENCE_S = 600.0
"""A server may take this long for a prompt before its first word."""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: _Usage | None = None
    error: Any = None


class _Card(msgspec.Struct):
    id: str


class _Cards(msgspec.Struct):
    data: list[_Card]


class Reply:
    """One answer while it comes: iterate over its pieces of text. `close` stops it, also on the server.

    After (or during) that: `text`, `tokens` (as the server counts them, else pieces), `first_s` (seconds to the first
    piece), `tokens_per_s` (of those after the first; 0.0 where there is none).
    """

    def __init__(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, began: float
    ) -> None:
        self._connection = connection
        self._response = response
        self._began = began
        self._last = began
        self._pieces: list[str] = []
        self._counted = 0
        self.first_s = 0.0

    def __iter__(self) -> Iterator[str]:
        try:
            for line in self._response:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                piece = self._read(data)
                if piece:
                    yield piece
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(f"the server broke off its answer ({error or type(error).__name__}); ask again") from None

    def _read(self, data: bytes) -> str:
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except msgspec.DecodeError as error:
            raise ForetellError(f"the server does not stream as OpenAI's API does: {error}") from None
        if chunk.error:
            raise ForetellError(_message_of(chunk.error))
        if chunk.usage is not None:
            self._counted = chunk.usage.completion_tokens
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            self._last = time.perf_counter()
            if not self._pieces:
                self.first_s = self._last - self._began
            self._pieces.append(piece)
        return piece or ""

    def close(self) -> None:
        self._connection.close()

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def tokens(self) -> int:
        return self._counted or len(self._pieces)

    @property
    def tokens_per_s(self) -> float:
        took = self._last - self._began - self.first_s
        return (self.tokens - 1) / took if took > 0 and self.tokens > 1 else 0.0


class ChatServer:
    """`url`: http(s)://HOST:PORT, with or without /v1. `model` "" takes the only one there is.

    Raises `NotReady` when nobody answers, `NotFound` when the model is not there or must be chosen.
    """

    def __init__(self, url: str, model: str = "", key: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f'"{url}": expected http://HOST:PORT, with or without /v1')
        self._parts = parts
        path = parts.path.rstrip("/")
        self._base = path or "/v1"
        self._key = key
        names = self._models()
        if model and model not in names and model.partition("@")[0] not in names:
            raise NotFound(f'no model "{model}" at {url}. {did_you_mean(model, names)}')
        if not model and len(names) != 1:
            raise NotFound(f"{url} has {len(names)} models; choose one with --model. {did_you_mean('', names)}")
        self.model = model or names[0]

    def ask(self, messages: list[Message], options: dict[str, Any]) -> Reply:
        """Start an answer to a conversation. Raises a `ForetellError` with the server's own words."""
        document = {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **options,
        }
        began = time.perf_counter()
        connection, response = self._request("POST", "/chat/completions", msgspec.json.encode(document))
        return Reply(connection, response, began)

    def _models(self) -> list[str]:
        connection, response = self._request("GET", "/models", None)
        try:
            return [card.id for card in msgspec.json.decode(response.read(), type=_Cards).data]
        except (msgspec.DecodeError, OSError, http.client.HTTPException) as error:
            raise NotReady(f"{self._parts.geturl()} does not list models as OpenAI's API does: {error}") from None
        finally:
            connection.close()

    def _request(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        assert self._parts.hostname is not None
        connection = kind(self._parts.hostname, self._parts.port, timeout=CONNECT_S)
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            connection.connect()
            connection.sock.settimeout(SILENCE_S)
            connection.request(method, self._base + path, body, headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise _refusal(response.status, response.read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise NotReady(
                f"no server answers at {self._parts.geturl()} ({error}); start one: foretell serve"
            ) from None
        except BaseException:
            connection.close()
            raise
        return connection, response


def _refusal(status: int, content: bytes) -> ForetellError:
    try:
        said = _message_of(msgspec.json.decode(content)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        said = content[:200].decode("utf-8", "replace") or f"HTTP status {status}"
    return ForetellError(said)


def _message_of(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
