"""What an end of a stream must be able to do. A broker is one file with classes of these shapes and two functions,
`make_source(url)` and `make_sink(url)`; `ends.py` finds it by the scheme of its URL.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec

from foretell.core.errors import StreamError
from foretell.streams.message import MOST_BYTES, Change, Message, Record, Refusal, later, order, weight

T = TypeVar("T")
Portion = Sequence[tuple[bytes, bytes | None]]
"""Some of a change-log: keys and values as `Change` has them."""


class StreamReset(StreamError):
    """What was polled and not committed is void: open the ends again and go on behind the last commit."""


class Resume(msgspec.Struct, frozen=True):
    """What is known of the past of each partition, by its name, when a source opens.

    `answered`: up to where the sink holds answers, if it can tell. `state`: up to where the state has come, None
    without state. State that is behind the answers catches up: messages in between are read again, not answered again.
    `take`, if there is one, brings the state of partitions that come to this reader, given what the group committed of
    each, and says up to where it is; it blocks, and is called from any thread but the loop's.
    """

    answered: Mapping[str, str] = {}
    state: Mapping[str, str] | None = None
    take: Callable[[Mapping[str, str | None]], Mapping[str, str]] | None = None

    def done(self, partition: str, committed: str | None) -> str | None:
        """Up to where messages are answered, given what the source remembers; None: none is."""
        return later(committed, self.answered.get(partition))

    def start(self, partition: str, committed: str | None) -> str | None:
        """Where to begin to read; None: at the beginning. There begins state of a partition that is new here."""
        if self.state is None:
            return self.done(partition, committed)
        return self.state.get(partition)

    def beyond(self, partition: str) -> int:
        """Behind every position that anybody remembers: where a `Renumbering` source begins to count. By the clock, for
        not every sink that drops what comes again can say what it holds.
        """
        known = later(self.answered.get(partition), (self.state or {}).get(partition))
        return max(int(time.time() * 1e6), order(known)[0] if known else 0)


def is_replayed(position: str, done: str | None) -> bool:
    """Whether the message at `position` was answered before."""
    return done is not None and order(position) < order(done)


class Room(NamedTuple):
    """What a processor has room for: so many messages, of `nbytes` together; the one that goes beyond is the last. Of
    one with more than `largest` bytes its beginning is enough (see `Message.cut`).
    """

    messages: int
    nbytes: int = 4 * MOST_BYTES
    largest: int = MOST_BYTES

    def __bool__(self) -> bool:
        return self.messages > 0 and self.nbytes > 0

    def beside(self, messages: Sequence[Message]) -> "Room":
        """What is left beside these."""
        return Room(self.messages - len(messages), self.nbytes - weight(messages), self.largest)


def taken(came: deque[T], room: Room, size: Callable[[T], int]) -> Iterator[T]:
    """Those that there is room for, taken out of `came`."""
    count = held = 0
    while came and count < room.messages and held < room.nbytes:
        item = came.popleft()
        count, held = count + 1, held + size(item)
        yield item


class Source(Protocol):
    """Where messages come from. Remembers what was committed if it can; what was not committed comes again."""

    async def open(self, resume: Resume) -> None:
        """Begin where `resume` says. Raises `StreamError` where a retry may help."""

    async def poll(self, room: Room) -> list[Message] | None:
        """What is there and finds room, in order of each partition; waits a moment for one. None: the end."""

    async def commit(self, messages: Sequence[Message]) -> None:
        """All of these are done, in the order in which they were polled. Nothing of partitions that are not held is
        committed; with state that is a `StreamReset`, for the state has gone on. Replayed ones change nothing.
        """

    def lag(self) -> int:
        """How much is waiting behind what was polled, in the source's own unit; -1 where it cannot say."""

    async def close(self) -> None: ...


@runtime_checkable
class Renumbering(Protocol):
    """A source whose messages have another position when they come again, so that no sink can tell them apart."""

    @property
    def renumbers(self) -> bool: ...


class Sink(Protocol):
    """Where answers go. `remembers`: it can tell what it holds, or drops what comes again under the same key."""

    @property
    def remembers(self) -> bool: ...

    async def open(self) -> Mapping[str, str]:
        """Raises where it cannot be written. Returns up to where it holds answers of each partition, if it can tell."""

    async def publish(self, records: Sequence[Record]) -> list[Refusal]:
        """Returns when all are safe but those that it never takes. Raises `StreamError` where a retry may help."""

    async def close(self) -> None: ...


@runtime_checkable
class TransactionalSink(Protocol):
    """A sink that commits the positions of its source together with the answers."""

    def joins(self, source: Source) -> bool:
        """Whether it can do that for `source`. Asked once, before `open`."""

    async def transact(
        self, records: Sequence[Record], source: Source, messages: Sequence[Message], changes: Sequence[Change] = ()
    ) -> list[Refusal]:
        """The records, and that `messages` are done (see `Source.commit`): all of it or nothing. What is of partitions
        that are not held is left out. Returns records that it never takes; then nothing was written. Raises
        `StreamReset` where nothing was written and the ends have to be opened anew. `changes` of state are a
        `ChangeLog`'s to write; no other sink is given any.
        """


@runtime_checkable
class ChangeLog(Protocol):
    """A transactional sink that keeps the changes of state, for workers to which partitions come."""

    def changes(self, partition: str) -> Iterator[Portion]:
        """The changes of a partition that were committed until now, the oldest first. Blocks."""
