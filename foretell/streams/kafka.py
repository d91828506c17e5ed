"""Kafka, by confluent-kafka. Settings and secrets come from FORETELL_KAFKA_*: FORETELL_KAFKA_SASL_PASSWORD is
librdkafka's `sasl.password`.
"""

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.ends import EndUrl
from foretell.streams.kafka_log import KafkaLog
from foretell.streams.message import Change, Message, Partition, Record, Refusal, ends, later
from foretell.streams.protocol import Portion, Resume, Source, StreamReset, is_replayed

WAIT_S = 0.1
PATIENCE_S = 30.0
"""How long a broker may take before its silence is an error that is retried."""
REVOKE_S = 20.0
"""How long a partition that is asked back is kept to finish what was polled of it."""
TRANSACTION_S = 10
"""When the broker gives up a transaction whose processor was killed; until then readers wait behind it."""
TRIES = 3
"""How often a transaction that was aborted is tried before the ends are opened anew."""
PREFIX = "FORETELL_KAFKA_"
TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE)
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

    async def poll(self, most: int) -> list[Message] | None:
        """What librdkafka has fetched; it fetches ahead, up to its `queued.max.messages.kbytes`."""
        return await asyncio.to_thread(self._poll, most)

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

    def _poll(self, most: int) -> list[Message]:
        self._trouble = None
        first = self._consumer.poll(WAIT_S)
        if first is None:
            if self._trouble is not None:
                raise StreamError(f"Kafka: {self._trouble.str()}")
            return []
        # `consume` may give partitions up, also that of the first; so whose it is has to be known before.
        polled = [self._sorted(first)]
        polled += map(self._sorted, self._consumer.consume(most - 1, 0) if most > 1 else ())
        messages = [each for each in polled if isinstance(each, Message) and each.partition.held]
        fault = next((each for each in reversed(polled) if isinstance(each, KafkaError)), None)
        with self._settled:
            self._open += len(messages)
        if fault is not None and fault.fatal():
            raise StreamReset(f"the consumer ended: {fault.str()}")
        if fault is not None and not messages:
            raise StreamError(f"Kafka: {fault.str()}")
        return messages

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


class KafkaSink:
    """A topic. Kafka → Kafka is exactly once for readers with `isolation.level=read_committed`: answers and offsets are
    one transaction. From other sources at least once; each answer names its source and position, so a reader can tell.
    """

    remembers = False

    def __init__(self, settings: Mapping[str, Any], topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._producer: Any = None
        self._log: KafkaLog | None = None
        self._transactional = False

    async def open(self) -> Mapping[str, str]:
        """The producer; a transactional one after `joins`. Raises `StreamError` while no broker is there."""
        settings = dict(self._settings)
        if self._transactional:
            settings |= {
                "transactional.id": f"foretell-{uuid.uuid4().hex}",
                "transaction.timeout.ms": TRANSACTION_S * 1000,
            }
        self._producer = Producer(settings)
        if self._transactional:
            try:
                await asyncio.to_thread(self._producer.init_transactions, PATIENCE_S)
            except KafkaException as error:
                raise StreamError(f"Kafka: {error.args[0].str()}") from None
        return {}

    def joins(self, source: Source) -> bool:
        """Kafka with Kafka, on the same brokers."""
        self._transactional = (
            isinstance(source, KafkaSource)
            and source.settings["bootstrap.servers"] == self._settings["bootstrap.servers"]
        )
        if self._transactional and isinstance(source, KafkaSource):
            self._log = KafkaLog(source.settings)
        return self._transactional

    async def publish(self, records: Sequence[Record]) -> list[Refusal]:
        """Acknowledged by all replicas in sync."""
        return await asyncio.to_thread(self._publish, records)

    async def transact(
        self, records: Sequence[Record], source: Source, messages: Sequence[Message], changes: Sequence[Change] = ()
    ) -> list[Refusal]:
        assert isinstance(source, KafkaSource)
        return await asyncio.to_thread(self._transact, records, source, messages, changes)

    def changes(self, partition: str) -> Iterator[Portion]:
        assert self._log is not None, "only after `joins`"
        return self._log.read(partition)

    async def close(self) -> None:
        if self._producer is not None:
            await asyncio.to_thread(self._producer.flush, WAIT_S)
            self._producer = None

    def _transact(
        self, records: Sequence[Record], source: KafkaSource, messages: Sequence[Message], changes: Sequence[Change]
    ) -> list[Refusal]:
        reason = ""
        for _ in range(TRIES):
            with source.giving:
                offsets = source.offsets(messages)
                ours = [record for record in records if record.message.partition.held]
                try:
                    refused = self._try(ours, changes, offsets, source) if offsets else []
                except (KafkaException, StreamError) as error:
                    reason = error.args[0].str() if isinstance(error, KafkaException) else error.message
                    if not self._abort():
                        break
                    continue
            if not refused:
                source.settled(len(messages))
            return refused
        raise StreamReset(f"the transaction was given up: {reason}")

    def _try(
        self, records: Sequence[Record], changes: Sequence[Change], offsets: list[TopicPartition], source: KafkaSource
    ) -> list[Refusal]:
        """One transaction. It is aborted if the broker never takes one of the records."""
        self._producer.begin_transaction()
        failed = self._log.produce(self._producer, changes) if self._log is not None else []
        refused = self._publish(records)
        if refused:
            self._producer.abort_transaction(PATIENCE_S)
            return refused
        if failed:
            raise StreamError(f"the change-log of the state: {failed[0].str()}")
        self._producer.send_offsets_to_transaction(offsets, source.group(), PATIENCE_S)
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._producer.commit_transaction(PATIENCE_S)
                return []
            except KafkaException as error:  # a commit that may have happened is asked for again, not aborted
                if not error.args[0].retriable() or time.monotonic() > until:
                    raise

    def _abort(self) -> bool:
        """Leave nothing open; false where only a new producer helps. One that was fenced cannot abort, and need not."""
        try:
            self._producer.abort_transaction(PATIENCE_S)
        except KafkaException:
            return False
        return True

    def _publish(self, records: Sequence[Record]) -> list[Refusal]:
        """Returns what the topic never takes; the others are acknowledged."""
        failed: dict[bytes, KafkaError] = {}

        def delivered(error: KafkaError | None, item: Any) -> None:
            if error is not None:
                failed[item.value()] = error

        left: list[dict[str, Any]] = [{"value": r.value, "key": r.message.key or None} for r in records]
        while left:
            self._producer.produce_batch(self._topic, left, on_delivery=delivered)
            refused = [item for item in left if "_error" in item]
            left = [item for item in refused if item["_error"].code() == KafkaError._QUEUE_FULL]
            failed |= {item["value"]: item["_error"] for item in refused if item not in left}
            for item in left:
                del item["_error"]
            if left:
                self._producer.poll(WAIT_S)
        if self._producer.flush(PATIENCE_S):
            raise StreamError(f'topic "{self._topic}": no acknowledgement within {PATIENCE_S:.0f} s')
        if not failed:
            return []
        large = {value: error for value, error in failed.items() if error.code() in TOO_LARGE}
        others = [error for value, error in failed.items() if value not in large]
        # In a transaction one that is too large takes the others with it; they are tried again without it.
        if others and not (large and self._transactional):
            raise StreamError(f'topic "{self._topic}": {others[0].str()}')
        return [
            Refusal(record.message, f"the answer is too large for the sink: {large[record.value].str()}")
            for record in records
            if record.value in large
        ]


def make_source(url: EndUrl) -> KafkaSource:
    """`kafka://HOST:PORT,HOST:PORT/TOPIC,TOPIC?group=foretell&from=earliest`."""
    url.allow("group", "from")
    start = url.options.get("from", "earliest")
    if start not in ("earliest", "latest"):
        raise ConfigError(f'"{url.text}": from={start} is neither earliest nor latest')
    settings = {
        "partition.assignment.strategy": "cooperative-sticky",
        **_common(url),
        "group.id": url.options.get("group", "foretell"),
        "auto.offset.reset": start,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
    }
    return KafkaSource(settings, _topics(url))


def make_sink(url: EndUrl) -> KafkaSink:
    """`kafka://HOST:PORT/TOPIC`. Keys go to the partitions that Java's clients send them to."""
    url.allow()
    topics = _topics(url)
    if len(topics) != 1:
        raise ConfigError(f'"{url.text}" names {len(topics)} topics; answers go to one')
    settings = {
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        **_common(url),
        "enable.idempotence": True,
        "linger.ms": 0,
        "delivery.report.only.error": True,
    }
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
