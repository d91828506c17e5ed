"""What an end of a stream must be able to do. A broker is one file with classes of these shapes and two functions,
`open_source(url)` and `open_sink(url)`; `ends.py` finds it by the scheme of its URL.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from foretell.core.errors import StreamError
from foretell.streams.message import Message, Record, Refusal


class StreamReset(StreamError):
    """What was polled and not committed is void: open the ends again and go on behind the last commit."""


class Source(Protocol):
    """Where messages come from. Remembers committed positions if it can; what was not committed comes again."""

    async def open(self, held: Mapping[str, str]) -> None:
        """Begin where the last commit ended, or where `held` says, which state or sink have."""

    async def poll(self, most: int) -> list[Message] | None:
        """What is there, at most so many, in order of each partition; waits a moment for one. None: the end."""

    async def commit(self, positions: Mapping[str, str]) -> None:
        """Everything before these positions is done."""

    def lag(self) -> int:
        """How much is waiting behind what was polled, in the source's own unit; -1 where it cannot say."""

    async def close(self) -> None: ...


class Sink(Protocol):
    """Where answers go."""

    async def open(self) -> Mapping[str, str]:
        """Raises where it cannot be written. Returns positions of the source whose answers it holds, if it can tell."""

    async def publish(self, records: Sequence[Record]) -> list[Refusal]:
        """Returns when all are safe but those that it never takes. Raises `StreamError` where a retry may help."""

    async def close(self) -> None: ...


@runtime_checkable
class TransactionalSink(Protocol):
    """A sink that commits the positions of its source together with the answers."""

    def joins(self, source: Source) -> bool:
        """Whether it can do that for `source`."""

    async def transact(self, records: Sequence[Record], source: Source, positions: Mapping[str, str]) -> list[Refusal]:
        """All records and positions, or nothing."""
