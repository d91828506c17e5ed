"""MQTT 5: topics as source and as sink, with QoS 1. See `mqtt_client.py` for secrets."""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from paho.mqtt.client import MQTTMessage
from paho.mqtt.reasoncodes import ReasonCode

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.ends import EndUrl
from foretell.streams.message import Message, Partition, Record, Refusal, weight
from foretell.streams.mqtt_client import PATIENCE_S, Inlet, MqttClient, Reader, Session
from foretell.streams.protocol import Resume, Room, StreamReset, taken

WAIT_S = 0.1
WINDOW = 8192
"""Messages that the broker may have sent and that are not acknowledged yet."""
AHEAD_BYTES = 2**24
"""Bytes that may have come and wait to be polled; then nothing more is read, and the broker waits."""
EXPIRY_S = 7 * 24 * 3600
NEVER = (0x95, 0x99)
"""Packet too large, payload format invalid: of the message itself."""
_ROOM = 1024
"""Bytes that topic and properties may take of what the broker allows for a packet."""


class MqttSource:
    """A topic filter, in a session that the broker keeps while nobody reads, for as long as its expiry and its own
    limits say. What was not acknowledged comes again, with a new position, for MQTT has none: at least once with
    every sink, and with state. Order is kept by topic; topics are keys. Messages of QoS 0 come at most once.
    """

    renumbers = True

    def __init__(self, client: MqttClient, topics: str, subscription: str, session: Session) -> None:
        self._client = client
        self._subscription = subscription
        self._session = session
        self._name = topics
        self._partition = Partition(topics)
        self._number = 0
        self._came: deque[MQTTMessage] = deque()
        self._inlet = Inlet(AHEAD_BYTES)
        self._some = asyncio.Event()
        self._mids: dict[str, int] = {}
        self._subscribed: asyncio.Future[ReasonCode] | None = None

    async def open(self, resume: Resume) -> None:
        """Take up the session. Positions go on behind all that anybody remembers."""
        self._came.clear()
        self._mids.clear()
        self._number = max(self._number, resume.beyond(self._name))
        self._partition = Partition(self._name)
        self._inlet = Inlet(AHEAD_BYTES)
        await self._client.connect(self._session, Reader(self._receive, self._inlet))
        self._subscribed = self._client.subscribe(self._subscription)
        until = time.monotonic() + PATIENCE_S
        while not (self._subscribed.done() or self._inlet.full):  # what the session kept comes first
            await asyncio.wait((self._subscribed,), timeout=WAIT_S)
            if time.monotonic() > until:
                raise StreamError(f"{self._client}: the subscription is not acknowledged")
        self._check()

    async def poll(self, room: Room) -> list[Message] | None:
        """What has come; waits a moment for one. Raises `StreamReset` where what was polled will come again."""
        if not self._came:
            self._check()
            self._some.clear()
            try:
                await asyncio.wait_for(self._some.wait(), WAIT_S)
            except TimeoutError:
                return []
        now = int(time.time() * 1000)
        found = [self._message(item, now) for item in taken(self._came, room, lambda item: len(item.payload))]
        self._inlet.leave(weight(found))
        return found

    async def commit(self, messages: Sequence[Message]) -> None:
        """Acknowledge them, in the order in which they came."""
        try:
            for message in messages:
                mid = self._mids.pop(message.position, 0)
                if mid:
                    self._client.acknowledge(mid)
        except StreamError as error:
            self._partition.held = False
            raise StreamReset(error.message) from None

    def lag(self) -> int:
        """A broker does not say how much waits in a session."""
        return -1

    async def close(self) -> None:
        self._partition.held = False
        await self._client.close()

    def _check(self) -> None:
        """Raises `StreamReset` if the connection is lost, `ConfigError` if the subscription was refused."""
        if self._client.lost:
            self._partition.held = False
            raise StreamReset(f"{self._client}: {self._client.lost}")
        if self._subscribed is not None and self._subscribed.done() and self._subscribed.result().is_failure:
            reason = self._subscribed.result()
            raise ConfigError(f'{self._client} refuses the subscription to "{self._subscription}": {reason}')

    def _receive(self, message: MQTTMessage) -> None:
        self._came.append(message)
        self._some.set()

    def _message(self, item: MQTTMessage, now: int) -> Message:
        self._number += 1
        position = str(self._number)
        if item.qos:
            self._mids[position] = item.mid
        return Message(item.payload, item.topic.encode(), self._partition, position, str(self._number + 1), now)


class MqttSink:
    """A topic. At least once: a broker takes the same answer twice. Each names its source and position, by which a
    reader can tell. As safe as the broker: Mosquitto keeps it in memory unless set.
    """

    remembers = False

    def __init__(self, client: MqttClient, topic: str) -> None:
        self._client = client
        self._topic = topic

    async def open(self) -> Mapping[str, str]:
        """A broker does not tell what it had."""
        await self._client.connect(Session(""))
        return {}

    async def publish(self, records: Sequence[Record]) -> list[Refusal]:
        """Acknowledged by the broker."""
        if self._client.lost:
            await self._client.connect(Session(""))
        limit = self._client.most_bytes - _ROOM if self._client.most_bytes else 2**28 - _ROOM
        refused = []
        sent = []
        for record in records:
            if len(record.value) > limit:
                reason = f"the answer has {len(record.value):,} bytes, the broker takes {limit:,}"
                refused.append(Refusal(record.message, reason))
            else:
                sent.append((record, await self._client.publish(self._topic, record.value)))
        if sent:
            reasons = await self._client.acknowledged([each for _, each in sent])
            for (record, _), reason in zip(sent, reasons, strict=True):
                if reason.value in NEVER:
                    refused.append(Refusal(record.message, f"the broker refuses the answer: {reason}"))
                elif reason.is_failure:
                    raise StreamError(f'{self._client} did not take an answer for "{self._topic}": {reason}')
        return refused

    async def close(self) -> None:
        await self._client.close()


def make_source(url: EndUrl) -> MqttSource:
    """`mqtt://HOST:PORT/TOPIC/%23?client=NAME&share=GROUP&expiry=604800`; # is written %23.

    `share` divides the topics' messages among several processes, each with a `client` of its own; then order is kept
    only within what one of them gets.
    """
    url.allow("client", "share", "expiry")
    topics, share = _topic(url), url.options.get("share", "")
    if "/" in share or "+" in share or "#" in share:
        raise ConfigError(f'"{url.text}": share={share} is no name of a group')
    if share and "client" not in url.options:
        raise ConfigError(f'"{url.text}": share= is for several processes; give each its own client=NAME')
    mark = hashlib.sha256(f"{share} {topics}".encode()).hexdigest()[:12]
    client = url.options.get("client", f"foretell-{mark}")
    expiry_s = int(url.number("expiry", EXPIRY_S, 1))
    session = Session(client, min(expiry_s, 2**32 - 2), WINDOW)
    return MqttSource(MqttClient(url), topics, f"$share/{share}/{topics}" if share else topics, session)


def make_sink(url: EndUrl) -> MqttSink:
    """`mqtt://HOST:PORT/TOPIC`."""
    url.allow()
    topic = _topic(url)
    if "+" in topic or "#" in topic:
        raise ConfigError(f'"{url.text}" names many topics; answers go to one')
    return MqttSink(MqttClient(url), topic)


def _topic(url: EndUrl) -> str:
    topic = unquote(url.path[1:])
    if not topic:
        raise ConfigError(f'"{url.text}" names no topic; write mqtt://{url.host or "HOST"}/TOPIC')
    if "#" in url.text:
        raise ConfigError(f'"{url.text}": # ends a URL; write it %23')
    return topic
