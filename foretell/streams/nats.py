"""NATS JetStream: the URLs of its ends. See `nats_client.py` for secrets."""

import re

from foretell.core.errors import ConfigError
from foretell.streams.ends import EndUrl
from foretell.streams.nats_client import NatsClient
from foretell.streams.nats_sink import NatsSink
from foretell.streams.nats_source import NatsSource, Reading

LEASE_S = 10.0
"""How long after its last sign of life the stream of a killed reader is kept for it."""


def make_source(url: EndUrl) -> NatsSource:
    """`nats://HOST:PORT,HOST:PORT/STREAM?group=foretell&subject=a.>&from=earliest&lease=10`."""
    url.allow("group", "subject", "from", "lease")
    stream, start = url.path.strip("/"), url.options.get("from", "earliest")
    if start not in ("earliest", "latest"):
        raise ConfigError(f'"{url.text}": from={start} is neither earliest nor latest')
    if not stream or re.search(r"[\s.*>/\\]", stream):
        raise ConfigError(f'"{url.text}" names no stream; write nats://HOST:4222/STREAM, subjects as ?subject=a.b')
    options = Reading(
        url.options.get("group", "foretell"),
        url.options.get("subject", ""),
        start == "latest",
        url.number("lease", LEASE_S, 0.1),
    )
    return NatsSource(NatsClient(url), stream, options)


def make_sink(url: EndUrl) -> NatsSink:
    """`nats://HOST:PORT/SUBJECT`."""
    url.allow()
    subject = url.path.strip("/")
    if not subject or re.search(r"[\s*>/]", subject):
        raise ConfigError(f'"{url.text}" names no subject to publish to; write nats://HOST:4222/answers.of.a')
    return NatsSink(NatsClient(url), subject, url.owner)
