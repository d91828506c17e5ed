"""Standard input and output, a message a line; and nowhere, the null twin of a sink."""

import asyncio
import os
import select
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence

from foretell.core.errors import ConfigError
from foretell.streams.ends import EndUrl
from foretell.streams.message import QUOTED, Message, Partition, Record, Refusal
from foretell.streams.protocol import Resume, Room, taken

WAIT_S = 0.1
CHUNK = 2**18


class Line:
    """A line as it comes in parts; `cut` bytes of one that is too large are not kept."""

    __slots__ = ("cut", "head")

    def __init__(self) -> None:
        self.head = bytearray()
        self.cut = 0

    def add(self, part: bytes, largest: int) -> None:
        """Keep it, or of more than `largest` bytes what a dead letter quotes."""
        if self.cut:
            self.cut += len(part)
            return
        self.head += part
        if len(self.head) > largest:
            self.cut = max(0, len(self.head) - QUOTED)
            del self.head[QUOTED:]


class StdinSource:
    """Lines of standard input. A pipe cannot be read twice: what was under way at a kill is lost, and only then. Nor do
    lines have positions: each process gives them new ones, so no sink takes them for those of another.
    """

    renumbers = True

    def __init__(self) -> None:
        self._partition = Partition("stdin")
        self._rest = Line()
        self._lines: deque[Line] = deque()
        self._number = 0
        self._ended = False

    async def open(self, resume: Resume) -> None:
        """Positions go on behind all that anybody remembers."""
        self._number = max(self._number, resume.beyond(self._partition.name))

    async def poll(self, room: Room) -> list[Message] | None:
        """Lines that are there. The last one may lack its end."""
        if not self._lines:
            if self._ended:
                return None
            await asyncio.to_thread(self._read, room.largest)
        now = int(time.time() * 1000)
        messages = []
        for line in taken(self._lines, room, lambda line: len(line.head)):
            self._number += 1
            value = bytes(line.head)
            if value.strip():
                place = str(self._number), str(self._number + 1)
                messages.append(Message(value, b"", self._partition, *place, now, cut=line.cut))
        return messages

    def _read(self, largest: int) -> None:
        if not select.select([sys.stdin.fileno()], [], [], WAIT_S)[0]:
            return
        data = os.read(sys.stdin.fileno(), CHUNK)
        self._ended = not data
        *ends, rest = data.split(b"\n")
        for part in ends:
            self._end(part, largest)
        self._rest.add(rest, largest)
        if self._ended:
            self._end(b"", largest)

    def _end(self, part: bytes, largest: int) -> None:
        self._rest.add(part, largest)
        self._lines.append(self._rest)
        self._rest = Line()

    async def commit(self, messages: Sequence[Message]) -> None:
        """A pipe remembers nothing."""

    def lag(self) -> int:
        """Lines that were read and wait."""
        return len(self._lines)

    async def close(self) -> None:
        """It stays open; it is the caller's."""


class StdoutSink:
    """A line for each answer. At least once: a reader that goes away ends the stream."""

    remembers = False

    async def open(self) -> Mapping[str, str]:
        """What was written before cannot be known."""
        return {}

    async def publish(self, records: Sequence[Record]) -> list[Refusal]:
        """Written and flushed."""
        await asyncio.to_thread(_write, b"".join(record.value + b"\n" for record in records))
        return []

    async def close(self) -> None:
        """It stays open; it is the caller's."""


class NullSink:
    """Takes everything, keeps nothing."""

    remembers = True

    async def open(self) -> Mapping[str, str]:
        """It holds nothing."""
        return {}

    async def publish(self, records: Sequence[Record]) -> list[Refusal]:
        """Forgotten."""
        return []

    async def close(self) -> None:
        """Nothing to do."""


def make_source(url: EndUrl) -> StdinSource:
    """`-`."""
    if url.scheme == "null":
        raise ConfigError("null:// is a sink; nothing can be read from it")
    return StdinSource()


def make_sink(url: EndUrl) -> StdoutSink | NullSink:
    """`-` and `null://`."""
    return NullSink() if url.scheme == "null" else StdoutSink()


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
