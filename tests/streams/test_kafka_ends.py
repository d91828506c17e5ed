"""Ends of Kafka beside a real broker, with a consumer that does at a chosen moment what a broker does at any."""

import asyncio
import json
import signal

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from foretell.core.errors import StreamError
from foretell.streams.ends import open_sink, open_source
from foretell.streams.kafka_log import KafkaLog
from foretell.streams.message import Message, Partition, Record
from foretell.streams.protocol import Resume, Room
from tests.streams.conftest import lines
from tests.streams.end_child import stream

ROWS = [{"x": n} for n in range(10)]


async def answered(processor, path, count: int) -> list[float]:
    """What is in a file of answers once there are so many, or the stream has ended, or in the end."""
    task = asyncio.create_task(processor.run())
    for _ in range(400):
        if len(lines(path)) >= count or task.done():
            break
        await asyncio.sleep(0.05)
    processor.stop()
    await asyncio.wait_for(task, 30)
    return [answer["outputs"]["y"] for answer in lines(path)]


async def test_a_broker_that_goes_away_during_an_assignment_is_waited_for(tmp_path, kafka, monkeypatch):
    source, out = kafka.topic("in"), tmp_path / "out.jsonl"
    kafka.produce(source, ROWS)
    out.write_text(json.dumps({"source": f"{source}/0", "next": "4", "outputs": {"y": -1.0}}) + "\n")
    faults = [KafkaError(KafkaError._TIMED_OUT)]

    class Slow(Consumer):
        def committed(self, *arguments):
            if faults:
                raise KafkaException(faults.pop())
            return super().committed(*arguments)

    monkeypatch.setattr("foretell.streams.kafka_source.Consumer", Slow)
    processor = stream(kafka.url(source, group=source), str(out), str(tmp_path / "dead"))
    assert await answered(processor, out, 7) == [-1.0, *(2.0 * n for n in range(4, 10))]
    assert faults == []


async def test_what_was_polled_of_a_partition_that_is_then_given_up_is_not_answered(kafka, monkeypatch):
    source = kafka.topic("in")
    kafka.produce(source, ROWS)
    given = []

    class Giving(Consumer):
        def subscribe(self, topics, on_revoke, **callbacks):
            self.revoked = on_revoke
            super().subscribe(topics, on_revoke=on_revoke, **callbacks)

        def consume(self, most, timeout):
            given.extend(self.assignment())
            self.revoked(self, given)
            self.incremental_unassign(given)
            return []

    monkeypatch.setattr("foretell.streams.kafka_source.Consumer", Giving)
    reader = open_source(kafka.url(source, group=source))
    await reader.open(Resume())
    found = []
    while not given:
        found += await reader.poll(Room(10))
    assert found == []
    await reader.close()


def test_a_change_log_grows_with_its_topic(kafka, monkeypatch):
    """This broker adds no partitions; it is made to make the topic anew."""

    class Growing(AdminClient):
        def create_partitions(self, wanted):
            (more,) = wanted
            self.delete_topics([more.topic])[more.topic].result(20)
            return self.create_topics([NewTopic(more.topic, more.new_total_count, 1)])

    monkeypatch.setattr("foretell.streams.kafka_log.AdminClient", Growing)
    source = kafka.topic("in", 3)
    log = KafkaLog({"bootstrap.servers": kafka.address, "group.id": "g"})
    name, _ = log.place(f"{source}/0")
    kafka.topic_named(name, 1)
    assert list(log.read(f"{source}/2")) == []
    assert list(log.read(f"{source}/0")) == []


def record(number: int) -> Record:
    message = Message(b"", b"", Partition("p"), str(number), str(number + 1), 0)
    return Record(b'{"n":%d}' % number, message)


async def test_a_publish_that_takes_long_is_waited_for_and_sends_nothing_twice(kafka, monkeypatch):
    monkeypatch.setattr("foretell.streams.kafka_sink.PATIENCE_S", 0.3)
    topic, records = kafka.topic("out"), [record(n) for n in range(1, 6)]
    writer = open_sink(kafka.url(topic))
    await writer.open()
    while True:  # until it knows the topic
        try:
            await writer.publish([record(0)])
            break
        except StreamError:
            pass
    kafka.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(0.1)  # until all its threads stand still
    try:
        for _ in range(3):
            with pytest.raises(StreamError, match="no acknowledgement"):
                await writer.publish(records)
    finally:
        kafka.process.send_signal(signal.SIGCONT)
    monkeypatch.undo()
    assert await writer.publish(records) == []
    found = await asyncio.to_thread(kafka.read, topic, 6)
    assert [answer["n"] for answer in found] == [0, 1, 2, 3, 4, 5]
    await writer.close()


async def test_what_was_acknowledged_is_not_sent_again_because_another_failed(kafka, monkeypatch):
    class Failing(Producer):
        def produce_batch(self, topic, items, **callbacks):
            for item in items:
                if item["value"] == record(1).value and not failed:
                    failed.append(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
                    item["_error"] = failed[0]
            super().produce_batch(topic, [item for item in items if "_error" not in item], **callbacks)

    failed: list[KafkaError] = []
    monkeypatch.setattr("foretell.streams.kafka_sink.Producer", Failing)
    topic, records = kafka.topic("out"), [record(n) for n in range(3)]
    writer = open_sink(kafka.url(topic))
    await writer.open()
    with pytest.raises(StreamError, match="authorization"):
        await writer.publish(records)
    assert await writer.publish(records) == []
    found = await asyncio.to_thread(kafka.read, topic, 3)
    assert sorted(answer["n"] for answer in found) == [0, 1, 2]
    await writer.close()
