"""A connection to an MQTT 5 broker, its errors as ours, and its events in the loop of whoever asked.

Secrets come from the environment: FORETELL_MQTT_USERNAME, FORETELL_MQTT_PASSWORD; FORETELL_MQTT_TLS=yes encrypts, and
FORETELL_MQTT_CA names the file of an authority.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.ends import EndUrl

PATIENCE_S = 10.0
KEEPALIVE_S = 15
WIDE = 1000
"""Messages under way to the broker, where it allows as many."""
DENIED = (0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x9F)
"""Reasons against which no retry helps: protocol version, client id, credentials, not authorized, banned."""


class Session(NamedTuple):
    """What the broker keeps of a client: nothing where `expiry_s` is 0. At most `window` messages unacknowledged."""

    client: str
    expiry_s: int = 0
    window: int = 0


class Inlet:
    """Room for what came and was not taken. The thread that brings it waits while there is none."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._shut = False
        self._changed = threading.Condition()

    @property
    def full(self) -> bool:
        """Whether the next one has to wait."""
        return self._held >= self._most

    def enter(self, size: int) -> None:
        """One of `size` bytes came."""
        with self._changed:
            self._changed.wait_for(lambda: not self.full or self._shut)
            self._held += size

    def leave(self, size: int) -> None:
        """So many bytes were taken."""
        with self._changed:
            self._held -= size
            self._changed.notify_all()

    def shut(self) -> None:
        """Nobody takes anything any more, so nobody has to wait."""
        with self._changed:
            self._shut = True
            self._changed.notify_all()


class Reader(NamedTuple):
    """Who reads what comes: `received` is called in the loop, for what the inlet has let in."""

    received: Callable[[MQTTMessage], None]
    inlet: Inlet


class MqttClient:
    """One connection. It is not mended but made anew: what was unacknowledged comes again on the next one."""

    def __init__(self, url: EndUrl) -> None:
        host, _, port = url.host.rpartition(":") if ":" in url.host else (url.host, "", "1883")
        if not host or not port.isdigit():
            raise ConfigError(f'"{url.text}" names no broker; write mqtt://HOST:1883/TOPIC')
        self.lost = "not connected"
        """Why the connection is not there; "" while it is."""
        self.most_bytes = 0
        """Of a whole packet, as the broker says; 0 where it does not."""
        self._host = host
        self._port = int(port)
        self._paho: Any = None
        self._waiting: dict[int, asyncio.Future[ReasonCode]] = {}
        self._reader: Reader | None = None
        self._answered: asyncio.Future[ReasonCode] | None = None
        self._gate = asyncio.Semaphore(1)
        """Room for messages that the broker has not acknowledged."""

    async def connect(self, session: Session, reader: Reader | None = None) -> None:
        """Be there, with the session that the broker has kept.

        Raises `StreamError` where a retry may help, `ConfigError` where it will not.
        """
        await self.close()
        loop = asyncio.get_running_loop()
        paho = Client(
            CallbackAPIVersion.VERSION2,
            client_id=session.client,
            protocol=MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        paho.max_inflight_messages_set(0)  # `_gate` counts them, by what this broker allows
        paho.username = os.environ.get("FORETELL_MQTT_USERNAME")
        paho.password = os.environ.get("FORETELL_MQTT_PASSWORD")
        if os.environ.get("FORETELL_MQTT_TLS") == "yes":
            paho.tls_set(ca_certs=os.environ.get("FORETELL_MQTT_CA"))

        call = _relay(loop, lambda: self._paho is paho)
        paho.on_connect = lambda _c, _u, _flags, reason, more: call(self._connected, _flags, reason, more)
        paho.on_disconnect = lambda _c, _u, _flags, reason, _more: call(self._disconnected, reason)
        paho.on_publish = lambda _c, _u, mid, reason, _more: call(self._acknowledged, mid, reason)
        paho.on_subscribe = lambda _c, _u, mid, reasons, _more: call(self._acknowledged, mid, reasons[0])
        if reader is not None:

            def receive(_client: Client, _data: object, message: MQTTMessage) -> None:
                reader.inlet.enter(len(message.payload))
                call(reader.received, message)

            paho.on_message = receive
        self._paho, self._answered, self._reader = paho, loop.create_future(), reader
        try:
            await asyncio.to_thread(
                paho.connect,
                self._host,
                self._port,
                keepalive=KEEPALIVE_S,
                clean_start=not session.expiry_s,
                properties=_properties(session),
            )
            paho.loop_start()
            reason = await asyncio.wait_for(self._answered, PATIENCE_S)
        except (OSError, TimeoutError) as error:
            await self.close()
            raise StreamError(f"{self}: {error or 'no answer in time'}") from None
        if reason.is_failure:
            await self.close()
            raise self._error(reason)

    async def close(self) -> None:
        """Leave in order; the session stays at the broker as long as it is to."""
        paho, self._paho, self.lost = self._paho, None, "closed"
        if self._reader is not None:
            self._reader.inlet.shut()
        if paho is not None:
            paho.disconnect()
            await asyncio.to_thread(paho.loop_stop)
        for waiting in self._waiting.values():
            waiting.cancel()
        self._waiting.clear()

    def subscribe(self, topics: str) -> "asyncio.Future[ReasonCode]":
        """With QoS 1; what the broker says of it comes behind what it kept of the session."""
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        _, mid = self._paho.subscribe(topics, options=options)
        return self.expect(mid)

    async def publish(self, topic: str, value: bytes) -> "asyncio.Future[ReasonCode]":
        """With QoS 1, once the broker has room for it; see `acknowledged`. Raises `StreamError`."""
        gate = self._gate
        await gate.acquire()
        if self.lost:
            gate.release()
            raise StreamError(f"{self}: {self.lost}")
        waiting = self.expect(self._paho.publish(topic, value, qos=1).mid)
        waiting.add_done_callback(lambda _: gate.release())
        return waiting

    def acknowledge(self, mid: int) -> None:
        """Let the broker forget a message. Raises `StreamError`."""
        if self.lost or self._paho.ack(mid, 1) not in (MQTTErrorCode.MQTT_ERR_SUCCESS,):
            raise StreamError(f"{self}: {self.lost or 'the connection is gone'}")

    def expect(self, mid: int) -> "asyncio.Future[ReasonCode]":
        """What the broker will say of a packet. Callbacks come through the loop, so never before this."""
        waiting: asyncio.Future[ReasonCode] = asyncio.get_running_loop().create_future()
        if self.lost:
            waiting.cancel()
        else:
            self._waiting[mid] = waiting
        return waiting

    async def acknowledged(self, expected: "list[asyncio.Future[ReasonCode]]") -> list[ReasonCode]:
        """All of them. Raises `StreamError` if the connection is lost or the broker is silent."""
        _, silent = await asyncio.wait(expected, timeout=3 * PATIENCE_S)
        if silent or any(each.cancelled() for each in expected):
            raise StreamError(f"{self}: {self.lost or 'no acknowledgement in time'}")
        return [each.result() for each in expected]

    def __str__(self) -> str:
        return f"MQTT at {self._host}:{self._port}"

    # Events, in the loop

    def _connected(self, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None) -> None:
        told = properties.json() if properties is not None else {}
        self.most_bytes = int(told.get("MaximumPacketSize", 0))
        self._gate = asyncio.Semaphore(min(WIDE, int(told.get("ReceiveMaximum", WIDE))))
        if not reason.is_failure:
            self.lost = ""
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(reason)

    def _disconnected(self, reason: ReasonCode) -> None:
        self.lost = f"the connection is gone ({reason})"
        for waiting in self._waiting.values():
            waiting.cancel()
        self._waiting.clear()

    def _acknowledged(self, mid: int, reason: ReasonCode) -> None:
        waiting = self._waiting.pop(mid, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(reason)

    def _error(self, reason: ReasonCode) -> ConfigError | StreamError:
        if reason.value in DENIED:
            return ConfigError(f"{self}: {reason}. Set FORETELL_MQTT_USERNAME and FORETELL_MQTT_PASSWORD")
        return StreamError(f"{self}: {reason}")


def _properties(session: Session) -> Properties:
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = session.expiry_s
    if session.window:
        properties.ReceiveMaximum = session.window
    return properties


def _relay(loop: asyncio.AbstractEventLoop, current: Callable[[], bool]) -> Callable[..., None]:
    """Calls in the loop, while `current` and unless the loop is gone; it is woken once for all that came meanwhile."""
    came: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def call(function: Callable[..., None], *arguments: object) -> None:
        came.append((function, arguments))
        if len(came) == 1 and not loop.is_closed():
            loop.call_soon_threadsafe(take)

    def take() -> None:
        try:
            while came:
                function, arguments = came[0]
                if current():
                    function(*arguments)
                came.popleft()
        except Exception:
            came.popleft()
            loop.call_soon(take)
            raise

    return call
