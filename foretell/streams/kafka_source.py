"""Topics of Kafka as a source: a consumer of a group."""

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from foretell.core.errors import StreamError
from foretell.streams.message import Message, Partition, ends, later
from foretell.streams.protocol import Resume, Room, StreamReset, is_replayed

WAIT_S = 0.1
PATIENCE_S = 30.0
"""How long a broker may take before its silence is an error that is retried."""
REVOKE_S = 20.0
"""How long a partition that is asked back is kept to finish what was polled of it."""
AWAY = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE)


class KafkaSource:
    """Topics of a consumer group. Committed offsets say where it goes on.

    A partition that the group gives to another reader is kept until what was polled of it is committed; if that
    takes too long, or the group has given it away already, what was polled of it is void and the other reads it.
    """

    def __init__(self, settings: Mapping[str, Any], topics: list[str]) -> None:
        self.settings = settings
        self.giving = threading.RLock()
        """Held while a partition is given up, and while offsets are committed."""
        self._topics = topics
        self._consumer: Any = None
        self._resume = Resume()
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._done: dict[str, str | None] = {}
        self._next: dict[tuple[str, int], int] = {}
        self._open = 0
        self._settled = threading.Condition()
        self._closing = False
        self._trouble: KafkaError | None = None

    async def open(self, resume: Resume) -> None:
        """Join the group. A broker that is away is waited for by `poll`."""
        self._resume, self._closing, self._open = resume, False, 0
        self._partitions, self._done, self._next = {}, {}, {}
        self._consumer = Consumer({**self.settings, "error_cb": self._failed})
        self._consumer.subscribe(self._topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    async def poll(self, room: Room) -> list[Message] | None:
        """What librdkafka has fetched; it fetches ahead, up to its `queued.max.messages.kbytes`."""
        return await asyncio.to_thread(self._poll, room)

    async def commit(self, messages: Sequence[Message]) -> None:
        await asyncio.to_thread(self._commit, messages)

    def lag(self) -> int:
        """Messages behind those polled, as far as the last fetch of each partition told."""
        if self._consumer is None or self._closing:
            return -1
        waiting = 0
        for (topic, number), at in list(self._next.items()):
            _, high = self._consumer.get_watermark_offsets(TopicPartition(topic, number), cached=True)
            waiting += max(0, high - at)
        return waiting

    async def close(self) -> None:
        self._closing = True
        if self._consumer is not None:
            await asyncio.to_thread(self._consumer.close)
            self._consumer = None

    # What a transaction needs

    def offsets(self, messages: Iterable[Message]) -> list[TopicPartition]:
        """What to commit for partitions that are held, never less than before; call it and commit under `giving`.

        Raises `StreamReset`.
        """
        found = []
        for partition, last in ends(messages).items():
            if partition.held:
                topic, _, number = partition.name.rpartition("/")
                at = later(last.next, self._done.get(partition.name))
                found.append(TopicPartition(topic, int(number), int(at or 0)))
            elif self._resume.state is not None:
                raise StreamReset(f"{partition.name} was given to another worker while its messages were under way")
        return found

    def group(self) -> Any:
        """The group as this reader knows it, by which the broker tells a reader of the past."""
        return self._consumer.consumer_group_metadata()

    def settled(self, count: int) -> None:
        """So many of the polled messages are done."""
        with self._settled:
            self._open -= count
            self._settled.notify_all()

    def _commit(self, messages: Sequence[Message]) -> None:
        with self.giving:
            offsets = self.offsets(messages)
            try:
                if offsets:
                    self._consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                cause = error.args[0]
                if cause.retriable() or cause.code() in AWAY:
                    raise StreamError(f"offsets were not committed: {cause.str()}") from None
                raise StreamReset(f"offsets were not committed: {cause.str()}") from None
        self.settled(len(messages))

    # In the thread that polls

    def _poll(self, room: Room) -> list[Message]:
        self._trouble = None
        first = self._consumer.poll(WAIT_S)
        if first is None:
            if self._trouble is not None:
                raise StreamError(f"Kafka: {self._trouble.str()}")
            return []
        polled = self._polled(first, room)
        messages = [each for each in polled if isinstance(each, Message) and each.partition.held]
        fault = next((each for each in reversed(polled) if isinstance(each, KafkaError)), None)
        with self._settled:
            self._open += len(messages)
        if fault is not None and fault.fatal():
            raise StreamReset(f"the consumer ended: {fault.str()}")
        if fault is not None and not messages:
            raise StreamError(f"Kafka: {fault.str()}")
        return messages

    def _polled(self, first: Any, room: Room) -> list[Message | KafkaError | None]:
        """The first, and what finds room beside it: as many as it would be if all were as large as the largest so far.

        `consume` may give partitions up, also those of messages before; so whose they are has to be known by then.
        """
        found = [self._sorted(first)]
        left, largest = room.nbytes - _size(first), max(1, _size(first))
        while (most := min(room.messages - len(found), len(found), left // largest)) > 0:
            items = self._consumer.consume(most, 0)
            found += map(self._sorted, items)
            sizes = list(map(_size, items))
            left, largest = left - sum(sizes), max([largest, *sizes])
            if len(items) < most:
                break
        return found

    def _sorted(self, item: Any) -> Message | KafkaError | None:
        """A message, a fault, or None for what is of a partition that this reader does not have."""
        place = item.topic(), item.partition()
        partition = self._partitions.get(place)
        fault: KafkaError | None = item.error()
        if fault is not None or partition is None:
            return fault
        offset = item.offset()
        self._next[place] = offset + 1
        kind, made = item.timestamp()
        time_ms = made if kind else int(time.time() * 1000)
        done = self._done.get(partition.name)
        position = str(offset)
        replayed = done is not None and is_replayed(position, done)
        return Message(item.value() or b"", item.key() or b"", partition, position, str(offset + 1), time_ms, replayed)

    def _failed(self, error: KafkaError) -> None:
        if error.code() in AWAY:
            self._trouble = error

    def _assigned(self, consumer: Any, places: list[TopicPartition]) -> None:
        """Take partitions; say where to begin where state or sink know better than the group. Raises `StreamReset`."""
        self._partitions |= {(at.topic, at.partition): Partition(f"{at.topic}/{at.partition}") for at in places}
        if not places or (self._resume.state is None and not self._resume.answered):
            return
        try:
            known = consumer.committed(places, PATIENCE_S)
        except KafkaException as error:
            raise StreamReset(f"what the group has committed is not known: {error.args[0].str()}") from None
        offsets = {f"{at.topic}/{at.partition}": str(at.offset) if at.offset >= 0 else None for at in known}
        resume = self._resume
        if resume.take is not None:
            resume = Resume(resume.answered, resume.take(offsets))
        for place, (name, committed) in zip(known, offsets.items(), strict=True):
            self._done[name] = resume.done(name, committed)
            start = resume.start(name, committed)
            if start is not None or resume.state is not None:
                place.offset = OFFSET_BEGINNING if start is None else int(start)
        if self.settings["partition.assignment.strategy"].startswith("cooperative"):
            consumer.incremental_assign(known)
        else:
            consumer.assign(known)

    def _revoked(self, consumer: Any, places: list[TopicPartition]) -> None:
        """Finish what was polled, then let go."""
        with self._settled:
            self._settled.wait_for(lambda: self._open <= 0 or self._closing, REVOKE_S)
        self._lost(consumer, places)

    def _lost(self, consumer: Any, places: list[TopicPartition]) -> None:
        with self.giving:
            for place in places:
                at = place.topic, place.partition
                partition = self._partitions.pop(at, None)
                self._next.pop(at, None)
                if partition is not None:
                    partition.held = False


def _size(item: Any) -> int:
    """Bytes of a message."""
    return len(item.value() or b"")
