"""What goes through a stream: messages in, answers and dead letters out. Values; they know no broker and no format."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

MOST_BYTES = 16 * 2**20
"""A message of more is refused; it would be more than one replica's share of everything."""
QUOTED = 65536
"""Bytes of a message that its dead letter quotes; one over the limits of the stream would be over the sink's."""


class Partition:
    """An ordered part of a source ("topic/3", a path) as long as this reader has it; `held` is false from the moment on
    when another reader may have it. `origin`: what sinks and answers call it, another name where positions begin anew.
    """

    __slots__ = ("held", "name", "origin")

    def __init__(self, name: str, origin: str = "") -> None:
        self.name = name
        self.origin = origin or name
        self.held = True


class Message(msgspec.Struct, frozen=True, gc=False):
    """One event. `position`: where it is in its partition, and `next`: where a reader goes on once it is done.

    `time`: milliseconds since 1970 when it was made. `replayed`: it was answered before and only state needs it again.
    `cut`: bytes that are not in `value`, for nobody takes a message as large.
    """

    value: bytes
    key: bytes
    partition: Partition
    position: str
    next: str
    time: int
    replayed: bool = False
    cut: int = 0

    @property
    def size(self) -> int:
        """Bytes that the message has."""
        return len(self.value) + self.cut


class Record(msgspec.Struct, frozen=True, gc=False):
    """Bytes for a sink, and the message that they answer."""

    value: bytes
    message: Message

    @property
    def idempotency_key(self) -> str:
        """The same whenever the message is answered again."""
        return f"{self.message.partition.origin}@{self.message.position}"


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A message that ends as a dead letter, and why."""

    message: Message
    reason: str


class Change(NamedTuple):
    """What became of an entry of a partition's state, for a change-log: opaque bytes; None: it is gone."""

    partition: str
    key: bytes
    value: bytes | None


def held(messages: Iterable[Message]) -> list[Message]:
    """Those whose partition is still this reader's."""
    return [message for message in messages if message.partition.held]


def ends(messages: Iterable[Message]) -> dict[Partition, Message]:
    """The last message of each partition; messages of one are in order."""
    return {message.partition: message for message in messages}


def positions(messages: Iterable[Message]) -> dict[str, str]:
    """Where a reader goes on in each partition once all of `messages` are done."""
    return {partition.name: message.next for partition, message in ends(messages).items()}


def weight(messages: Iterable[Message]) -> int:
    """Bytes of all their values."""
    return sum(len(message.value) for message in messages)


def order(position: str) -> tuple[int, ...]:
    """Positions of a partition compare as numbers, those of several numbers one after the other.

    >>> order("9") < order("10"), order("7-2") < order("7-10")
    (True, True)
    """
    return tuple(map(int, position.split("-")))


def later(*candidates: str | None) -> str | None:
    """The farthest of some positions; None if there is none."""
    known = [position for position in candidates if position is not None]
    return max(known, key=order) if known else None
