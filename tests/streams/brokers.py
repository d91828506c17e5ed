"""Real brokers on free ports, and one way to put events in and to read answers, so that the same tests run on all."""

import asyncio
import json
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import nats
import pytest
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from redis.asyncio import Redis

from foretell.streams.ends import open_source
from foretell.streams.protocol import Resume
from tests.streams.conftest import free_port, wait_for


class Broker:
    """A program with its data in a folder. Killed and started again it has what it had acknowledged."""

    program = ""
    scheme = ""
    once = True
    """Whether a pair of these ends answers each event once, also across kills."""
    options = "lease=0.5"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = self.command(shutil.which(self.program))
        with (self.folder / "broker.log").open("a") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        wait_for(self.port)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def names(self) -> tuple[str, str]:
        """A source and a sink that were not there."""
        mark = uuid.uuid4().hex[:8]
        return f"in-{mark}", f"out-{mark}"

    def source(self, name: str, **more: object) -> str:
        query = "&".join([*filter(None, [self.options]), *(f"{key}={value}" for key, value in more.items())])
        return f"{self.scheme}://127.0.0.1:{self.port}/{name}?{query}"

    def sink(self, name: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/{name}"

    def command(self, program: str) -> list[str]:
        raise NotImplementedError

    async def prepare(self, *names: str) -> None:
        """Make what an operator makes before a stream runs."""

    async def put(self, name: str, rows: list) -> None:
        """Events; bytes as they are."""
        raise NotImplementedError

    async def read(self, name: str) -> list[dict]:
        """Everything that is in a sink, in order."""
        raise NotImplementedError


class RedisBroker(Broker):
    program = "redis-server"
    scheme = "redis"

    def command(self, program):
        data = [
            "--dir",
            str(self.folder),
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--save",
            "",
            "--proto-max-bulk-len",
            "1mb",
        ]
        return [program, "--port", str(self.port), "--bind", "127.0.0.1", *data]

    def client(self):
        return Redis(port=self.port, protocol=2)

    async def put(self, name, rows):
        async with self.client() as redis:
            pipe = redis.pipeline(transaction=False)
            for row in rows:
                key = str(row["k"]) if isinstance(row, dict) and "k" in row else ""
                pipe.xadd(name, {"key": key, "value": encoded(row)})
            await pipe.execute()

    async def read(self, name):
        async with self.client() as redis:
            return [json.loads(fields[b"value"]) for _, fields in await redis.xrange(name)]


class NatsBroker(Broker):
    program = "nats-server"
    scheme = "nats"

    def command(self, program):
        path = self.folder / "nats.conf"
        path.write_text(
            f'port: {self.port}\nhost: "127.0.0.1"\nmax_payload: 1MB\njetstream {{ store_dir: "{self.folder}" }}\n'
        )
        return [program, "-c", str(path)]

    async def client(self):
        client = await nats.connect(f"nats://127.0.0.1:{self.port}", connect_timeout=5)
        return client, client.jetstream()

    async def prepare(self, *names):
        client, js = await self.client()
        for name in names:
            await js.add_stream(name=name, subjects=[name, f"{name}.>"])
        await client.close()

    async def put(self, name, rows):
        client, js = await self.client()
        for row in rows:
            key = str(row["k"]) if isinstance(row, dict) and "k" in row else "none"
            await js.publish_async(f"{name}.{key}", encoded(row))
        await js.publish_async_completed()
        await client.close()

    async def read(self, name):
        client, js = await self.client()
        count = (await js.stream_info(name)).state.messages
        inbox = await js.subscribe(name, ordered_consumer=True)
        found = [json.loads((await inbox.next_msg(5)).data) for _ in range(count)]
        await client.close()
        return found


class MqttBroker(Broker):
    program = "mosquitto"
    scheme = "mqtt"
    once = False
    options = ""

    def __init__(self, folder):
        super().__init__(folder)
        self._collected: dict[str, list[dict]] = {}
        self._clients = []

    def command(self, program):
        path = self.folder / "mosquitto.conf"
        path.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {self.folder}/\nmax_queued_messages 0\nmax_inflight_messages 1000\n"
            f"max_packet_size 1000000\nuser root\n"
        )
        return [program, "-c", str(path)]

    def kill(self):
        """Mosquitto writes what it holds when it is asked to end, not when it is killed."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    async def prepare(self, *names):
        """Sessions that keep what comes: the stream's, and one that collects the answers."""
        source, sink = names
        reader = open_source(self.source(source))
        await reader.open(Resume())
        await reader.close()
        found = self._collected.setdefault(sink, [])
        client = Client(CallbackAPIVersion.VERSION2, client_id=f"all-{sink}", protocol=MQTTv5)
        client.reconnect_delay_set(0.05, 0.1)
        expiry = Properties(PacketTypes.CONNECT)
        expiry.SessionExpiryInterval = 3600
        client.on_connect = lambda client, *_: client.subscribe(sink, qos=1)
        client.on_message = lambda _client, _data, message: found.append(json.loads(message.payload))
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()
        client.on_subscribe = lambda *_: loop.is_closed() or loop.call_soon_threadsafe(ready.set)
        client.connect("127.0.0.1", self.port, clean_start=False, properties=expiry)
        client.loop_start()
        await asyncio.wait_for(ready.wait(), 10)
        self._clients.append(client)

    async def put(self, name, rows):
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        client.max_inflight_messages_set(900)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        sent = [client.publish(name, encoded(row), qos=1) for row in rows]
        for each in sent:
            await asyncio.to_thread(each.wait_for_publish, 10)
        client.disconnect()
        client.loop_stop()

    async def read(self, name):
        return list(self._collected[name])


BROKERS = [RedisBroker, NatsBroker, MqttBroker]


def encoded(row) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row).encode()


def opened(kind: type[Broker], folder: Path) -> Broker:
    if shutil.which(kind.program) is None:
        pytest.skip(f"{kind.program} is not installed")
    broker = kind(folder)
    broker.start()
    return broker


async def until(read, count: int, timeout_s: float = 20.0, every_s: float = 0.05) -> list[dict]:
    """What is read once there are so many, or in the end."""
    end = time.monotonic() + timeout_s
    while True:
        found = await read()
        if len(found) >= count or time.monotonic() > end:
            return found
        await asyncio.sleep(every_s)
