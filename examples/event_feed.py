"""Events through `foretell stream`: by a pipe, or by topics of a Kafka broker. Shared by examples."""

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from typing import Any

COMMAND = [sys.executable, "-m", "foretell", "stream"]


def replay(events: Sequence[bytes], model: str, *flags: str) -> list[dict[str, Any]]:
    """Through standard input and output; the answers in their order."""
    command = [*COMMAND, model, "--from", "-", "--to", "-", *flags]
    done = subprocess.run(command, input=b"\n".join(events), stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def replay_on_kafka(broker: str, events: Sequence[bytes], model: str, *flags: str) -> list[dict[str, Any]]:
    """Through two topics of one partition each, made for this; the answers in their order."""
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    source, sink = (f"{name}-{uuid.uuid4().hex[:8]}" for name in ("events", "answers"))
    admin = AdminClient({"bootstrap.servers": broker})
    for made in admin.create_topics([NewTopic(topic, 1, 1) for topic in (source, sink)]).values():
        made.result(30)
    producer = Producer({"bootstrap.servers": broker, "linger.ms": 5})
    producer.produce_batch(source, [{"value": event} for event in events])
    producer.flush(30)
    ends = ["--from", f"kafka://{broker}/{source}?group={model}", "--to", f"kafka://{broker}/{sink}"]
    settings = {"bootstrap.servers": broker, "group.id": sink, "auto.offset.reset": "earliest"}
    reader = Consumer({**settings, "isolation.level": "read_committed", "enable.auto.commit": False})
    reader.subscribe([sink])
    answers: list[dict[str, Any]] = []
    with subprocess.Popen([*COMMAND, model, *ends, *flags]) as process:
        while len(answers) < len(events) and process.poll() is None:
            answers += [json.loads(m.value()) for m in reader.consume(1000, 0.5) if m.error() is None]
        process.send_signal(signal.SIGINT)
    reader.close()
    return answers
