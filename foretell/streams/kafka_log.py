"""The change-log of state on Kafka: beside each topic of a source a compacted one, `foretell-GROUP-TOPIC`, with as many
partitions. Written in the transactions of `kafka.py`, read when a partition comes to a worker.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from foretell.core.errors import StateError, StreamError
from foretell.streams.message import Change
from foretell.streams.protocol import Portion

PATIENCE_S = 30.0
PORTION = 1000
_ILLEGAL = re.compile(r"[^a-zA-Z0-9._-]")
_CONSUMER_ONLY = (
    "group.",
    "partition.assignment",
    "auto.offset",
    "enable.auto",
    "isolation.",
    "session.",
    "heartbeat.",
)


class KafkaLog:
    """`settings` are those of the source's consumer."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self._group = settings["group.id"]

    def place(self, partition: str) -> tuple[str, int]:
        """The topic and the partition of it that hold the changes of a partition of the source."""
        topic, _, number = partition.rpartition("/")
        return _ILLEGAL.sub("_", f"foretell-{self._group}-{topic}")[:249], int(number)

    def read(self, partition: str) -> Iterator[Portion]:
        """All that was committed until now, the oldest first. Makes the topic or its partition if it is not there.

        An empty portion says that a transaction is open over what follows, which only a worker that was killed leaves;
        whoever needs more waits until the broker gives it up.
        """
        topic, number = self.place(partition)
        try:
            self._make(topic, partition.rpartition("/")[0])
            yield from self._read(TopicPartition(topic, number, OFFSET_BEGINNING))
        except KafkaException as error:
            raise StreamError(f'change-log "{topic}": {error.args[0].str()}') from None

    def _read(self, place: TopicPartition) -> Iterator[Portion]:
        settings = {**self._settings, "enable.partition.eof": True, "auto.offset.reset": "earliest"}
        end = self._end(place)
        if not end:
            return
        consumer = Consumer(settings)
        try:
            consumer.assign([place])
            until = time.monotonic() + PATIENCE_S
            at = 0
            while at < end:
                portion: list[tuple[bytes, bytes | None]] = []
                for item in consumer.consume(PORTION, 0.1):
                    error = item.error()
                    if error is None:
                        at = item.offset() + 1
                        portion.append((item.key(), item.value()))
                    elif error.code() == KafkaError._PARTITION_EOF:
                        at = max(at, item.offset())
                    else:
                        raise KafkaException(error)
                yield portion
                if portion:
                    until = time.monotonic() + PATIENCE_S
                elif time.monotonic() > until:
                    raise StreamError(f'change-log "{place.topic}": nothing came for {PATIENCE_S:.0f} s')
        finally:
            consumer.close()

    def _end(self, place: TopicPartition) -> int:
        """Behind the last message, also where a transaction over it is still open."""
        consumer = Consumer({**self._settings, "isolation.level": "read_uncommitted"})
        try:
            _, end = consumer.get_watermark_offsets(place, PATIENCE_S)
            return int(end)
        finally:
            consumer.close()

    def _make(self, topic: str, source: str) -> None:
        shared = {name: value for name, value in self._settings.items() if not name.startswith(_CONSUMER_ONLY)}
        admin = AdminClient(shared)
        topics = admin.list_topics(timeout=PATIENCE_S).topics
        count, there = len(topics[source].partitions), len(topics[topic].partitions) if topic in topics else 0
        if there >= count:
            return
        if there:  # the source got more since
            made = admin.create_partitions([NewPartitions(topic, count)])[topic]
        else:
            made = admin.create_topics([NewTopic(topic, count, config={"cleanup.policy": "compact"})])[topic]
        try:
            made.result(PATIENCE_S)
        except KafkaException as error:  # another worker was faster
            if error.args[0].code() not in (KafkaError.TOPIC_ALREADY_EXISTS, KafkaError.INVALID_PARTITIONS):
                raise

    def produce(self, producer: Any, changes: Sequence[Change]) -> list[KafkaError]:
        """Hand the changes to a producer; `flush` it, then the list has what went wrong. Raises `StateError` for an
        entry that is too large for the topic.
        """
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Any) -> None:
            if error is not None:
                failed.append(error)

        for change in changes:
            topic, number = self.place(change.partition)
            while True:
                try:
                    producer.produce(topic, change.value, change.key, number, on_delivery=delivered)
                    break
                except BufferError:
                    producer.poll(0.1)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                        raise
                    raise StateError(
                        f"the state of one key has {len(change.value or b''):,} bytes, too large for the change-log"
                        f' "{topic}": raise FORETELL_KAFKA_MESSAGE_MAX_BYTES and the max.message.bytes of the topic, or'
                        " keep less of a key"
                    ) from None
        return failed
