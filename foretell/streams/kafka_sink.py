"""A topic of Kafka as a sink, in one transaction with the offsets of a source on the same brokers."""

import asyncio
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from foretell.core.errors import StreamError
from foretell.streams.kafka_log import KafkaLog
from foretell.streams.kafka_source import PATIENCE_S, WAIT_S, KafkaSource
from foretell.streams.message import Change, Message, Record, Refusal
from foretell.streams.protocol import Portion, Source, StreamReset

TRANSACTION_S = 10
"""When the broker gives up a transaction whose processor was killed; until then readers wait behind it."""
TRIES = 3
"""How often a transaction that was aborted is tried before the ends are opened anew."""
TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE)


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
        self._delivery: Delivery | None = None
        self._settled: dict[str, Refusal | None] = {}
        """What became of records of a call that failed."""

    async def open(self) -> Mapping[str, str]:
        """The producer; a transactional one after `joins`. Raises `StreamError` while no broker is there."""
        settings = dict(self._settings)
        if self._transactional:
            settings |= {
                "transactional.id": f"foretell-{uuid.uuid4().hex}",
                "transaction.timeout.ms": TRANSACTION_S * 1000,
            }
        else:
            settings["message.timeout.ms"] = 0  # an answer that is given up would come again behind those after it
        self._producer = Producer(settings)
        self._delivery, self._settled = None, {}
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
        outcomes = Delivery(self._producer, self._topic, records).outcomes()
        # One that is too large takes the others with it; they are tried again without it.
        refused = [_too_large(record, e) for record, e in outcomes if e is not None and e.code() in TOO_LARGE]
        if refused:
            self._producer.abort_transaction(PATIENCE_S)
            return refused
        faults = [*(error for _, error in outcomes if error is not None), *failed]
        if faults:
            raise StreamError(f"topic of the answers, or change-log of the state: {faults[0].str()}")
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
        """What a call that failed has handed over is waited for, and what was acknowledged then is not sent again."""
        if self._delivery is None:
            left = [record for record in records if record.idempotency_key not in self._settled]
            self._delivery = Delivery(self._producer, self._topic, left)
        outcomes = self._delivery.outcomes()
        self._delivery = None
        faults = []
        for record, error in outcomes:
            if error is None or error.code() in TOO_LARGE:
                self._settled[record.idempotency_key] = None if error is None else _too_large(record, error)
            else:
                faults.append(error)
        if faults:
            raise StreamError(f'topic "{self._topic}": {faults[0].str()}')
        settled, self._settled = self._settled, {}
        return [refusal for refusal in settled.values() if refusal is not None]


class Delivery:
    """Records that a producer was handed, until it has told what became of each."""

    def __init__(self, producer: Any, topic: str, records: Sequence[Record]) -> None:
        self._producer = producer
        self._topic = topic
        self._records = records
        self._failed: dict[bytes, KafkaError] = {}
        self._hand_over()

    def outcomes(self) -> list[tuple[Record, KafkaError | None]]:
        """Why they failed, None for those that are acknowledged. Raises `StreamError` if it takes too long to know; ask
        again then.
        """
        if self._producer.flush(PATIENCE_S):
            raise StreamError(f'topic "{self._topic}": no acknowledgement within {PATIENCE_S:.0f} s')
        return [(record, self._failed.get(record.value)) for record in self._records]

    def _hand_over(self) -> None:
        left: list[dict[str, Any]] = [{"value": r.value, "key": r.message.key or None} for r in self._records]
        while left:
            self._producer.produce_batch(self._topic, left, on_delivery=self._delivered)
            refused = [item for item in left if "_error" in item]
            left = [item for item in refused if item["_error"].code() == KafkaError._QUEUE_FULL]
            self._failed |= {item["value"]: item["_error"] for item in refused if item not in left}
            for item in left:
                del item["_error"]
            if left:
                self._producer.poll(WAIT_S)

    def _delivered(self, error: KafkaError | None, item: Any) -> None:
        if error is not None:
            self._failed[item.value()] = error


def _too_large(record: Record, error: KafkaError) -> Refusal:
    return Refusal(record.message, f"the answer is too large for the sink: {error.str()}")
