"""Memory is bounded in bytes: a source gives what there is room for, and of what nobody takes the beginning."""

import asyncio
import json
import sys
from itertools import pairwise

import pytest

from foretell.streams.ends import open_source
from foretell.streams.files import CHUNK
from foretell.streams.json_format import JsonFormat
from foretell.streams.message import QUOTED, Message, Partition
from foretell.streams.mqtt import AHEAD_BYTES
from foretell.streams.pace import DEPTH, Pace
from foretell.streams.processor import Ends, Processor
from foretell.streams.progress import Progress
from foretell.streams.protocol import Resume, Room
from foretell.streams.rows import decode
from tests.streams.brokers import BROKERS, MqttBroker, NatsBroker, RedisBroker, opened, until
from tests.streams.memory_ends import Broker, Doubling, MemoryLetters, MemorySink

SIZE = 100_000
COUNT = 40
ROOM = Room(1000, 3 * SIZE)
LARGE = 300_000


def text(number: int, size: int = SIZE) -> bytes:
    return json.dumps({"x": number, "pad": "p" * (size - 30)}).encode()


async def polls(reader, room: Room, count: int) -> list[list[Message]]:
    """Until so many messages have come."""
    found: list[list[Message]] = []

    async def more() -> list[Message]:
        found.append(await reader.poll(room) or [])
        return [message for part in found for message in part]

    await until(more, count, every_s=0.0)
    return [part for part in found if part]


def bounded(found: list[list[Message]], count: int) -> None:
    assert [json.loads(message.value)["x"] for part in found for message in part] == list(range(count))
    held = [sum(len(message.value) for message in part) for part in found]
    assert max(held) < ROOM.nbytes + SIZE, "one message may go beyond"


@pytest.fixture(params=BROKERS, ids=lambda kind: kind.scheme)
def broker(request, tmp_path):
    broker = opened(request.param, tmp_path)
    yield broker
    broker.kill()


async def filled(broker, count: int = COUNT, size: int = SIZE):
    """A reader of a source that holds so many messages."""
    source, sink = broker.names()
    await broker.prepare(source, sink)
    await broker.put(source, [text(n, size) for n in range(count)])
    reader = open_source(broker.source(source))
    await reader.open(Resume())
    return reader


async def test_a_broker_gives_what_there_is_room_for(broker):
    reader = await filled(broker)
    bounded(await polls(reader, ROOM, COUNT), COUNT)
    await reader.close()


async def test_kafka_gives_what_there_is_room_for(kafka):
    source = kafka.topic("in")
    kafka.produce(source, [text(n) for n in range(COUNT)])
    reader = open_source(kafka.url(source, group=source))
    await reader.open(Resume())
    bounded(await polls(reader, ROOM, COUNT), COUNT)
    await reader.close()


async def test_files_of_a_folder_give_what_there_is_room_for(tmp_path):
    for part in range(4):
        lines = (text(n) + b"\n" for n in range(10 * part, 10 * part + 10))
        (tmp_path / f"part-{part}").write_bytes(b"".join(lines))
    reader = open_source(str(tmp_path))
    await reader.open(Resume())
    bounded(await polls(reader, ROOM, COUNT), COUNT)


async def piped(path, room: Room, count: int, monkeypatch) -> list[list[Message]]:
    with path.open() as stdin, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        reader = open_source("-")
        await reader.open(Resume())
        return await polls(reader, room, count)


async def test_standard_input_gives_what_there_is_room_for(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_bytes(b"".join(text(n) + b"\n" for n in range(COUNT)))
    bounded(await piped(path, ROOM, COUNT, monkeypatch), COUNT)


def cut(messages: list[Message], sizes: list[int]) -> None:
    """Those over the limit are quoted, say how large they were, and are dead letters."""
    assert [message.size for message in messages] == pytest.approx(sizes, abs=1)
    assert [len(message.value) for message in messages] == [min(QUOTED, s) if s > LARGE else s for s in sizes]
    refused = decode(messages, JsonFormat(), "", LARGE).refused
    assert [refusal.message.size > LARGE for refusal in refused] == [True] * sum(size > LARGE for size in sizes)
    assert "the limit is 300,000" in refused[0].reason


ODD = [1000, 2 * CHUNK + 17, LARGE, LARGE + 1, 3 * CHUNK, 50]


async def test_a_line_that_nobody_takes_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_bytes(b"".join(text(n, size).ljust(size) + b"\n" for n, size in enumerate(ODD)))
    (only,) = (await piped(path, Room(1, 10**9, LARGE), 1, monkeypatch))[:1]
    assert only[0].size == 1000
    found = await piped(path, Room(1000, 10**9, LARGE), len(ODD), monkeypatch)
    cut([message for part in found for message in part], ODD)
    reader = open_source(str(path))
    await reader.open(Resume())
    found = await polls(reader, Room(1000, 10**9, LARGE), len(ODD))
    messages = [message for part in found for message in part]
    long = [message for message in messages if message.size > CHUNK]
    assert [len(message.value) for message in long] == [QUOTED, QUOTED]
    assert [message.size for message in messages] == pytest.approx(ODD, abs=1)
    assert all(this.next == following.position for this, following in pairwise(messages))


async def test_a_line_without_an_end_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_bytes(b"[" + b"1," * CHUNK)
    reader = open_source(f"file://{path}")
    await reader.open(Resume())
    assert await reader.poll(Room(10)) == []
    (reading,) = reader._files.values()
    assert reading.looked == path.stat().st_size, "the next poll goes on from there"
    with path.open("ab") as file:
        file.write(b"1]\n[2]\n")
    (long,) = await reader.poll(Room(10))
    assert len(json.loads(long.value)) == CHUNK + 1
    assert [message.value for message in await reader.poll(Room(10))] == [b"[2]"]


async def test_what_standard_input_never_ends_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_bytes(b"x" * (20 * CHUNK))
    ((message,),) = await piped(path, Room(10, 10**9, LARGE), 1, monkeypatch)
    assert (len(message.value), message.size) == (QUOTED, 20 * CHUNK)


async def test_redis_gives_only_the_beginning_of_what_nobody_takes(tmp_path):
    broker = opened(RedisBroker, tmp_path)
    try:
        sizes = [1000, LARGE + 1, 500_000, 2000]
        async with broker.client() as redis:
            for n, size in enumerate(sizes):
                await redis.xadd("in", {"key": "k", "value": text(n, size).ljust(size)})
            await redis.xadd("in", {"key": "k", "a": b"1" * LARGE, "b": b"2" * LARGE})
        for first in (1, 1000):  # the same whether it waited for the entry or found it
            reader = open_source(broker.source("in", group=f"g{first}"))
            await reader.open(Resume())
            found = await polls(reader, Room(first, 10**9, LARGE), 5)
            messages = [message for part in found for message in part]
            cut(messages[:4], sizes)
            assert {message.key for message in messages} == {b"k"}
            assert messages[4].size > 2 * LARGE and len(messages[4].value) == QUOTED
            (sent,) = await reader.client.read({"in": "0-0"}, b"value", Room(1000, 10**9, LARGE), 1)
            assert max(len(part) for _, fields, _ in sent for part in fields) == QUOTED, "it stays where it is"
            await reader.close()
        reader = open_source(broker.source("in", group="late", **{"from": "latest"}))
        await reader.open(Resume())
        waiting = asyncio.create_task(polls(reader, Room(10, 10**9, LARGE), 1))
        await asyncio.sleep(0.05)
        async with broker.client() as redis:
            await redis.xadd("in", {"value": b"1" * 500_000})
        ((message,),) = await waiting
        assert (message.size, len(message.value)) == (500_000, QUOTED)
        await reader.close()
    finally:
        broker.kill()


async def test_redis_gives_what_there_is_room_for_also_where_small_ones_are_before_large_ones(tmp_path):
    broker = opened(RedisBroker, tmp_path)
    try:
        await broker.put("in", [text(n, 100 if n < 20 else SIZE) for n in range(COUNT)])
        reader = open_source(broker.source("in"))
        await reader.open(Resume())
        bounded(await polls(reader, ROOM, COUNT), COUNT)
        await reader.close()
    finally:
        broker.kill()


async def test_nats_sends_no_more_bytes_than_it_was_asked_for(tmp_path, monkeypatch):
    broker = opened(NatsBroker, tmp_path)
    monkeypatch.setattr("foretell.streams.nats_source.AHEAD_BYTES", 10)
    most = 2 * 2**20  # twice max_payload
    try:
        reader = await filled(broker, 120)
        await asyncio.sleep(0.5)
        assert reader._waiting <= most
        found = await polls(reader, ROOM, 120)
        bounded(found, 120)
        assert reader._waiting == 0
        await reader.close()
    finally:
        broker.kill()


async def test_mqtt_is_not_read_while_much_waits(tmp_path, monkeypatch):
    monkeypatch.setattr("foretell.streams.mqtt.AHEAD_BYTES", 3 * SIZE)
    broker = opened(MqttBroker, tmp_path)
    try:
        reader = await filled(broker)
        await asyncio.sleep(0.5)
        assert sum(len(item.payload) for item in reader._came) < 4 * SIZE
        bounded(await polls(reader, ROOM, COUNT), COUNT)
        await reader.close()
        await reader.open(Resume())
        await asyncio.sleep(0.2)
        await asyncio.wait_for(reader.close(), 5)  # also while what comes waits for room
    finally:
        broker.kill()
    assert AHEAD_BYTES < 2**27


class Endless:
    """A source of messages of `size` bytes."""

    def __init__(self, count: int, size: int) -> None:
        self.left, self.size, self.out, self.most = count, size, 0, 0
        self.partition = Partition("p")

    async def open(self, resume):
        pass

    async def poll(self, room: Room):
        found = []
        while self.left and len(found) < room.messages and len(found) * self.size < room.nbytes:
            position = str(self.left)
            found.append(Message(b"5".rjust(self.size), b"", self.partition, position, position, 0))
            self.left -= 1
        self.out += len(found) * self.size
        self.most = max(self.most, self.out)
        await asyncio.sleep(0)
        return found or None

    async def commit(self, messages):
        await asyncio.sleep(0.001)
        self.out -= sum(message.size for message in messages)

    def lag(self):
        return 0

    async def close(self):
        pass


@pytest.mark.parametrize(("buffer", "most"), [(10_000, 11_000), (100, 1000)], ids=["several", "one alone"])
async def test_a_processor_reads_nothing_while_its_buffer_is_used(buffer, most):
    source, broker, progress = Endless(300, 1000), Broker({}), Progress()
    ends = Ends(source, MemorySink(broker, False), MemoryLetters(broker, False))
    await Processor(ends, Doubling(), Pace(1000, buffer), progress).run()
    assert len(broker.out) == 300
    assert most // 2 < source.most <= most
    assert progress.counts().held == 0


def test_a_micro_batch_of_large_answers_is_small():
    pace = Pace(1000, 4_000_000)
    pace.observe(1, 1e-6)
    pace.weigh(10, 10 * 50_000)
    assert pace.most == 4_000_000 // DEPTH // 50_000
    for _ in range(30):
        pace.weigh(10, 10 * 10)
    pace.observe(10, 1e-6)
    assert pace.most == 80, "they may grow again"
