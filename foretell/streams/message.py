"""What goes through a stream: messages in, answers and dead letters out. Values; they know no broker and no format."""

import msgspec


class Message(msgspec.Struct, frozen=True):
    """One event. `partition`: "topic/3" or a path; messages of one are in order. `position`: where it is there, and
    `next`: where a reader goes on once it is done. `time`: milliseconds since 1970 when it was made.
    """

    value: bytes
    key: bytes
    partition: str
    position: str
    next: str
    time: int


class Record(msgspec.Struct, frozen=True):
    """Bytes for a sink, and the message that they answer."""

    value: bytes
    message: Message

    @property
    def idempotency_key(self) -> str:
        """The same whenever the message is answered again."""
        return f"{self.message.partition}@{self.message.position}"


class Refusal(msgspec.Struct, frozen=True):
    """A message that ends as a dead letter, and why."""

    message: Message
    reason: str


def positions(messages: "list[Message]") -> dict[str, str]:
    """Where a reader goes on in each partition once all of `messages`, which are in order, are done."""
    return {message.partition: message.next for message in messages}
