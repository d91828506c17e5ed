"""Kafka by the real command against a real broker: exactly once, dead letters, faults of the broker, rebalances."""

import os
import signal

import psutil
import pytest

MAP = ("--map", "a,b=X")


def stream(world, source: str, sink: str, *more: object):
    return world.cli(
        "stream", "linear", "--from", source, "--to", sink, "--dead-letter", world.folder / "dead.jsonl", *MAP, *more
    )


def ended(process, timeout_s: float = 30.0) -> str:
    """Stop it in order; what it said."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, said
    return said


def rows(count: int) -> list[dict]:
    return [{"a": number, "b": 0, "k": number % 7} for number in range(count)]


def values(answers: list[dict]) -> list[float]:
    return [answer["outputs"]["y"] for answer in answers]


def test_kafka_to_kafka_every_message_is_answered_once_in_order(world, kafka):
    source, sink = kafka.topic("in"), kafka.topic("out")
    kafka.produce(source, rows(2000), key="k")
    process = stream(world, kafka.url(source, group="g"), kafka.url(sink))
    found = kafka.read(sink, 2000)
    said = ended(process)
    assert values(found) == [float(n) for n in range(2000)]
    assert [answer["key"] for answer in found[:3]] == ["0", "1", "2"]
    assert "2,000 answers" in said and "0 dead letters" in said


@pytest.mark.slow
def test_workers_share_a_topic_and_one_that_dies_is_replaced(world, kafka):
    """It is killed when all is committed: this broker never ends the transaction of a dead worker."""
    source, sink = kafka.topic("in", partitions=2), kafka.topic("out")
    process = stream(world, kafka.url(source, group=source), kafka.url(sink), "--workers", 2)
    kafka.produce(source, rows(1000), key="k")
    assert sorted(values(kafka.read(sink, 1000))) == [float(n) for n in range(1000)]
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    os.kill(workers[0].pid, signal.SIGKILL)
    kafka.produce(source, rows(1000), key="k")
    found = kafka.read(sink, 2000)
    assert sorted(values(found)) == sorted(2 * [float(n) for n in range(1000)])
    assert len({(answer["source"], answer["position"]) for answer in found}) == 2000
    assert len(psutil.Process(process.pid).children()) == 2, "another is in its place"
    said = ended(process)
    assert "2,000 answers" in said and "0 dead letters" in said
