"""What OpenAI's endpoints share: how documents are read, errors told, tokens counted. Knows no endpoint."""

import re
import secrets
import time
from typing import Any, TypeVar

import msgspec

from foretell.core.errors import ContextExceeded, ForetellError, InvalidInput, NotFound
from foretell.server.generation import Totals
from foretell.server.http import Request, Response, headers_of, json_response, status_of
from foretell.server.sse import encode, event

_T = TypeVar("_T", bound=msgspec.Struct)

STATUSES = (400, 404, 405, 413, 415, 429, 500, 501, 503, 504)
DONE = event(b"[DONE]")
_LOWEST = -9999.0
_PLACE = re.compile(r"(?:at|in) `?\$\.([\w.\[\]]+)")


def finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes this number for a probability of nothing."""
    return max(logprob, _LOWEST)


class CachedTokens(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


def usage_of(totals: Totals) -> Usage:
    prompt, completion = totals.prompt, totals.completion
    return Usage(prompt, completion, prompt + completion, CachedTokens(totals.cached))


class StreamOptions(msgspec.Struct):
    """`include_usage`: a last chunk without choices tells the usage."""

    include_usage: bool | None = None


class Answering(msgspec.Struct, frozen=True):
    """What every chunk of one answer repeats."""

    id: str
    object: str
    created: int
    model: str

    def head(self) -> bytes:
        """The beginning of a JSON object with these fields, up to where its next field begins."""
        return encode(self)[:-1] + b","


def answering(prefix: str, kind: str, model: str) -> Answering:
    """A new answer's name and time; `kind` is OpenAI's name of the object."""
    return Answering(prefix + secrets.token_hex(12), kind, int(time.time()), model)


def request_id(request: Request, default: str) -> str:
    """The id that the client gave its request, or `default`."""
    return request.header(b"x-request-id")[:128].decode("latin-1") or default


def read_document(request: Request, kind: type[_T]) -> _T:
    """The request's body. Unknown fields are ignored, as OpenAI's clients expect.

    Raises `InvalidInput` with the JSON path that is wrong.
    """
    try:
        return msgspec.json.decode(request.body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the request does not fit {request.path}: {error}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body is not UTF-8: {error}. Encode text as UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as error:
        hint = "" if request.body else " (the body is empty)"
        raise InvalidInput(f"the body is not JSON: {error}{hint}") from None


def error_detail(error: Exception) -> dict[str, Any]:
    """The object under "error" in OpenAI's answers; `param` is the place in the request that the message names."""
    status = status_of(error)
    kind = {404: "not_found_error", 429: "rate_limit_error"}.get(status)
    if kind is None:
        kind = "invalid_request_error" if status < 500 else "server_error"
    message = error.message if isinstance(error, ForetellError) else str(error)
    code = "model_not_found" if isinstance(error, NotFound) and "model" in message else None
    if isinstance(error, ContextExceeded):
        code = "context_length_exceeded"  # by which clients know that a shorter prompt would do
    place = _PLACE.search(message)
    return {"message": message, "type": kind, "param": place[1] if place else None, "code": code}


def error_response(error: Exception) -> Response:
    """An error in OpenAI's shape, so that the openai client raises its own exceptions with our message."""
    return json_response({"error": error_detail(error)}, status_of(error), headers_of(error))


def error_event(error: ForetellError) -> bytes:
    """The end of a stream that failed; the openai client raises `APIError` on it."""
    return event(encode({"error": error_detail(error)})) + DONE
