"""Redis Streams: a source with a consumer group, and a sink that knows what it holds.

The last id of the consumer group is the committed position. Entries are not claimed one by one, as XREADGROUP does,
for that hands entries of one key to several consumers at once and brings those of a dead one back out of order.
"""

import contextlib
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from redis import exceptions
from redis.asyncio import Redis

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.beat import Beat
from foretell.streams.ends import EndUrl
from foretell.streams.message import QUOTED, Change, Message, Partition, Record, Refusal, ends
from foretell.streams.protocol import Resume, Room, Source, StreamReset, is_replayed
from foretell.streams.redis_client import RELEASE, RENEW, Commit, Entry, Group, RedisClient, Write

WAIT_MS = 100
LEASE_S = 10.0
"""How long after its last sign of life the streams of a killed reader are kept for it."""
FIRST = "0-0"
LAST = 2**64 - 1
MOST_BYTES = 512 * 2**20
"""Redis' own limit on a value, where its `proto-max-bulk-len` is not to be read."""


class RedisSource:
    """Streams, and a consumer group on each. One reader has them at a time, by a lease, so order is kept; a second one
    stands by. What was not committed comes again. Entries that are trimmed before they are read are gone.
    """

    def __init__(self, client: RedisClient, streams: list[str], group: str, options: "_Reading") -> None:
        self.client = client
        self.group = group
        self.token = uuid.uuid4().hex
        self._streams = streams
        self._options = options
        self._resume = Resume()
        self._partitions: dict[str, Partition] = {}
        self._done: dict[str, str | None] = {}
        self._at: dict[str, str] = {}
        self._polled: dict[str, int | None] = {}
        """Entries ever added to a stream up to where it was polled, as soon as that is known."""
        self._lag = -1
        self._lost = ""
        self._renewed = 0.0
        self._beat: Beat | None = None

    async def open(self, resume: Resume) -> None:
        """Take the streams. Raises `StreamReset` while another reader has one, so that what it did is read anew."""
        self._resume, self._lost, self._lag = resume, "", -1
        redis = await self.client.connect()
        lease_ms = int(self._options.lease_s * 1000)
        with self.client.told():
            for stream in self._streams:
                lease = self.lease(stream)
                if not (
                    await redis.set(lease, self.token, nx=True, px=lease_ms)
                    or await redis.eval(RENEW, 1, lease, self.token, lease_ms)
                ):
                    await self._release()
                    raise StreamReset(f'stream "{stream}" is read by another of group "{self.group}"; standing by')
            for stream in self._streams:
                await self._begin(redis, stream)
        self._renewed = time.monotonic()
        self._beat = Beat(self._renew, self._options.lease_s / 4)

    async def poll(self, room: Room) -> list[Message] | None:
        """Entries behind those polled; waits a moment for one."""
        if self._lost:
            raise StreamReset(self._lost)
        found = await self.client.read(self._at, self._options.field, room, WAIT_MS)
        messages: list[Message] = []
        for stream, entries in zip(list(self._at), found, strict=True):
            if entries:
                messages += [self._message(stream, entry, room.largest) for entry in entries]
                counted = self._polled.get(stream)
                self._at[stream] = entries[-1][0].decode()
                if counted is not None:
                    self._polled[stream] = counted + len(entries)
        return messages

    async def commit(self, messages: Sequence[Message]) -> None:
        commit = self.committing(messages)
        if commit.ids:
            await self.client.settle(None, commit)

    def lag(self) -> int:
        """Entries that were added behind those polled, as of the last renewal; -1 until it has caught up once."""
        return self._lag

    async def close(self) -> None:
        if self._beat is not None:
            await self._beat.close()
            self._beat = None
        for partition in self._partitions.values():
            partition.held = False
        with contextlib.suppress(StreamError, ConfigError):
            await self._release()
        await self.client.close()

    def lease(self, stream: str) -> str:
        """The key that says who reads a stream."""
        return f"{stream}:foretell:{self.group}"

    def committing(self, messages: Sequence[Message]) -> Commit:
        """What to commit so that `messages` are done. Raises `StreamReset`."""
        if self._lost:
            raise StreamReset(self._lost)
        fresh = ends(message for message in messages if not message.replayed)
        ids = {partition.name: (self.lease(partition.name), last.position) for partition, last in fresh.items()}
        return Commit(self.token, self.group, ids)

    async def _begin(self, redis: Redis, stream: str) -> None:
        with contextlib.suppress(exceptions.ResponseError):  # the group is there
            await redis.xgroup_create(stream, self.group, self._options.start, mkstream=True)
        groups: Any = await redis.xinfo_groups(stream)
        last = next(each["last-delivered-id"].decode() for each in groups if each["name"].decode() == self.group)
        committed = None if last == FIRST else after(last)
        start = self._resume.start(stream, committed)
        self._partitions[stream] = Partition(stream)
        self._done[stream] = self._resume.done(stream, committed)
        self._at[stream] = FIRST if start is None else ahead_of(start)
        self._polled[stream] = 0 if start is None else None

    def _message(self, stream: str, item: Entry, largest: int) -> Message:
        entry, fields, cut = item[0].decode(), item[1], item[2]
        pairs = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
        value = pairs.get(self._options.field)
        value = whole(pairs) if value is None else value
        if len(value) > largest:
            value, cut = value[:QUOTED], max(0, len(value) - QUOTED)
        done = self._done[stream]
        return Message(
            value,
            pairs.get(b"key", b""),
            self._partitions[stream],
            entry,
            after(entry),
            int(entry.partition("-")[0]) if entry.partition("-")[0] > "1" else int(time.time() * 1000),
            done is not None and is_replayed(entry, done),
            cut,
        )

    async def _renew(self) -> bool:
        """Say that this reader lives, and see how much waits. What is lost is void."""
        lease_s, kept = self._options.lease_s, 1
        redis = await self.client.connect()
        with contextlib.suppress(exceptions.RedisError, OSError):
            for stream in self._streams:
                kept &= await redis.eval(RENEW, 1, self.lease(stream), self.token, int(lease_s * 1000))
            if kept:
                self._renewed = time.monotonic()
                await self._measure(redis)
        if not kept or time.monotonic() > self._renewed + lease_s:
            self._lost = f'the lease on "{", ".join(self._streams)}" was lost; another may read there now'
            for partition in self._partitions.values():
                partition.held = False
        return not self._lost

    async def _measure(self, redis: Redis) -> None:
        lag = 0
        for stream in self._streams:
            info: Any = await redis.xinfo_stream(stream)
            added, last = info.get("entries-added"), info["last-generated-id"].decode()
            if added is not None and last == self._at[stream]:
                self._polled[stream] = added
            polled = self._polled[stream]
            lag = -1 if added is None or polled is None or lag < 0 else lag + max(0, added - polled)
        self._lag = lag

    async def _release(self) -> None:
        redis = await self.client.connect()
        with self.client.told():
            for stream in self._streams:
                await redis.eval(RELEASE, 1, self.lease(stream), self.token)


class RedisSink:
    """A stream, and beside it a hash that says up to where it holds answers of each partition; both are written in one
    script, so it is effectively once from any source. Redis → Redis on one server is exactly once: the group's
    position is in that script, too. As safe as the server's own persistence: `appendfsync always` survives power cuts.
    Dead letters come in no order, so of them nothing is remembered.
    """

    def __init__(self, client: RedisClient, stream: str, url: EndUrl) -> None:
        self.client = client
        self.remembers = not url.letters
        self._stream = stream
        self._held = f"{stream}:foretell" if self.remembers else ""
        self._owner = f"{url.owner} "
        self._maxlen = int(url.number("maxlen", 0, 0))
        self._most_bytes = MOST_BYTES

    def joins(self, source: Source) -> bool:
        """Redis with the same Redis."""
        return isinstance(source, RedisSource) and source.client.same(self.client)

    async def open(self) -> Mapping[str, str]:
        """What the hash says; nothing if the stream was removed."""
        redis = await self.client.connect()
        with self.client.told():
            kind = await redis.type(self._stream)
            if kind not in (b"stream", b"none"):
                raise ConfigError(f'"{self._stream}" is a {kind.decode()} of Redis, no stream; name another')
            if kind == b"none" and self.remembers:
                await redis.delete(self._held)
            with contextlib.suppress(exceptions.ResponseError):  # not every account may ask
                limits: Any = await redis.config_get("proto-max-bulk-len")
                self._most_bytes = int(next(iter(limits.values()), MOST_BYTES))
            held: Any = await redis.hgetall(self._held) if self.remembers else {}
        ours = self._owner.encode()
        return {name.removeprefix(ours).decode(): at.decode() for name, at in held.items() if name.startswith(ours)}

    async def publish(self, records: Sequence[Record]) -> list[Refusal]:
        """All of them or none; those that it holds already are left out."""
        taken, refused = self._sorted(records)
        if taken:
            await self.client.settle(self._write(_groups(taken, refused)), None)
        return refused

    async def transact(
        self, records: Sequence[Record], source: Source, messages: Sequence[Message], changes: Sequence[Change] = ()
    ) -> list[Refusal]:
        assert isinstance(source, RedisSource)
        taken, refused = self._sorted(records)
        if refused:
            return refused
        groups = _groups(taken, [])
        fresh = ends(message for message in messages if not message.replayed)
        for partition, last in fresh.items():
            groups[partition.name] = (groups.get(partition.name, ([], ""))[0], last.next)
        try:
            if groups:
                await self.client.settle(self._write(groups), source.committing(messages))
        except StreamError as error:  # whether it happened will be read when the ends are opened anew
            raise StreamReset(error.message) from None
        return []

    async def close(self) -> None:
        await self.client.close()

    def _write(self, groups: Mapping[str, Group]) -> Write:
        return Write(
            self._stream, self._held, self._maxlen, {self._owner + name: group for name, group in groups.items()}
        )

    def _sorted(self, records: Sequence[Record]) -> tuple[list[Record], list[Refusal]]:
        """What fits, and the refusals of what never will."""
        limit = self._most_bytes
        large = [record for record in records if len(record.value) > limit]
        if not large:
            return list(records), []
        refused = [
            Refusal(record.message, f"the answer has {len(record.value):,} bytes, Redis takes {limit:,}")
            for record in large
        ]
        return [record for record in records if len(record.value) <= limit], refused


def _groups(records: Sequence[Record], refused: Sequence[Refusal]) -> dict[str, Group]:
    """By partition. What was refused is no dead letter yet, so a restart has to come back to it."""
    found: dict[str, Group] = {}
    for record in records:
        message = record.message
        found.setdefault(message.partition.origin, ([], ""))[0].append(record)
        found[message.partition.origin] = (found[message.partition.origin][0], message.next)
    for refusal in reversed(refused):
        name = refusal.message.partition.origin
        if name in found:
            found[name] = (found[name][0], refusal.message.position)
    return found


class _Reading(msgspec.Struct, frozen=True):
    """How entries are read: the field that holds the message, where a new group begins, and the lease."""

    field: bytes
    start: str
    lease_s: float


def make_source(url: EndUrl) -> RedisSource:
    """`redis://HOST:PORT/STREAM,STREAM?group=foretell&from=earliest&field=value&lease=10&db=0`."""
    url.allow("group", "from", "field", "lease", "db")
    start = url.options.get("from", "earliest")
    if start not in ("earliest", "latest"):
        raise ConfigError(f'"{url.text}": from={start} is neither earliest nor latest')
    field = url.options.get("field", "value").encode()
    options = _Reading(field, "0" if start == "earliest" else "$", url.number("lease", LEASE_S, 0.1))
    return RedisSource(RedisClient(url), _streams(url), url.options.get("group", "foretell"), options)


def make_sink(url: EndUrl) -> RedisSink:
    """`redis://HOST:PORT/STREAM?maxlen=1000000&db=0`; each entry has the fields key and value."""
    url.allow("maxlen", "db")
    streams = _streams(url)
    if len(streams) != 1:
        raise ConfigError(f'"{url.text}" names {len(streams)} streams; answers go to one')
    return RedisSink(RedisClient(url), streams[0], url)


def _streams(url: EndUrl) -> list[str]:
    url.number("db", 0, 0)
    streams = [stream for stream in url.path.strip("/").split(",") if stream]
    if not streams:
        raise ConfigError(f'"{url.text}" names no stream; write redis://{url.host}/STREAM')
    return streams


def whole(fields: Mapping[bytes, bytes]) -> bytes:
    """An entry without a field for the message is an object of its fields, each JSON where it is JSON, else text.

    >>> whole({b"x": b"1.5", b"name": b"pump"})
    b'{"x":1.5,"name":"pump"}'
    """
    found: dict[str, Any] = {}
    for name, value in fields.items():
        try:
            msgspec.json.decode(value)  # kept as it is written: not all that can be read can be written again
            found[name.decode("utf-8", "replace")] = msgspec.Raw(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            found[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return msgspec.json.encode(found)


def after(entry: str) -> str:
    """The smallest id behind `entry`.

    >>> after("7-2")
    '7-3'
    """
    milliseconds, _, number = entry.partition("-")
    return f"{milliseconds}-{int(number) + 1}"


def ahead_of(position: str) -> str:
    """The largest id before `position`, from which XREAD goes on.

    >>> ahead_of("7-3"), ahead_of("7-0")
    ('7-2', '6-18446744073709551615')
    """
    milliseconds, _, number = position.partition("-")
    if int(number):
        return f"{milliseconds}-{int(number) - 1}"
    return f"{int(milliseconds) - 1}-{LAST}" if int(milliseconds) else FIRST
