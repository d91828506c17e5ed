"""How errors and limits look in gRPC: status codes, trailing metadata, settings. Knows no transport."""

import math

import msgspec

from foretell.core.errors import ForetellError, Overloaded

CODES = {
    "OK": 0,
    "CANCELLED": 1,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
}
"""The numbers of the status codes that `ForetellError.grpc_code` names."""


class GrpcSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of the gRPC entrance. Sizes are bytes, times seconds.

    max_body_bytes: one request message, before and after decompression (answers are not bounded).
    max_connections: open connections. max_connection_streams: calls that one connection may have open.
    stream_window: requests of one streaming call that run at a time.
    keepalive_s: a connection that said nothing for this long is pinged, and cut if it stays silent as long
    again.
    """

    max_body_bytes: int = 64 * 2**20
    max_connections: int = 4096
    max_connection_streams: int = 1024
    stream_window: int = 16
    keepalive_s: float = 60.0


def trailing_metadata(error: ForetellError) -> tuple[tuple[str, str], ...]:
    """What a refused caller gets beside code and message: an overload says when to come back, in whole seconds
    and in the milliseconds that gRPC's own retry policies read.
    """
    if not isinstance(error, Overloaded):
        return ()
    return (
        ("retry-after", str(max(1, math.ceil(error.retry_after_s)))),
        ("grpc-retry-pushback-ms", str(max(1, round(error.retry_after_s * 1000)))),
    )
