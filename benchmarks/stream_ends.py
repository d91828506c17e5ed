"""What the ends of streams carry: `python -m benchmarks.stream_ends [--quick] [--only redis,nats,mqtt,file,webhook]`.

Throughput of each pair: events that wait in the source, through the real processor and one replica of the digits model,
counted as they are committed; beside each, its share of what onnxruntime alone does in process with the same model,
measured just before it. Latency: the real command under light load, from before an event is sent until its answer
has come to a reader of the sink, events coming one at a time; beside it the floor, an echo over the same clients. The
servers are Debian's, on the same cores; the section goes to RESULTS.md.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import nats
from aiohttp import web

from benchmarks import models
from benchmarks.ceiling import Ceiling, search
from benchmarks.report import insert
from benchmarks.run import processor
from foretell.app.config import Config, ModelSettings
from foretell.app.streams import Reads, Route, StreamService, StreamSpec
from foretell.importers import import_model
from foretell.store.store import Store
from foretell.streams.ends import open_source
from foretell.streams.protocol import Resume
from tests.streams.brokers import BROKERS, Broker, NatsBroker, RedisBroker
from tests.streams.conftest import free_port, wait_for

BEGIN, END = "<!-- stream ends: begin -->", "<!-- stream ends: end -->"
Start = Callable[["World", Broker, str, str], list[str]]
"""The command that answers events from a source to a sink."""

COUNT = 20_000
PER_S = 100
KEYS = 64
BATCHES = (32, 256, 1024)
"""Rows of a batch of the ceiling."""


class World:
    """A folder with a store that holds the digits model, events of it, and the brokers."""

    def __init__(self, folder: Path, only: list[str]) -> None:
        self.folder = folder
        self.store = Store.open(folder / "home")
        digits = models.digits()
        import_model(digits.path, folder / "made", trust_code=False)
        self.store.add("digits", folder / "made")
        self.rows = [
            {"x": digits.rows[n % len(digits.rows)]["x"][0].tolist(), "k": str(n % KEYS), "n": n} for n in range(COUNT)
        ]
        self.brokers = {}
        for kind in BROKERS:
            if kind.scheme in only and shutil.which(kind.program):
                (folder / kind.scheme).mkdir()
                self.brokers[kind.scheme] = kind(folder / kind.scheme)
                self.brokers[kind.scheme].start()

    def spec(self, source: str, sink: str) -> StreamSpec:
        return StreamSpec("digits", Route(source, sink, str(self.folder / "dead.jsonl")), Reads(key="k"))

    def close(self) -> None:
        for broker in self.brokers.values():
            broker.kill()
        self.store.close()


async def throughput(world: World, source: str, sink: str, count: int) -> float:
    """Events a second from the first commit that is seen to the last."""
    config = Config(models={"digits": ModelSettings(replicas={"count": 1, "threads": 1})})
    service = StreamService(config, world.store, world.spec(source, sink))
    running = asyncio.create_task(service.run())
    first, begin, seen = 0, 0.0, 0
    while seen < count:
        await asyncio.sleep(0.002)
        seen = service.progress.answered
        if seen and not first:
            first, begin = seen, time.perf_counter()
        if running.done():
            running.result()
            seen = service.progress.answered
            break
    spent = time.perf_counter() - begin
    service.stop()
    await running
    assert service.progress.counts().dead == 0
    return (seen - first) / spent


async def filled(world: World, scheme: str, count: int) -> str:
    """A source of this kind that holds so many events."""
    if scheme == "file":
        path = world.folder / f"in-{time.monotonic_ns()}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in world.rows[:count]))
        return f"file://{path}?follow=no"
    broker = world.brokers[scheme]
    name, other = broker.names()
    if scheme == "mqtt":
        reader = open_source(broker.source(name))
        await reader.open(Resume())
        await reader.close()
    else:
        await broker.prepare(name, other)
    await broker.put(name, world.rows[:count])
    return broker.source(name)


async def emptied(world: World, scheme: str) -> str:
    """A sink of this kind."""
    if scheme == "file":
        return str(world.folder / f"out-{time.monotonic_ns()}.jsonl")
    name, other = world.brokers[scheme].names()
    if scheme == "nats":
        await world.brokers[scheme].prepare(name, other)
    return world.brokers[scheme].sink(other)


# Latency


async def arrivals(broker: Broker, name: str) -> AsyncIterator[bytes]:
    """Answers as they come to a reader of the sink."""
    if isinstance(broker, RedisBroker):
        async with broker.client() as redis:
            at = b"0-0"
            while True:
                for _, entries in await redis.xread({name: at}, block=1000, count=100):
                    for at, fields in entries:  # noqa: B007
                        yield fields[b"value"]
    client = await nats.connect(f"nats://127.0.0.1:{broker.port}")
    try:
        async for message in (await client.subscribe(name)).messages:
            yield message.data
    finally:
        await client.close()


async def sender(broker: Broker, name: str) -> Callable[[bytes], Awaitable[object]]:
    """Sends one event over a connection that is there."""
    if isinstance(broker, RedisBroker):
        redis = broker.client()
        return lambda value: redis.xadd(name, {"key": b"", "value": value})
    client = await nats.connect(f"nats://127.0.0.1:{broker.port}")
    js = client.jetstream()
    return lambda value: js.publish(f"{name}.k", value)


def scoring(world: World, broker: Broker, source: str, sink: str) -> list[str]:
    """foretell, as a user runs it."""
    route = ["--from", broker.source(source), "--to", broker.sink(sink), "--dead-letter", str(world.folder / "dead")]
    return [sys.executable, "-m", "foretell", "stream", "digits", *route, "--key", "n"]


def echoing(world: World, broker: Broker, source: str, sink: str) -> list[str]:
    """The floor: a loop over the same client that sends each event's number back, with no model and no guarantee."""
    return [sys.executable, "-m", "benchmarks.stream_echo", broker.scheme, str(broker.port), source, sink]


async def latencies(world: World, broker: Broker, command: Start, seconds: float) -> list[float]:
    """Milliseconds from sending to the answer, one event alone at a time, the first second left out."""
    source, sink = broker.names()
    await broker.prepare(source, sink)
    environment = {**os.environ, "FORETELL_HOME": str(world.folder / "home")}
    process = subprocess.Popen(
        command(world, broker, source, sink), env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    sent: dict[int, float] = {}
    took: dict[int, float] = {}

    async def listen() -> None:
        async for value in arrivals(broker, sink):
            number = int(json.loads(value)["key"])
            took[number] = time.perf_counter() - sent[number]

    async def ask(number: int) -> None:
        sent[number] = time.perf_counter()
        await send(json.dumps({**world.rows[number % COUNT], "n": number}).encode())
        await asyncio.sleep(1 / PER_S)

    listening = asyncio.create_task(listen())
    send = await sender(broker, source)
    try:
        await ask(0)
        until = time.monotonic() + 60
        while not took and time.monotonic() < until:
            await asyncio.sleep(0.01)
        for number in range(1, int((seconds + 1) * PER_S)):
            await ask(number)
        await asyncio.sleep(0.5)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        listening.cancel()
    assert len(took) == len(sent), "every event has an answer"
    return [1e3 * took[number] for number in sorted(took) if number > PER_S]


# The receiver of webhooks


def receive(port: int) -> None:
    """Takes every POST."""

    async def post(request: web.Request) -> web.Response:
        await request.read()
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", post)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


async def measure(world: World, only: list[str], quick: bool) -> list[str]:
    rounds = 1 if quick else 3
    sources = [scheme for scheme in ("file", "redis", "nats", "mqtt") if scheme == "file" or scheme in world.brokers]
    sinks = [*sources, *(["webhook"] if "webhook" in only else [])]
    ceiling = Ceiling(models.digits(), search(models.digits(), 0.3, BATCHES)[0])
    tops: list[float] = []
    lines = ["| from \\ to, events/s (of the ceiling) | " + " | ".join(sinks) + " |", "|---|" + "---:|" * len(sinks)]
    port = free_port()
    receiver = subprocess.Popen([sys.executable, "-m", "benchmarks.stream_ends", "--receiver", str(port)])
    wait_for(port)
    try:
        for source in sources:
            cells = []
            for sink in sinks:
                count = COUNT // (10 if quick or sink == "webhook" else 1)
                rates, shares = [], []
                for _ in range(rounds):
                    to = f"http://127.0.0.1:{port}/hook" if sink == "webhook" else await emptied(world, sink)
                    begin = await filled(world, source, count)
                    tops.append(ceiling.measure(0.3))
                    rates.append(await throughput(world, begin, to, count))
                    shares.append(rates[-1] / tops[-1])
                cells.append(f"{statistics.median(rates):,.0f} ({statistics.median(shares):.3f})")
                print(source, sink, cells[-1], file=sys.stderr, flush=True)
            lines.append(f"| {source} | " + " | ".join(cells) + " |")
    finally:
        receiver.kill()
        ceiling.close()
    lines += ["", f"onnxruntime alone: {statistics.median(tops):,.0f} rows/s, {ceiling.setup}."]
    return lines + await light_load(world, 3 if quick else 10, rounds)


async def light_load(world: World, seconds: float, rounds: int) -> list[str]:
    """Latency of foretell and of the floor, in turn."""
    runs = f"median of {rounds} runs of {seconds:g} s (min–max)"
    lines = ["", f"| latency, {PER_S} events/s, {runs} | p50 ms | p99 ms | goal p99 |", "|---|---:|---:|---|"]
    for kind in (RedisBroker, NatsBroker):
        broker = world.brokers.get(kind.scheme)
        if broker is None:
            continue
        found: dict[str, list[list[float]]] = {"foretell": [], "an echo without a model": []}
        for _ in range(rounds):
            for name, command in zip(found, (scoring, echoing), strict=True):
                found[name].append(statistics.quantiles(await latencies(world, broker, command, seconds), n=100))
        for name, cuts in found.items():
            p50, p99 = [each[49] for each in cuts], [each[98] for each in cuts]
            goal = f"< 20: {'reached' if statistics.median(p99) < 20 else '**missed**'}" if name == "foretell" else ""
            lines.append(f"| {kind.scheme} → {kind.scheme}, {name} | {_spread(p50)} | {_spread(p99)} | {goal} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of the events")
    parser.add_argument("--only", default="redis,nats,mqtt,webhook", help="of redis, nats, mqtt, webhook")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of RESULTS.md")
    parser.add_argument("--receiver", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receiver:
        receive(options.receiver)
        return
    only = options.only.split(",")
    began = datetime.now(UTC)
    lines = [
        "## Ends of streams",
        "",
        f"`{' '.join(['python -m benchmarks.stream_ends', *sys.argv[1:]])}` on {began:%Y-%m-%d %H:%M} UTC;"
        f" {processor()}, {os.cpu_count()} cores, servers and load on the same.",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), only)
        try:
            lines += asyncio.run(measure(world, only, options.quick))
        finally:
            world.close()
    section = "\n".join(lines)
    print(section)
    results = options.out / "RESULTS.md"
    document = results.read_text() if results.exists() else "# Results\n"
    results.write_text(insert(document, section, BEGIN, END))


if __name__ == "__main__":
    main()
