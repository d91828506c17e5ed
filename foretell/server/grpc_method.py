"""What a gRPC service is to the transport that carries it: methods by path, messages in, messages out."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec

from foretell.core.errors import ForetellError

_LOG = logging.getLogger("foretell.server")

Message = Any


class Method(msgspec.Struct, frozen=True):
    """A unary method: the class of its request, and who answers one. `deadline` is monotonic seconds or None."""

    request: Message
    answer: Callable[[Message, float | None], Awaitable[Message]]


class StreamMethod(msgspec.Struct, frozen=True):
    """A streaming method: the class of its requests, and who answers a stream of them with a stream."""

    request: Message
    answer: Callable[[AsyncIterator[Message], float | None], AsyncGenerator[Message, None]]


Routes = Mapping[str, Method | StreamMethod]
"""The methods of some services by path ("/inference.GRPCInferenceService/ModelInfer")."""


def explain(error: Exception) -> ForetellError:
    """What a caller may know of an error: our own as they are; anything else is a bug, logged with its trace."""
    if isinstance(error, ForetellError):
        return error
    _LOG.error("a gRPC method met a bug", exc_info=error)
    return ForetellError(f"internal error ({type(error).__name__}); the server's log has the trace")
