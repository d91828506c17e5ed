"""Kafka, by confluent-kafka. Settings and secrets come from FORETELL_KAFKA_*: FORETELL_KAFKA_SASL_PASSWORD is
librdkafka's `sasl.password`.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.ends import EndUrl
from foretell.streams.message import Message, Record, Refusal
from foretell.streams.protocol import Source, StreamReset

WAIT_S = 0.1
PATIENCE_S = 30.0
"""How long a broker may take before its silence is an error that is retried."""
PREFIX = "FORETELL_KAFKA_"
TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE)


class KafkaSource:
    """Topics of a consumer group. Committed offsets decide where it goes on; what others had under way comes again to
    who has the partition now. Nothing of a partition that was taken away is committed.
    """

    def __init__(self, settings: Mapping[str, Any], topics: list[str]) -> None:
        self._settings = settings
        self._topics = topics
        self._consumer: Any = None
        self._revocations = 0
        self._polled: dict[tuple[str, str], tuple[int, Any]] = {}

    async def open(self, held: Mapping[str, str]) -> None:
        """Join the group. A broker that is away is waited for."""
        self._polled.clear()
        self._consumer = Consumer(self._settings)
        self._consumer.subscribe(self._topics, on_revoke=self._revoked, on_lost=self._revoked)

    async def poll(self, most: int) -> list[Message] | None:
        """What librdkafka has fetched; it fetches ahead, up to its `queued.max.messages.kbytes`."""
        return await asyncio.to_thread(self._poll, most)

    async def commit(self, positions: Mapping[str, str]) -> None:
        """Offsets of partitions that are still ours since they were polled."""
        offsets = [place for place, revocations, _ in self._taken(positions) if revocations == self._revocations]
        if not offsets:
            return
        try:
            await asyncio.to_thread(self._consumer.commit, offsets=offsets, asynchronous=False)
        except KafkaException as error:
            raise StreamReset(f"offsets were not committed: {error.args[0].str()}") from None

    def offsets(self, positions: Mapping[str, str]) -> tuple[list[TopicPartition], Any]:
        """What a transaction commits, and the group as it was at the poll. Raises `StreamReset` after a rebalance."""
        taken = self._taken(positions)
        if any(revocations != self._revocations for _, revocations, _ in taken):
            raise StreamReset("partitions were given to others while their messages were under way")
        return [place for place, _, _ in taken], taken[-1][2]

    def lag(self) -> int:
        """Not asked of the broker."""
        return -1

    async def close(self) -> None:
        if self._consumer is not None:
            await asyncio.to_thread(self._consumer.close)

    def _taken(self, positions: Mapping[str, str]) -> list[tuple[TopicPartition, int, Any]]:
        taken = []
        for name, position in positions.items():
            topic, _, number = name.rpartition("/")
            taken.append((TopicPartition(topic, int(number), int(position)), *self._polled.pop((name, position))))
        return taken

    def _poll(self, most: int) -> list[Message]:
        first = self._consumer.poll(WAIT_S)
        if first is None:
            return []
        found = [first, *(self._consumer.consume(most - 1, 0) if most > 1 else ())]
        messages = [_message(item) for item in found if item.error() is None]
        group = self._consumer.consumer_group_metadata()
        for name, position in {message.partition: message.next for message in messages}.items():
            self._polled[name, position] = (self._revocations, group)
        fatal = next((item.error() for item in found if item.error() is not None and item.error().fatal()), None)
        if fatal is not None:
            raise StreamReset(f"the consumer ended: {fatal.str()}")
        return messages

    def _revoked(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self._revocations += 1


class KafkaSink:
    """A topic. Kafka → Kafka is exactly once for readers with `isolation.level=read_committed`: answers and offsets are
    one transaction. From other sources at least once.
    """

    def __init__(self, settings: Mapping[str, Any], topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._producer: Any = None
        self._transactional = False

    async def open(self) -> Mapping[str, str]:
        """The producer; a transactional one after `joins`."""
        settings = dict(self._settings)
        if self._transactional:
            settings |= {"transactional.id": f"foretell-{uuid.uuid4().hex}", "transaction.timeout.ms": 10_000}
        self._producer = Producer(settings)
        if self._transactional:
            await asyncio.to_thread(_tried, self._producer.init_transactions, PATIENCE_S)
        return {}

    def joins(self, source: Source) -> bool:
        """Kafka with Kafka, on the same brokers."""
        same = isinstance(source, KafkaSource)
        self._transactional = same and source._settings["bootstrap.servers"] == self._settings["bootstrap.servers"]  # type: ignore[attr-defined]
        return self._transactional

    async def publish(self, records: Sequence[Record]) -> list[Refusal]:
        """Acknowledged by all replicas in sync."""
        return await asyncio.to_thread(self._publish, records)

    async def transact(self, records: Sequence[Record], source: Source, positions: Mapping[str, str]) -> list[Refusal]:
        """Answers and offsets; raises `StreamReset`, with nothing visible, where either fails."""
        assert isinstance(source, KafkaSource)
        offsets, group = source.offsets(positions)
        return await asyncio.to_thread(self._transact, records, offsets, group)

    async def close(self) -> None:
        if self._producer is not None:
            await asyncio.to_thread(self._producer.flush, PATIENCE_S)

    def _transact(self, records: Sequence[Record], offsets: list[TopicPartition], group: Any) -> list[Refusal]:
        self._producer.begin_transaction()
        try:
            refused = self._publish(records)
            self._producer.send_offsets_to_transaction(offsets, group, PATIENCE_S)
            self._producer.commit_transaction(PATIENCE_S)
        except (KafkaException, StreamError) as error:
            _abort(self._producer)
            raise StreamReset(f"the transaction was given up: {error}") from None
        return refused

    def _publish(self, records: Sequence[Record]) -> list[Refusal]:
        refused: list[Refusal] = []
        failed: list[str] = []

        def delivered(record: Record, error: Any) -> None:
            if error is not None and error.code() in TOO_LARGE:
                refused.append(Refusal(record.message, f"the answer is too large for the sink: {error.str()}"))
            elif error is not None:
                failed.append(error.str())

        for record in records:
            self._produce(record, delivered)
        if self._producer.flush(PATIENCE_S):
            failed.append("no acknowledgement in time")
        if failed:
            raise StreamError(f'topic "{self._topic}": {failed[0]}')
        return refused

    def _produce(self, record: Record, delivered: Any) -> None:
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    record.value,
                    record.message.key or None,
                    on_delivery=lambda error, _, record=record: delivered(record, error),
                )
                return
            except BufferError:
                self._producer.poll(WAIT_S)
            except KafkaException as error:
                delivered(record, error.args[0])
                return


def make_source(url: EndUrl) -> KafkaSource:
    """`kafka://HOST:PORT,HOST:PORT/TOPIC,TOPIC?group=foretell&from=earliest`."""
    url.allow("group", "from")
    start = url.options.get("from", "earliest")
    if start not in ("earliest", "latest"):
        raise ConfigError(f'"{url.text}": from={start} is neither earliest nor latest')
    settings = {
        **_common(url),
        "group.id": url.options.get("group", "foretell"),
        "auto.offset.reset": start,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
    }
    return KafkaSource(settings, _topics(url))


def make_sink(url: EndUrl) -> KafkaSink:
    """`kafka://HOST:PORT/TOPIC`."""
    url.allow()
    topics = _topics(url)
    if len(topics) != 1:
        raise ConfigError(f'"{url.text}" names {len(topics)} topics; answers go to one')
    settings = {**_common(url), "enable.idempotence": True, "linger.ms": 0, "compression.type": "lz4"}
    return KafkaSink(settings, topics[0])


def _common(url: EndUrl) -> dict[str, Any]:
    if not url.host:
        raise ConfigError(f'"{url.text}" names no broker; write kafka://HOST:9092/TOPIC')
    given = {
        name[len(PREFIX) :].lower().replace("_", "."): value
        for name, value in os.environ.items()
        if name.startswith(PREFIX)
    }
    return {"log_level": 2, **given, "bootstrap.servers": url.host}


def _topics(url: EndUrl) -> list[str]:
    topics = [topic for topic in url.path.strip("/").split(",") if topic]
    if not topics:
        raise ConfigError(f'"{url.text}" names no topic; write kafka://{url.host}/TOPIC')
    return topics


def _message(item: Any) -> Message:
    kind, made = item.timestamp()
    time_ms = made if kind else int(time.time() * 1000)
    place = f"{item.topic()}/{item.partition()}"
    return Message(item.value() or b"", item.key() or b"", place, str(item.offset()), str(item.offset() + 1), time_ms)


def _tried(action: Any, *arguments: Any) -> None:
    try:
        action(*arguments)
    except KafkaException as error:
        raise StreamError(f"Kafka: {error.args[0].str()}") from None


def _abort(producer: Any) -> None:
    """Leave nothing open. A producer that was fenced cannot abort; its successor has done so."""
    try:
        producer.abort_transaction(PATIENCE_S)
    except KafkaException:
        pass
