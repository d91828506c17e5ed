"""Faults of Kafka itself: a broker that is not there yet, one that stands still, members that come and go all the time,
answers that it does not take. Nothing is lost and nothing is answered twice.
"""

import json
import signal
import time

import pytest

from tests.streams.conftest import Kafka, lines
from tests.streams.test_kill import Run, events, told

pytestmark = pytest.mark.slow


def good(count: int) -> list[dict]:
    return [event for event in events(count) if event["a"] != "poison"]


def ended(*children: Run) -> None:
    for child in children:
        child.process.send_signal(signal.SIGTERM)
    for child in children:
        child.finish()


def answered_once(kafka: Kafka, sink: str, rows: list[dict]) -> None:
    found = told(kafka.read(sink, len(rows)))
    assert len({(source, position) for source, position, *_ in found}) == len(rows), "nothing is lost"
    assert len(found) == len(rows), "nothing is answered twice"
    assert sorted(y for *_, y in found) == sorted(float(row["a"] + 10 * row["b"]) for row in rows)


def test_a_broker_that_stands_still_is_waited_for(tmp_path, kafka):
    source, sink = kafka.topic("in"), kafka.topic("out")
    rows = good(4000)
    kafka.produce(source, rows, key="k")
    patient = {"FORETELL_KAFKA_SESSION_TIMEOUT_MS": "10000"}
    child = Run(kafka.url(source, group=source), kafka.url(sink), tmp_path / "dead", **patient)
    assert child.until()
    kafka.process.send_signal(signal.SIGSTOP)
    time.sleep(2.0)
    kafka.process.send_signal(signal.SIGCONT)
    answered_once(kafka, sink, rows)
    ended(child)


def test_a_broker_that_comes_later_is_waited_for(tmp_path):
    late = Kafka(tmp_path)
    late.kill()
    child = Run(late.url("in", group="g"), late.url("out"), tmp_path / "dead")
    time.sleep(2.0)
    assert child.process.poll() is None, "it waits"
    late.start()
    try:
        for name in ("in", "out"):
            late.topic_named(name)
        rows = good(300)
        late.produce("in", rows, key="k")
        answered_once(late, "out", rows)
        ended(child)
    finally:
        late.kill()


def test_a_storm_of_rebalances_loses_and_repeats_nothing(tmp_path, kafka):
    source, sink = kafka.topic("in", 4), kafka.topic("out")
    rows = good(8000)
    for number in range(4):
        kafka.produce(source, rows[number::4], key="k", partition=number)

    def run(name: str) -> Run:
        return Run(kafka.url(source, group=source), kafka.url(sink), tmp_path / name)

    steady = run("steady")
    assert steady.until()
    for number in range(4):
        guest = run(f"guest{number}")
        assert guest.until("ready")
        time.sleep(0.7 * (number % 2) + 0.5)
        ended(guest)
    answered_once(kafka, sink, rows)
    ended(steady)


def test_an_answer_that_is_too_large_for_the_topic_is_buried_alone(tmp_path, kafka):
    """From a file: this broker shows readers what a transaction wrote that was then given up."""
    source, sink = tmp_path / "in.jsonl", kafka.topic("out")
    rows = good(60)
    rows[30] = {**rows[30], "k": "k" * 3000}
    state = tmp_path / "keys.state"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {"FORETELL_KAFKA_MESSAGE_MAX_BYTES": "2000"}
    Run(source, kafka.url(sink), tmp_path / "dead", state, **small).finish()
    found = kafka.read(sink, len(rows) - 1)
    assert [answer["key"] for answer in found] == [row["k"] for row in rows[:30] + rows[31:]]
    (letter,) = lines(tmp_path / "dead")
    assert letter["key"] == rows[30]["k"]
    assert "too large for the sink" in letter["reason"]
