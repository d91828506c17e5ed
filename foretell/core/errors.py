"""Every error a user can meet, each with its HTTP status, its gRPC code and what to do about it.

Messages say the problem, the place and the remedy; entrances only translate `http_status` and `grpc_code`.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class ForetellError(Exception):
    """Base of all errors raised on purpose. Anything else that escapes is a bug (HTTP 500, INTERNAL)."""

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"
    outcome: ClassVar[str] = "failed"
    """How the request that met this error is counted: failed, rejected, expired or cancelled."""

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class InvalidInput(ForetellError):
    """The request is malformed or disagrees with the signature. Mend the request; a retry will not help."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"
    outcome = "rejected"


class PayloadTooLarge(InvalidInput):
    """The body is over the server's limit. Send fewer rows, or raise `max_body_bytes`."""

    http_status = 413
    grpc_code = "RESOURCE_EXHAUSTED"


class ContextExceeded(InvalidInput):
    """The prompt, or it and the tokens asked for, is longer than the model's context. Shorten either."""


class NotFound(ForetellError):
    """No such model, version, alias or route. `foretell list` says what there is."""

    http_status = 404
    grpc_code = "NOT_FOUND"
    outcome = "rejected"


class NotReady(ForetellError):
    """The model exists but cannot answer now (loading, unhealthy, draining). Retry later or elsewhere."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class Overloaded(ForetellError):
    """The queue is full, or the wait would outlast the deadline. Retry after `retry_after_s` seconds."""

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"
    outcome = "rejected"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ForetellError):
    """The request's time ran out, in the queue or while it ran."""

    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"
    outcome = "expired"


class Cancelled(ForetellError):
    """The client went away; nobody will read the answer."""

    http_status = 499
    grpc_code = "CANCELLED"
    outcome = "cancelled"


class ModelFailed(ForetellError):
    """The model raised on this request's own rows (it was retried alone), or returned something unusable."""


class ReplicaCrashed(ForetellError):
    """The process that ran the model died or hung while it held this request. See the message for the signal."""


class PackageError(ForetellError):
    """A package is missing parts, corrupt, or not what its model.toml says."""

    http_status = 400
    grpc_code = "FAILED_PRECONDITION"


class UntrustedCode(PackageError):
    """Loading would run code from the package. Convert it to a safe format, or pass --trust-code."""

    http_status = 403
    grpc_code = "PERMISSION_DENIED"


class Conflict(ForetellError):
    """Somebody else changed the same alias or version first. Read the new value and decide again."""

    http_status = 409
    grpc_code = "ABORTED"


class Unsupported(ForetellError):
    """A valid request for something this server does not do."""

    http_status = 501
    grpc_code = "UNIMPLEMENTED"
    outcome = "rejected"


class StateError(ForetellError):
    """The state of a stream cannot be used: it is damaged, in use, or was made by another transform.py."""

    http_status = 409
    grpc_code = "FAILED_PRECONDITION"


class StateUnwritable(StateError):
    """The disk refused the state. Nothing is lost: make room and commit again, or end and start again."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class StreamError(ForetellError):
    """An end of a stream cannot be reached or does not answer; it is tried again; nothing is committed meanwhile."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class ConfigError(ForetellError):
    """A configuration file, flag or environment variable is wrong; the message names the key."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that lists the nearest known names, or all of them when none is near.

    >>> did_you_mean("digit", ["digits", "minilm"])
    'Did you mean "digits"?'
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=3)
    if near:
        return "Did you mean " + " or ".join(f'"{n}"' for n in near) + "?"
    if names:
        return "Known: " + ", ".join(names[:20]) + ("…" if len(names) > 20 else "") + "."
    return "There are none."
