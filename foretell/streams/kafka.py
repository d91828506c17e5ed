"""Kafka, by confluent-kafka: the URLs of its ends. Settings and secrets come from FORETELL_KAFKA_*:
FORETELL_KAFKA_SASL_PASSWORD is librdkafka's `sasl.password`.
"""

import os
from typing import Any

from foretell.core.errors import ConfigError
from foretell.streams.ends import EndUrl
from foretell.streams.kafka_sink import KafkaSink
from foretell.streams.kafka_source import KafkaSource

PREFIX = "FORETELL_KAFKA_"


def make_source(url: EndUrl) -> KafkaSource:
    """`kafka://HOST:PORT,HOST:PORT/TOPIC,TOPIC?group=foretell&from=earliest`."""
    url.allow("group", "from")
    start = url.options.get("from", "earliest")
    if start not in ("earliest", "latest"):
        raise ConfigError(f'"{url.text}": from={start} is neither earliest nor latest')
    settings = {
        "partition.assignment.strategy": "cooperative-sticky",
        **_common(url),
        "group.id": url.options.get("group", "foretell"),
        "auto.offset.reset": start,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
    }
    return KafkaSource(settings, _topics(url))


def make_sink(url: EndUrl) -> KafkaSink:
    """`kafka://HOST:PORT/TOPIC`. Keys go to the partitions that Java's clients send them to."""
    url.allow()
    topics = _topics(url)
    if len(topics) != 1:
        raise ConfigError(f'"{url.text}" names {len(topics)} topics; answers go to one')
    settings = {
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        **_common(url),
        "enable.idempotence": True,
        "linger.ms": 0,
        "delivery.report.only.error": True,
    }
    return KafkaSink(settings, topics[0])


def _common(url: EndUrl) -> dict[str, Any]:
    if not url.host:
        raise ConfigError(f'"{url.text}" names no broker; write kafka://HOST:9092/TOPIC')
    given = {
        name[len(PREFIX) :].lower().replace("_", "."): value
        for name, value in os.environ.items()
        if name.startswith(PREFIX)
    }
    return {"log_level": 2, **given, "bootstrap.servers": url.host}


def _topics(url: EndUrl) -> list[str]:
    topics = [topic for topic in url.path.strip("/").split(",") if topic]
    if not topics:
        raise ConfigError(f'"{url.text}" names no topic; write kafka://{url.host}/TOPIC')
    return topics
