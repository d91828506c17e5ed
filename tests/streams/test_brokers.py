"""What every broker's ends promise, on the real servers: order, no loss, no repeats where none are promised."""

import asyncio
import contextlib
import json
import random
import subprocess
import sys

import pytest

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.ends import SCHEMES, open_sink, open_source
from foretell.streams.message import Message, Partition, Record
from foretell.streams.protocol import Resume, Room
from foretell.streams.redis import whole
from tests.repo.repository import ROOT
from tests.streams.brokers import BROKERS, MqttBroker, NatsBroker, RedisBroker, opened, until
from tests.streams.conftest import lines
from tests.streams.end_child import stream


@pytest.fixture(params=BROKERS, ids=lambda kind: kind.scheme)
def broker(request, tmp_path_factory):
    """One server of each kind for all tests that do not restart it."""
    kind = request.param
    if kind not in _RUNNING:
        _RUNNING[kind] = opened(kind, tmp_path_factory.mktemp(kind.scheme))
    return _RUNNING[kind]


_RUNNING: dict = {}


@pytest.fixture(scope="module", autouse=True)
def _ended():
    yield
    for running in _RUNNING.values():
        running.kill()
    _RUNNING.clear()


@pytest.fixture(params=BROKERS, ids=lambda kind: kind.scheme)
def own(request, tmp_path):
    """A server that a test may kill."""
    broker = opened(request.param, tmp_path)
    yield broker
    broker.kill()


leased = pytest.mark.parametrize("broker", [RedisBroker, NatsBroker], ids=["redis", "nats"], indirect=True)
"""MQTT needs no lease: a session has one client, and the broker sees to it."""


def test_the_tests_run_on_every_broker_that_is_served():
    assert {kind.scheme for kind in BROKERS} | {"kafka"} == set(SCHEMES) - {"file", "std", "null", "http", "https"}


@pytest.mark.parametrize("value", [b"1" + b"0" * 30, b"[" * 100_000 + b"]" * 100_000], ids=["huge", "nested"])
def test_a_field_of_a_redis_entry_that_no_json_can_hold_is_left_to_whoever_reads_it(value):
    assert whole({b"x": value, b"y": b"2"}) in (b'{"x":%s,"y":2}' % value, b'{"x":"%s","y":2}' % value)


@contextlib.asynccontextmanager
async def running(processor):
    """The stream beside a test; stopped in order at its end."""
    task = asyncio.create_task(processor.run())
    try:
        yield task
    finally:
        processor.stop()
        await asyncio.wait_for(task, 20)


def events(count: int, start: int = 0) -> list[dict]:
    return [{"x": n, "k": n % 7} for n in range(start, start + count)]


def values(answers: list[dict]) -> list[float]:
    return [answer["outputs"]["y"] for answer in answers]


def doubled(count: int) -> list[float]:
    return [2.0 * n for n in range(count)]


async def test_every_event_is_answered_in_order_and_poison_is_buried(broker, tmp_path):
    source, sink = broker.names()
    await broker.prepare(source, sink)
    async with running(stream(broker.source(source), broker.sink(sink), str(tmp_path / "dead"))):
        await broker.put(source, events(300))
        await broker.put(source, [b"poison", {"x": "no", "k": 1}, *events(200, 300)])
        found = await until(lambda: broker.read(sink), 500)
    assert values(found) == doubled(500)
    assert len(lines(tmp_path / "dead")) == 2
    positions = [tuple(map(int, answer["position"].split("-"))) for answer in found]
    assert positions == sorted(set(positions)), "positions are monotone"


async def test_a_restart_goes_on_where_the_last_one_ended(broker, tmp_path):
    source, sink = broker.names()
    await broker.prepare(source, sink)
    for start in (0, 50):
        async with running(stream(broker.source(source), broker.sink(sink), str(tmp_path / "dead"))):
            await broker.put(source, events(50, start))
            found = await until(lambda: broker.read(sink), start + 50)
    assert values(found) == doubled(100)


async def test_what_is_piped_in_by_a_second_process_is_answered_too(broker, tmp_path, monkeypatch):
    """Lines have no positions of their own: those of the second one are not those of the first."""
    _, sink = broker.names()
    await broker.prepare("unused", sink)
    for start in (0, 5):
        (tmp_path / "lines").write_text("".join(json.dumps(event) + "\n" for event in events(5, start)))
        with (tmp_path / "lines").open() as piped, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", piped)
            processor = stream("-", broker.sink(sink), str(tmp_path / "dead"))
            await processor.run()
        assert processor.guarantee == "at least once"
    assert values(await until(lambda: broker.read(sink), 10)) == doubled(10)


async def test_a_file_that_is_replaced_while_it_is_followed_is_answered_too(broker, tmp_path):
    """As logrotate's copytruncate does it. Its offsets are those of the file before, and also after a restart they are
    not taken for it.
    """
    _, sink = broker.names()
    await broker.prepare("unused", sink)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events(10)))
    for start, count in ((10, 5), (15, 2)):
        async with running(stream(f"file://{path}", broker.sink(sink), str(tmp_path / "dead"))):
            await until(lambda start=start: broker.read(sink), start)
            path.write_text("".join(json.dumps(event) + "\n" for event in events(count, start)))
            found = await until(lambda end=start + count: broker.read(sink), start + count)
    assert values(found) == doubled(17)
    assert {answer["source"] for answer in found} == {str(path), f"{path}/2", f"{path}/3"}


@leased
async def test_two_models_with_one_source_and_one_sink_do_not_drop_each_others_answers(broker, tmp_path):
    source, sink = broker.names()
    await broker.prepare(source, sink)
    await broker.put(source, events(10))
    for count in (1, 2, 2):
        for model in ("a", "b")[:count]:
            to = open_sink(broker.sink(sink), model)
            to.joins = lambda source: False
            processor = stream(broker.source(source, group=f"{model}{count}"), to, str(tmp_path / "dead"))
            async with running(processor):
                await until(lambda count=count: broker.read(sink), 10 * count)
                await asyncio.sleep(0.2)
    assert sorted(values(await broker.read(sink))) == sorted(2 * doubled(10)), "and each remembers its own"


class Crash(Exception):
    pass


async def test_what_was_answered_and_not_committed_comes_again_and_is_dropped_where_that_is_promised(broker, tmp_path):
    """The answers go to a sink that cannot join the source's commit; the commit never comes."""
    source, sink = broker.names()
    await broker.prepare(source, sink)
    await broker.put(source, events(5))
    reader, writer = open_source(broker.source(source)), open_sink(broker.sink(sink))
    writer.joins = lambda source: False

    async def crash(messages):
        raise Crash

    reader.commit = crash
    with pytest.raises(Crash):
        await stream(reader, writer, str(tmp_path / "dead")).run()
    assert values(await broker.read(sink)) == doubled(5)
    again = open_sink(broker.sink(sink))
    again.joins = lambda source: False
    async with running(stream(broker.source(source), again, str(tmp_path / "dead"))):
        await broker.put(source, events(5, 5))
        found = await until(lambda: broker.read(sink), 10 if broker.once else 15)
    assert values(found) == (doubled(10) if broker.once else doubled(5) + doubled(10))


@pytest.mark.slow
async def test_kills_lose_nothing(broker, tmp_path):
    source, sink = broker.names()
    await broker.prepare(source, sink)
    await broker.put(source, events(2000))
    command = [sys.executable, "-m", "tests.streams.end_child", broker.source(source), broker.sink(sink)]
    chance, seen = random.Random(5), 0
    for _ in range(2):
        child = subprocess.Popen([*command, str(tmp_path / "dead")], cwd=ROOT)
        seen = len(await until(lambda seen=seen: broker.read(sink), seen + 1))
        await asyncio.sleep(chance.uniform(0, 0.05))
        child.kill()
        child.wait()
        seen = len(await broker.read(sink))
        assert seen < 2000, "it has to be killed in mid-stream"
    async with running(stream(broker.source(source), broker.sink(sink), str(tmp_path / "dead"))):
        found = await until(lambda: all_of(broker, sink, 2000), 2000, every_s=0.2)
    if broker.once:
        assert values(found) == doubled(2000)
    else:
        assert sorted(set(values(found))) == doubled(2000)


async def all_of(broker, sink: str, count: int) -> list[dict]:
    """The answers once all events have one; a repeated one does not count."""
    found = await broker.read(sink)
    return found if len({answer["outputs"]["y"] for answer in found}) >= count else []


async def test_a_broker_that_is_away_at_the_start_and_in_the_middle_is_waited_for(own, tmp_path):
    source, sink = own.names()
    await own.prepare(source, sink)
    own.kill()
    processor = stream(own.source(source), own.sink(sink), str(tmp_path / "dead"), 16, 0.002)
    async with running(processor):
        await asyncio.sleep(0.2)
        own.start()
        await own.put(source, events(400))
        await until(lambda: own.read(sink), 20)
        own.kill()
        await asyncio.sleep(0.2)
        own.start()
        await own.put(source, events(100, 400))
        found = await until(lambda: all_of(own, sink, 500), 500)
    if own.once:
        assert values(found) == doubled(500)
    else:
        assert sorted(set(values(found))) == doubled(500)
    assert processor._progress.counts().faults > 0


async def test_nobody_there_is_an_error_that_is_retried(broker):
    nobody = open_sink(f"{broker.scheme}://127.0.0.1:1/x")
    with pytest.raises(StreamError):
        await nobody.open()
    await nobody.close()


@leased
async def test_two_readers_of_a_group_do_not_read_at_once(broker, tmp_path):
    source, sink = broker.names()
    await broker.prepare(source, sink)
    await broker.put(source, events(10))
    first, second = open_source(broker.source(source)), open_source(broker.source(source))
    await first.open(Resume())
    with pytest.raises(StreamError, match="standing by"):
        await second.open(Resume())
    polled = await first.poll(Room(5))
    await first.commit(polled)
    await first.close()
    await second.open(Resume())
    assert [message.value for message in await second.poll(Room(10))] == [
        b'{"x": %d, "k": %d}' % (n, n % 7) for n in range(5, 10)
    ]
    await second.close()


@leased
async def test_a_reader_that_was_believed_dead_commits_nothing(broker, tmp_path):
    source, sink = broker.names()
    await broker.prepare(source, sink)
    await broker.put(source, events(10))
    frozen, heir = open_source(broker.source(source)), open_source(broker.source(source))
    await frozen.open(Resume())
    polled = await frozen.poll(Room(5))
    await frozen._beat.close()
    await asyncio.sleep(0.7)
    await until(lambda: taken(heir), 1, 5)
    with pytest.raises(StreamError):
        await frozen.commit(polled)
    assert len(await heir.poll(Room(10))) == 10
    for reader in (frozen, heir):
        await reader.close()


async def taken(source) -> list:
    try:
        await source.open(Resume())
    except StreamError:
        return []
    return [source]


async def test_an_answer_over_the_size_limit_is_refused_and_the_others_are_safe(broker):
    source, sink = broker.names()
    await broker.prepare(source, sink)
    partition = Partition("p")

    def record(number: int, size: int) -> Record:
        value = b'{"n":%d,"pad":"%b"}' % (number, b"x" * size)
        return Record(value, Message(b"", b"", partition, str(number), str(number + 1), 0))

    writer = open_sink(broker.sink(sink))
    await writer.open()
    (refusal,) = await writer.publish([record(0, 10), record(1, 1_200_000), record(2, 10)])
    assert refusal.message.position == "1" and "bytes" in refusal.reason
    assert [answer["n"] for answer in await until(lambda: broker.read(sink), 2)] == [0, 2]
    held = (await writer.open()).get("p", "0")
    assert int(held) <= 1, "the refused one is no dead letter yet, so a restart has to come back to it"
    await writer.close()


@leased
async def test_a_dead_letter_of_an_earlier_message_comes_later_and_is_not_dropped(broker):
    """What the sink refuses is buried after what was no row."""
    _, sink = broker.names()
    await broker.prepare(sink)
    writer = open_sink(broker.sink(sink), "m", letters=True)
    await writer.open()
    for number in (7, 3):
        assert await writer.publish([record(number)]) == []
    await writer.close()
    assert [letter["n"] for letter in await until(lambda: broker.read(sink), 2)] == [7, 3]


async def test_an_answer_over_the_limit_leaves_its_transaction_and_is_buried(tmp_path):
    broker = opened(RedisBroker, tmp_path)
    try:
        async with broker.client() as redis:
            for number, key in enumerate(["a", "k" * 1_048_500, "c"]):
                await redis.xadd("in", {"key": key, "value": json.dumps({"x": number})})
        processor = stream(broker.source("in"), broker.sink("out"), str(tmp_path / "dead"))
        assert processor.guarantee == "exactly once"
        async with running(processor):
            found = await until(lambda: broker.read("out"), 2)
            await until(lambda: at_once(lines(tmp_path / "dead")), 1)
        assert values(found) == [0.0, 4.0]
        (letter,) = lines(tmp_path / "dead")
        assert "bytes" in letter["reason"]
    finally:
        broker.kill()


async def at_once(value):
    return value


@pytest.mark.parametrize("broker", [RedisBroker], ids=["redis"], indirect=True)
async def test_entries_of_plain_fields_are_objects(broker, tmp_path):
    source, sink = broker.names()
    async with broker.client() as redis:
        await redis.xadd(source, {"x": "1.5", "name": "pump"})
    async with running(stream(broker.source(source), broker.sink(sink), str(tmp_path / "dead"))):
        assert values(await until(lambda: broker.read(sink), 1)) == [3.0]


@pytest.mark.parametrize("broker", [NatsBroker], ids=["nats"], indirect=True)
async def test_a_reader_that_was_quiet_for_long_is_not_throttled(broker, monkeypatch):
    """What it had asked for and the server has forgotten is not waited for."""
    source, _ = broker.names()
    await broker.prepare(source)
    reader = open_source(broker.source(source))
    with monkeypatch.context() as patch:
        patch.setattr("foretell.streams.nats_source.EXPIRES_S", 0.05)
        await reader.open(Resume())
        for _ in range(10):
            assert await reader.poll(Room(10)) == []
    reader._asked_at = 0.0  # it asks once more, and for long
    await reader.poll(Room(10))
    await broker.put(source, events(4000))
    assert len(await polled(reader, 4000)) == 4000
    await reader.close()


def record(number: int, pad: int = 0) -> Record:
    value = json.dumps({"n": number, "pad": "x" * pad}).encode()
    return Record(value, Message(b"", b"", PARTITION, str(number), str(number + 1), 0))


PARTITION = Partition("p")
nats_only = pytest.mark.parametrize("broker", [NatsBroker], ids=["nats"], indirect=True)


@nats_only
async def test_what_follows_a_refused_answer_is_not_stored_before_it(broker):
    _, sink = broker.names()
    client, js = await broker.client()
    await js.add_stream(name=sink, subjects=[sink], max_bytes=4000, discard="new")
    writer, records = open_sink(broker.sink(sink)), [record(0), record(1, 5000), record(2)]
    await writer.open()
    with pytest.raises(StreamError, match="maximum bytes"):
        await writer.publish(records)
    assert [answer["n"] for answer in await broker.read(sink)] == [0]
    await js.update_stream(name=sink, subjects=[sink], max_bytes=100_000, discard="new")
    assert await writer.publish(records) == []
    assert [answer["n"] for answer in await broker.read(sink)] == [0, 1, 2]
    await writer.close()
    await client.close()


@nats_only
async def test_what_was_stored_and_not_acknowledged_is_not_stored_again_however_late(broker):
    _, sink = broker.names()
    client, js = await broker.client()
    await js.add_stream(name=sink, subjects=[sink], duplicate_window=0.1)
    writer, records = open_sink(broker.sink(sink)), [record(n) for n in range(5)]
    await writer.open()
    stored = writer._client.stored

    async def lost(sent):
        await stored(sent)
        raise StreamError("no acknowledgement")

    writer._client.stored = lost
    with pytest.raises(StreamError):
        await writer.publish(records[:3])
    writer._client.stored = stored
    await asyncio.sleep(0.5)
    assert await writer.publish(records) == []
    assert [answer["n"] for answer in await broker.read(sink)] == [0, 1, 2, 3, 4]
    await writer.close()
    await client.close()


@nats_only
async def test_several_publish_into_one_stream_and_each_keeps_its_order(broker):
    _, sink = broker.names()
    await broker.prepare(sink)
    writers = [open_sink(broker.sink(f"{sink}.{n}")) for n in range(3)]
    for writer in writers:
        await writer.open()
    await asyncio.gather(*(writer.publish([record(n) for n in range(200)]) for writer in writers))
    client, js = await broker.client()
    for n in range(3):
        inbox = await js.subscribe(f"{sink}.{n}", ordered_consumer=True)
        assert [json.loads((await inbox.next_msg(5)).data)["n"] for _ in range(200)] == list(range(200))
    assert (await js.stream_info(sink)).state.messages == 600
    await client.close()
    for writer in writers:
        await writer.close()


@pytest.fixture
def mqtt(tmp_path):
    broker = opened(MqttBroker, tmp_path)
    yield broker
    broker.kill()


async def polled(reader, count: int) -> list[Message]:
    """So many messages, or what has come in the end."""
    found: list[Message] = []

    async def more() -> list[Message]:
        found.extend(await reader.poll(Room(count)))
        return found

    return await until(more, count)


async def test_a_shared_subscription_divides_what_comes(mqtt):
    readers = [open_source(mqtt.source("t", share="g", client=f"c{n}")) for n in range(2)]
    for reader in readers:
        await reader.open(Resume())
    await mqtt.put("t", events(40))
    found = await asyncio.gather(*(polled(reader, 20) for reader in readers))
    for reader, messages in zip(readers, found, strict=True):
        await reader.commit(messages)
    assert all(found) and sum(map(len, found)) == 40
    for reader in readers:
        await reader.close()


async def test_from_mqtt_nothing_is_better_than_at_least_once_for_it_has_no_positions(mqtt, tmp_path):
    out = tmp_path / "out.jsonl"
    await mqtt.prepare("t", "unused")
    await mqtt.put("t", events(5))
    for _ in range(2):
        processor = stream(mqtt.source("t"), str(out), str(tmp_path / "dead"))
        assert processor.guarantee == "at least once"
        async with running(processor):
            await until(lambda: at_once(lines(out)), 5)
    assert values(lines(out)) == doubled(5)


async def test_a_lost_acknowledgement_brings_the_message_again_with_a_later_position(mqtt):
    reader = open_source(mqtt.source("t"))
    await reader.open(Resume())
    await mqtt.put("t", events(2))
    first = await polled(reader, 2)
    await reader.commit(first[:1])
    await reader.close()
    await reader.open(Resume())
    (again,) = await polled(reader, 1)
    assert again.value == first[1].value and int(again.position) > int(first[1].position)
    ahead = str(int(again.position) + 10**9)
    await reader.open(Resume({"t": ahead}))
    (again,) = await polled(reader, 1)
    assert int(again.position) > int(ahead), "also where a clock was set back"
    await reader.close()


async def test_credentials_that_are_refused_end_the_stream_with_a_remedy(tmp_path):
    class Closed(MqttBroker):
        def command(self, program):
            command = super().command(program)
            path = self.folder / "mosquitto.conf"
            path.write_text(path.read_text().replace("allow_anonymous true", "allow_anonymous false"))
            return command

    broker = opened(Closed, tmp_path)
    with pytest.raises(ConfigError, match="FORETELL_MQTT_PASSWORD"):
        await open_sink(broker.sink("t")).open()
    broker.kill()


WRONG = [
    "redis://h/", "redis:///s", "redis://h/s?grup=g", "redis://h/s?lease=no", "redis://h/s?from=7", "redis://h:x/s",
    "nats://h/", "nats:///s", "nats://h/a.b", "nats://h/s?from=7",
    "mqtt://h/", "mqtt:///t", "mqtt://h/t?share=g", "mqtt://h/t?share=g/h&client=c", "mqtt://h/a/#", "mqtt://h/t?x=1",
]  # fmt: skip


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_source_says_what_is_wrong(url):
    with pytest.raises(ConfigError, match="://"):
        open_source(url)


@pytest.mark.parametrize("url", ["redis://h/a,b", "redis://h/s?maxlen=x", "nats://h/a.>", "nats://h/", "mqtt://h/a/+"])
def test_a_wrong_sink_says_what_is_wrong(url):
    with pytest.raises(ConfigError, match="://"):
        open_sink(url)
