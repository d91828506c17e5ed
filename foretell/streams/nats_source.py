"""A stream of NATS JetStream as a source.

The position of a group is a key of the bucket "foretell", written by compare-and-set. Messages are read in the order of
the stream by a consumer that lives as long as its reader; a durable one would bring what was under way at a kill back
behind what came after it.
"""

import asyncio
import contextlib
import re
import time
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError

from foretell.core.errors import ConfigError, ForetellError, StreamError
from foretell.streams.beat import Beat
from foretell.streams.message import Message, Partition, ends
from foretell.streams.nats_client import FAULTS, KEY, NatsClient
from foretell.streams.protocol import Resume, Room, StreamReset, is_replayed, taken

WAIT_S = 0.1
AHEAD = 1024
"""Messages that are asked for before they are polled."""
AHEAD_BYTES = 2**24
"""Bytes that a request asks for at most."""
EXPIRES_S = 60.0
IDLE_S = 30.0
"""When the server removes the consumer of a reader that is gone."""
BUCKET = "foretell"


class Reading(msgspec.Struct, frozen=True):
    """What is read of a stream, and by whom. `latest`: a new group begins at the end."""

    group: str
    subject: str
    latest: bool
    lease_s: float

    def key(self, stream: str) -> str:
        """The key of the group."""
        plain = "/".join(filter(None, (stream, self.group, self.subject)))
        return re.sub(r"[^A-Za-z0-9/_-]", lambda found: f"={ord(found[0]):x}=", plain)


class Held(msgspec.Struct):
    """What the bucket says of a group: who reads, for how long it is believed to, and where it goes on."""

    reader: str
    lease_s: float
    next: str = ""


class NatsSource:
    """A stream, or one subject of it. One reader of a group at a time, so order is kept; a second one stands by.

    What was not committed comes again. Keys are the header Foretell-Key, or else subjects.
    """

    def __init__(self, client: NatsClient, stream: str, options: Reading) -> None:
        self._client = client
        self._stream = stream
        self._options = options
        self._token = uuid.uuid4().hex
        self._partition = Partition(stream)
        self._done: str | None = None
        self._seen: tuple[int, float] = (0, 0.0)
        self._bucket: Any = None
        self._held = Held(self._token, options.lease_s)
        self._revision = 0
        self._writing = asyncio.Lock()
        self._came: deque[Any] = deque()
        self._waiting = 0
        """Bytes of what has come."""
        self._some = asyncio.Event()
        self._inbox = ""
        self._consumer = ""
        self._asked = 0
        self._asked_at = 0.0
        self._number = 0
        self._lag = -1
        self._lost = ""
        self._renewed = 0.0
        self._beat: Beat | None = None

    async def open(self, resume: Resume) -> None:
        """Take the stream. Raises `StreamReset` while another reader has it, so that what it did is read anew."""
        self._lost, self._lag, self._number = "", -1, 0
        js = await self._client.connect()
        with self._client.told():
            try:
                info = await js.stream_info(self._stream)
            except NotFoundError:
                raise ConfigError(f'there is no stream "{self._stream}" in JetStream; make it first') from None
            await self._take(js, info.state.last_seq)
            committed = self._held.next or None
            if committed is not None and int(committed) > info.state.last_seq + 1:
                raise ConfigError(
                    f'group "{self._options.group}" has read stream "{self._stream}" up to {committed}, but it ends at'
                    f" {info.state.last_seq}: it was made anew. Choose another group"
                )
            start = resume.start(self._stream, committed)
            self._done = resume.done(self._stream, committed)
            self._partition = Partition(self._stream)
            config = ConsumerConfig(
                deliver_policy=DeliverPolicy.ALL if start is None else DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=None if start is None else max(1, int(start)),
                ack_policy=AckPolicy.NONE,
                filter_subject=self._options.subject or None,
                inactive_threshold=IDLE_S,
                mem_storage=True,
                num_replicas=1,
            )
            made = await js.add_consumer(self._stream, config)
            self._consumer = made.name
            self._inbox = self._client.nats.new_inbox()
            self._came.clear()
            self._waiting = 0
            await self._client.nats.subscribe(self._inbox, cb=self._receive)
            self._asked = 0
            await self._ask()
        self._renewed = time.monotonic()
        self._beat = Beat(self._renew, self._options.lease_s / 4)

    async def poll(self, room: Room) -> list[Message] | None:
        """What has come; waits a moment for one."""
        self._check()
        try:
            with self._client.told():
                await self._ask()
        except StreamError as error:
            raise StreamReset(error.message) from None
        if not self._came:
            if not self._client.alive:
                raise StreamReset("the connection to NATS is gone")
            self._some.clear()
            try:
                await asyncio.wait_for(self._some.wait(), WAIT_S)
            except TimeoutError:
                if self._lag > 0:  # there is more, so nothing that was asked for is to come
                    self._asked = 0
                return []
        found = []
        for item in taken(self._came, room, _size):
            self._waiting -= _size(item)
            message = self._message(item)
            if message is not None:
                found.append(message)
        return found

    async def commit(self, messages: Sequence[Message]) -> None:
        last = ends(message for message in messages if not message.replayed)
        for message in last.values():
            await self._write(message.next)

    def lag(self) -> int:
        """Messages of the stream behind those polled, as the last one told."""
        return -1 if self._lag < 0 else self._lag + len(self._came)

    async def close(self) -> None:
        if self._beat is not None:
            await self._beat.close()
            self._beat = None
            self._partition.held = False
            if not self._lost and self._client.alive:
                with contextlib.suppress(ForetellError, *FAULTS):
                    self._held.reader = ""
                    await self._update()
            self._held.reader = self._token
        await self._client.close()

    # Messages

    async def _receive(self, item: Any) -> None:
        self._came.append(item)
        self._waiting += _size(item)
        self._some.set()

    async def _ask(self) -> None:
        """Keep the server asked for `AHEAD` messages; it answers as they come, and forgets what it was asked.

        So what was asked counts for half of that time, or until nothing comes although there is more, because as many
        bytes came as may; after it some more may come than is believed. While many bytes wait here, nothing is asked.
        """
        now = time.monotonic()
        if now > self._asked_at + EXPIRES_S:
            self._asked = 0
        most_bytes = max(AHEAD_BYTES, 2 * self._client.nats.max_payload)
        if self._asked <= AHEAD // 2 and self._waiting < most_bytes:
            wanted = AHEAD - self._asked
            limits = {"batch": wanted, "max_bytes": most_bytes}
            question = msgspec.json.encode({**limits, "expires": int(EXPIRES_S * 2e9)})
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
            await self._client.nats.publish(subject, question, self._inbox)
            self._asked += wanted
            self._asked_at = now

    def _message(self, item: Any) -> Message | None:
        if not item.reply:
            said = item.headers or {}
            status = said.get("Status", "")
            full = status == "409" and "MaxBytes" in said.get("Description", "")
            if not full and status not in ("404", "408", "100"):  # nothing there, expired, heartbeat
                raise StreamReset(f'stream "{self._stream}": {status or "a message without a place"}')
            return None
        parts = item.reply.split(".")
        sequence, number, stamp, pending = parts[-4:] if len(parts) == 9 else parts[7:11]
        self._asked = max(0, self._asked - 1)
        self._number += 1
        if int(number) != self._number:
            raise StreamReset(f'stream "{self._stream}": message {self._number} of this reader did not arrive')
        self._lag = int(pending)
        key = (item.headers or {}).get(KEY)
        replayed = self._done is not None and is_replayed(sequence, self._done)
        name = (item.subject if key is None else key).encode()
        after = str(int(sequence) + 1)
        return Message(item.data, name, self._partition, sequence, after, int(stamp) // 1_000_000, replayed)

    # The group's key

    async def _take(self, js: Any, last: int) -> None:
        options = self._options
        try:
            self._bucket = await js.key_value(BUCKET)
        except NotFoundError:
            self._bucket = await js.create_key_value(bucket=BUCKET, history=1)
        key = options.key(self._stream)
        first = str(last + 1) if options.latest else ""
        try:
            entry = await self._bucket.get(key)
        except KeyNotFoundError:
            entry = None
        if entry is None:
            self._held = Held(self._token, options.lease_s, first)
            self._revision = await self._bucket.create(key, msgspec.json.encode(self._held))
            return
        self._held = msgspec.json.decode(entry.value, type=Held)
        now = time.monotonic()
        if self._seen[0] != entry.revision:
            self._seen = (entry.revision, now)
        if self._held.reader not in ("", self._token) and now < self._seen[1] + self._held.lease_s:
            raise StreamReset(f'stream "{self._stream}" is read by another of group "{options.group}"; standing by')
        self._held.reader, self._held.lease_s, self._revision = self._token, options.lease_s, entry.revision
        await self._update()

    async def _update(self) -> None:
        """Write the key if nobody else has. Raises `StreamReset`."""
        key = self._options.key(self._stream)
        with self._client.told():
            try:
                self._revision = await self._bucket.update(key, msgspec.json.encode(self._held), self._revision)
            except KeyWrongLastSequenceError:
                self._lost = f'another reader has taken stream "{self._stream}"'
                self._partition.held = False
                raise StreamReset(self._lost) from None

    async def _write(self, position: str) -> None:
        async with self._writing:
            self._check()
            self._held.next = position
            try:
                await self._update()
            except StreamReset:
                raise
            except StreamError as error:  # whether it was written will be read when the ends are opened anew
                raise StreamReset(error.message) from None

    async def _renew(self) -> bool:
        """Say that this reader lives."""
        async with self._writing:
            with contextlib.suppress(StreamError):
                await self._update()
                self._renewed = time.monotonic()
        if time.monotonic() > self._renewed + self._options.lease_s:
            self._lost = f'the lease on stream "{self._stream}" ran out; another may read there now'
            self._partition.held = False
        return not self._lost

    def _check(self) -> None:
        if self._lost:
            raise StreamReset(self._lost)


def _size(item: Any) -> int:
    """Bytes of a message."""
    return len(item.data)
