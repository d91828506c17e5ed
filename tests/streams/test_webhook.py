"""Answers posted to a real HTTP server: order, refusals, retries, a slow receiver; no answer is lost to any of them."""

import asyncio
import collections
import json
import time

import pytest
from aiohttp import web

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.ends import open_sink, open_source
from foretell.streams.message import Message, Partition, Record
from tests.streams.conftest import free_port, lines
from tests.streams.end_child import stream


class Receiver:
    """Takes POSTs as a receiver with idempotency keys does; `say` may answer otherwise."""

    def __init__(self):
        self.taken: dict[str, dict] = {}
        self.posts: collections.Counter = collections.Counter()
        self.together = self.most_together = 0
        self.say = lambda value: 200
        self.delay_s = 0.0
        self.headers: dict = {}
        self.more: dict[str, str] = {}
        self.came: list[float] = []
        self.port = free_port()

    async def post(self, request):
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        await asyncio.sleep(self.delay_s)
        self.together -= 1
        value, key = await request.json(), request.headers["Idempotency-Key"]
        self.posts[key] += 1
        self.came.append(time.monotonic())
        self.headers = dict(request.headers)
        status = self.say(value)
        if status == 200:
            self.taken.setdefault(key, value)
        return web.Response(status=status, text="no thanks" if status >= 300 else "", headers=self.more)

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/hook", self.post)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/hook?token=of-the-receiver"

    @property
    def values(self):
        return [answer["outputs"]["y"] for answer in self.taken.values()]


def source(folder, count):
    (folder / "in.jsonl").write_text("".join(json.dumps({"x": n}) + "\n" for n in range(count)))
    return f"file://{folder}/in.jsonl?follow=no"


def records(keys):
    partition = Partition("p")
    return [
        Record(b'{"outputs":{"y":%d}}' % n, Message(b"", key, partition, str(n), str(n + 1), 0))
        for n, key in enumerate(keys)
    ]


async def test_every_answer_is_posted_once_in_order_of_its_partition(tmp_path):
    async with Receiver() as receiver:
        await stream(source(tmp_path, 50), receiver.url, str(tmp_path / "dead")).run()
    assert receiver.values == [2.0 * n for n in range(50)]
    assert set(receiver.posts.values()) == {1}
    assert receiver.headers["Content-Type"] == "application/json"


async def test_answers_of_one_key_wait_for_one_another_and_those_of_others_do_not():
    async with Receiver() as receiver:
        receiver.delay_s = 0.01
        sink = open_sink(receiver.url)
        await sink.open()
        assert await sink.publish(records([b"a", b"b", b"c"] * 20)) == []
        await sink.close()
    assert receiver.most_together == 3
    for start in range(3):
        assert [value for value in receiver.values if value % 3 == start] == list(range(start, 60, 3))


async def test_what_the_receiver_refuses_for_good_is_buried_with_its_words(tmp_path):
    async with Receiver() as receiver:
        receiver.say = lambda value: 422 if value["outputs"]["y"] == 4.0 else 200
        await stream(source(tmp_path, 5), receiver.url, str(tmp_path / "dead")).run()
    assert receiver.values == [0.0, 2.0, 6.0, 8.0]
    (letter,) = lines(tmp_path / "dead")
    assert "answered 422: no thanks" in letter["reason"] and letter["value"] == '{"x": 2}'


@pytest.mark.parametrize("status", [500, 503, 429, 408, 401, 302])
async def test_what_passes_is_waited_out_and_nothing_is_posted_twice_that_was_taken(tmp_path, status):
    async with Receiver() as receiver:
        trouble = [status, status]
        receiver.say = lambda value: trouble.pop() if value["outputs"]["y"] == 4.0 and trouble else 200
        await stream(source(tmp_path, 5), receiver.url, str(tmp_path / "dead")).run()
    assert receiver.values == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert sorted(receiver.posts.values()) == [1, 1, 1, 1, 3]
    assert lines(tmp_path / "dead") == []


async def test_nothing_is_posted_before_retry_after_has_passed(tmp_path):
    async with Receiver() as receiver:
        trouble, receiver.more = [503], {"Retry-After": "1"}
        receiver.say = lambda value: trouble.pop() if trouble else 200
        await stream(source(tmp_path, 1), receiver.url, str(tmp_path / "dead")).run()
    first, second = receiver.came
    assert second - first >= 0.99, "the test's own retries come after 20 to 100 ms"
    assert receiver.values == [0.0]


async def test_a_receiver_that_does_not_answer_in_time_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr("foretell.streams.webhook.PATIENCE_S", 0.15)
    async with Receiver() as receiver:
        receiver.delay_s = 0.4
        running = asyncio.create_task(stream(source(tmp_path, 3), receiver.url, str(tmp_path / "dead")).run())
        await asyncio.sleep(0.3)
        assert not running.done()
        receiver.delay_s = 0.0
        await asyncio.wait_for(running, 20)
    assert receiver.values == [0.0, 2.0, 4.0]


async def test_a_receiver_that_is_away_at_the_start_is_waited_for(tmp_path):
    receiver = Receiver()
    running = asyncio.create_task(stream(source(tmp_path, 3), receiver.url, str(tmp_path / "dead")).run())
    await asyncio.sleep(0.1)
    assert not running.done()
    async with receiver:
        await asyncio.wait_for(running, 20)
    assert receiver.values == [0.0, 2.0, 4.0]


async def test_the_key_is_the_same_when_an_answer_comes_again(tmp_path):
    async with Receiver() as receiver:
        for group in ("one", "two"):
            await stream(source(tmp_path, 5) + f"&group={group}", receiver.url, str(tmp_path / "dead")).run()
    assert set(receiver.posts.values()) == {2}
    assert len(receiver.taken) == 5


async def test_lines_that_are_piped_in_by_another_process_have_other_keys(tmp_path, monkeypatch):
    async with Receiver() as receiver:
        for start in (0, 3):
            (tmp_path / "lines").write_text("".join(json.dumps({"x": n}) + "\n" for n in range(start, start + 3)))
            with (tmp_path / "lines").open() as piped, monkeypatch.context() as patch:
                patch.setattr("sys.stdin", piped)
                await stream("-", receiver.url, str(tmp_path / "dead")).run()
    assert receiver.values == [2.0 * n for n in range(6)]


async def test_the_secret_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("FORETELL_WEBHOOK_AUTHORIZATION", "Bearer hush")
    async with Receiver() as receiver:
        sink = open_sink(receiver.url)
        await sink.open()
        await sink.publish(records([b""]))
        await sink.close()
    assert receiver.headers["Authorization"] == "Bearer hush"


async def test_nobody_there_is_an_error_that_is_retried():
    sink = open_sink(f"http://127.0.0.1:{free_port()}/hook")
    await sink.open()
    with pytest.raises(StreamError, match="hook"):
        await sink.publish(records([b""]))
    await sink.close()


def test_nothing_can_be_read_from_it_and_a_url_without_a_host_is_refused():
    with pytest.raises(ConfigError, match="is a sink"):
        open_source("https://h/x")
    with pytest.raises(ConfigError, match="names no host"):
        open_sink("http:///x")
