"""What every broker's ends promise, on the real servers: order, no loss, no repeats where none are promised."""

import asyncio
import contextlib
import random
import subprocess
import sys

import pytest

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.ends import SCHEMES, open_sink, open_source
from foretell.streams.protocol import Resume
from tests.repo.repository import ROOT
from tests.streams.brokers import BROKERS, opened, until
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


def test_the_tests_run_on_every_broker_that_is_served():
    assert {kind.scheme for kind in BROKERS} | {"kafka"} == set(SCHEMES) - {"file", "std", "null", "http", "https"}


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
    await broker.put(source, events(3000))
    command = [sys.executable, "-m", "tests.streams.end_child", broker.source(source), broker.sink(sink)]
    chance, seen = random.Random(5), 0
    for _ in range(3):
        child = subprocess.Popen([*command, str(tmp_path / "dead")], cwd=ROOT)
        seen = len(await until(lambda seen=seen: broker.read(sink), seen + 1))
        await asyncio.sleep(chance.uniform(0, 0.05))
        child.kill()
        child.wait()
        seen = len(await broker.read(sink))
        assert seen < 3000, "it has to be killed in mid-stream"
    async with running(stream(broker.source(source), broker.sink(sink), str(tmp_path / "dead"))):
        found = await until(lambda: all_of(broker, sink, 3000), 3000)
    if broker.once:
        assert values(found) == doubled(3000)
    else:
        assert sorted(set(values(found))) == doubled(3000)


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


async def test_two_readers_of_a_group_do_not_read_at_once(broker, tmp_path):
    if broker.scheme == "mqtt":
        pytest.skip("a session of MQTT has one client; the broker sees to it")
    source, sink = broker.names()
    await broker.prepare(source, sink)
    await broker.put(source, events(10))
    first, second = open_source(broker.source(source)), open_source(broker.source(source))
    await first.open(Resume())
    with pytest.raises(StreamError, match="standing by"):
        await second.open(Resume())
    polled = await first.poll(5)
    await first.commit(polled)
    await first.close()
    await second.open(Resume())
    assert [message.value for message in await second.poll(10)] == [
        b'{"x": %d, "k": %d}' % (n, n % 7) for n in range(5, 10)
    ]
    await second.close()


async def test_a_reader_that_was_believed_dead_commits_nothing(broker, tmp_path):
    if broker.scheme == "mqtt":
        pytest.skip("a session of MQTT has one client; the broker sees to it")
    source, sink = broker.names()
    await broker.prepare(source, sink)
    await broker.put(source, events(10))
    frozen, heir = open_source(broker.source(source)), open_source(broker.source(source))
    await frozen.open(Resume())
    polled = await frozen.poll(5)
    await frozen._beat.close()
    await asyncio.sleep(0.7)
    await until(lambda: taken(heir), 1, 5)
    with pytest.raises(StreamError):
        await frozen.commit(polled)
    assert len(await heir.poll(10)) == 10
    for reader in (frozen, heir):
        await reader.close()


async def taken(source) -> list:
    try:
        await source.open(Resume())
    except StreamError:
        return []
    return [source]


@pytest.mark.parametrize(
    "url", ["redis://h/", "redis:///s", "redis://h/s?grup=g", "redis://h/s?lease=no", "redis://h/s?from=7"]
)
def test_a_wrong_url_says_what_is_wrong(url):
    with pytest.raises(ConfigError, match="redis://"):
        open_source(url)
