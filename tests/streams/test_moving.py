"""State goes with its partition from worker to worker, by the change-log on Kafka."""

import signal

import pytest

from tests.streams.test_kill import Run, events, told

PART = 1500


@pytest.mark.slow
def test_workers_come_and_go_and_state_is_what_one_undisturbed_worker_had(tmp_path, kafka):
    source, sink, calm_sink = kafka.topic("in", 2), kafka.topic("out"), kafka.topic("calm")
    every = [event for event in events(3 * PART) if event["a"] != "poison"]

    def run(name: str, group: str, to: str) -> Run:
        url = kafka.url(source, group=f"{group}-{source}")
        return Run(url, kafka.url(to), tmp_path / f"{name}.dead", tmp_path / f"{name}.state")

    def produce(part: int) -> None:
        some = every[part * PART : (part + 1) * PART]
        for number in (0, 1):
            kafka.produce(source, some[number::2], key="k", partition=number)

    def answered(count: int) -> None:
        assert len(kafka.read(sink, count, settle_s=0)) == count

    produce(0)
    calm, first = run("calm", "calm", calm_sink), run("first", "workers", sink)
    answered(PART)
    second = run("second", "workers", sink)
    moved = second.until("restored").split()
    assert moved[1].startswith(source)
    assert int(moved[2]) == PART // 2, "nothing is read twice"
    produce(1)
    answered(2 * PART)
    first.kill()
    assert second.until("restored").split()[1] != moved[1]
    produce(2)
    answered(len(every))
    expected, found = kafka.read(calm_sink, len(every)), kafka.read(sink, len(every))
    for child in (calm, second):
        child.process.send_signal(signal.SIGTERM)
        child.finish()
    assert sorted(told(found)) == sorted(told(expected))
    assert len(found) == len(every)


@pytest.mark.slow
def test_a_worker_that_lost_its_file_goes_on_from_the_log(tmp_path, kafka):
    source, sink, calm_sink = kafka.topic("in"), kafka.topic("out"), kafka.topic("calm")
    every = [event for event in events(2 * PART) if event["a"] != "poison"]

    def run(name: str, to: str) -> Run:
        url = kafka.url(source, group=f"{to}-{source}")
        return Run(url, kafka.url(to), tmp_path / f"{name}.dead", tmp_path / f"{name}.state")

    kafka.produce(source, every[:PART], key="k")
    calm, first = run("calm", calm_sink), run("lost", sink)
    assert len(kafka.read(sink, PART)) == PART
    first.kill()
    second = run("new", sink)
    kafka.produce(source, every[PART:], key="k")
    restored = second.until("restored").split()
    assert restored[1:] == [f"{source}/0", str(PART)]
    found, expected = kafka.read(sink, len(every)), kafka.read(calm_sink, len(every))
    for child in (calm, second):
        child.process.send_signal(signal.SIGTERM)
        child.finish()
    assert told(found) == told(expected)
    assert len(found) == len(every)
