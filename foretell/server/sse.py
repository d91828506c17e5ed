"""Server-sent events: token events written as they come, failures as a last event. Knows no protocol's shape."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

import msgspec

from foretell.core.errors import ForetellError
from foretell.core.generation import Event
from foretell.server.http import Response, explain

SSE = b"text/event-stream"
_HEADERS = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"

encode = msgspec.json.Encoder().encode


class Writer(Protocol):
    """Writes token events as one protocol has them; b"" says nothing."""

    def write(self, event: Event) -> bytes: ...
    def end(self) -> bytes:
        """What follows the last event of an answer that is whole."""

    def fail(self, error: ForetellError) -> bytes:
        """What ends an answer that is not."""


def event(data: bytes) -> bytes:
    """
    >>> event(b'{"x":1}')
    b'data: {"x":1}\\n\\n'
    """
    return b"data: " + data + b"\n\n"


async def streamed(events: AsyncGenerator[Event, None], writer: Writer) -> Response:
    """The answer that streams `events`. Waits for the first one, so that a request which cannot run is refused with
    its own status; later there is only an event to tell by.
    """
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise
    return Response(_chunks(first, events, writer), 200, SSE, _HEADERS)


async def _chunks(first: Event, events: AsyncGenerator[Event, None], writer: Writer) -> AsyncGenerator[bytes, None]:
    write = writer.write
    async with aclosing(events):
        yield write(first)
        try:
            async for each in events:
                yield write(each)
        except Exception as error:
            yield writer.fail(explain(error))
        else:
            yield writer.end()
