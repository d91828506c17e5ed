"""A connection to one Redis, its errors as ours, and the script that ends a micro-batch.

Secrets come from the environment: FORETELL_REDIS_USERNAME and FORETELL_REDIS_PASSWORD; FORETELL_REDIS_TLS=yes encrypts,
and FORETELL_REDIS_CA names the file of an authority.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.ends import EndUrl
from foretell.streams.message import QUOTED, Record
from foretell.streams.protocol import Room, StreamReset

PATIENCE_S = 30.0
Entry = tuple[bytes, Any, int]
"""An id, its fields, and bytes of the message that are not among them, for nobody takes a message as large."""
RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
READ = """
local share, nbytes, largest, quoted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local field, found = ARGV[5], {}
for s, stream in ipairs(KEYS) do
    local at, left, most, rows = ARGV[5 + s], nbytes, 1, {}
    while #rows < share and left > 0 do
        local count = math.min(share - #rows, math.max(1, #rows), math.max(1, math.floor(left / most)))
        local entries = redis.call('XRANGE', stream, '(' .. at, '+', 'COUNT', count)
        for _, entry in ipairs(entries) do
            if left <= 0 then break end
            local fields, size, cut, value, key = entry[2], 0, 0, nil, ''
            for i = 1, #fields, 2 do
                size = size + #fields[i] + #fields[i + 1]
                if fields[i] == field then value = fields[i + 1] end
                if fields[i] == 'key' then key = fields[i + 1] end
            end
            if value then size = #value end
            if size > largest then
                value = string.sub(value or table.concat(fields, ' '), 1, quoted)
                fields, cut, size = {field, value, 'key', key}, size - #value, #value
            end
            rows[#rows + 1] = {entry[1], fields, cut}
            left, most, at = left - size, math.max(most, size), entry[1]
        end
        if #entries < count then break end
    end
    found[s] = rows
end
return found
"""
"""Entries behind the last one polled of each stream, as many as there is room for; XREAD knows no bytes.

KEYS: streams. ARGV: most entries and bytes of each stream, bytes of the largest message and of the beginning that is
given of a larger one, the field that holds the message; the last id polled of each stream.
"""
SETTLE = """
local function before(a, b)
    local x, y = {}, {}
    for n in string.gmatch(a, '%d+') do x[#x + 1] = tonumber(n) end
    for n in string.gmatch(b, '%d+') do y[#y + 1] = tonumber(n) end
    for i = 1, math.max(#x, #y) do
        if (x[i] or -1) ~= (y[i] or -1) then return (x[i] or -1) < (y[i] or -1) end
    end
    return false
end
local at = 1
local function take() at = at + 1; return ARGV[at - 1] end
local token, most = take(), tonumber(take())
for i = 3, #KEYS, 2 do
    if redis.call('GET', KEYS[i]) ~= token then return 0 end
end
for _ = 1, tonumber(take()) do
    local name, records, new = take(), tonumber(take()), take()
    local old = KEYS[2] ~= '' and redis.call('HGET', KEYS[2], name)
    for _ = 1, records do
        local position, key, value = take(), take(), take()
        if not old or not before(position, old) then
            if most > 0 then redis.call('XADD', KEYS[1], 'MAXLEN', '~', most, '*', 'key', key, 'value', value)
            else redis.call('XADD', KEYS[1], '*', 'key', key, 'value', value) end
        end
    end
    if KEYS[2] ~= '' and (not old or before(old, new)) then redis.call('HSET', KEYS[2], name, new) end
end
local group = take()
for i = 3, #KEYS, 2 do redis.call('XGROUP', 'SETID', KEYS[i + 1], group, take()) end
return 1
"""
"""Answers, up to where they go, and the positions of the source, all of it or nothing; 0 if a lease is lost.

KEYS: sink, what it holds ('' where nobody remembers), then a lease and a stream each. ARGV: token, maxlen; partitions,
each with records; a group and its new ids.
"""


class RedisClient:
    """A connection to one database; it is made again when it breaks."""

    def __init__(self, url: EndUrl) -> None:
        host, _, port = url.host.rpartition(":") if ":" in url.host else (url.host, "", "6379")
        if not host or not port.isdigit():
            raise ConfigError(f'"{url.text}" names no server; write redis://HOST:6379/STREAM')
        self._place = (host, int(port), int(url.options.get("db", "0")))
        self._redis: Redis | None = None
        self._settle: Any = None
        self._read: Any = None

    def same(self, other: "RedisClient") -> bool:
        """Whether both are the same database."""
        return self._place == other._place

    async def connect(self) -> Redis:
        """The client; it connects when it is asked something."""
        if self._redis is None:
            host, port, db = self._place
            tls = os.environ.get("FORETELL_REDIS_TLS") == "yes"
            trusted = {"ssl": True, "ssl_ca_certs": os.environ.get("FORETELL_REDIS_CA")} if tls else {}
            self._redis = Redis(
                host=host,
                port=port,
                db=db,
                username=os.environ.get("FORETELL_REDIS_USERNAME"),
                password=os.environ.get("FORETELL_REDIS_PASSWORD"),
                retry=Retry(NoBackoff(), 0),
                socket_timeout=PATIENCE_S,
                protocol=2,
                **trusted,
            )
            self._settle = self._redis.register_script(SETTLE)
            self._read = self._redis.register_script(READ)
        return self._redis

    async def close(self) -> None:
        if self._redis is not None:
            redis, self._redis = self._redis, None
            with contextlib.suppress(exceptions.RedisError, OSError):
                await redis.aclose()

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Errors of Redis as ours."""
        where = f"Redis at {self._place[0]}:{self._place[1]}"
        try:
            yield
        except exceptions.AuthenticationError as error:
            raise ConfigError(f"{where}: {error}. Set FORETELL_REDIS_USERNAME and FORETELL_REDIS_PASSWORD") from None
        except (exceptions.NoPermissionError, exceptions.InvalidResponse) as error:
            raise ConfigError(f"{where}: {error}") from None
        except (exceptions.RedisError, OSError) as error:
            if "WRONGTYPE" in str(error):
                raise ConfigError(f"{where}: a key of this name is no stream") from None
            raise StreamError(f"{where}: {error or type(error).__name__}") from None

    async def read(self, after: Mapping[str, str], field: bytes, room: Room, wait_ms: int) -> list[list[Entry]]:
        """What is behind the ids `after` and finds room, by stream; waits a moment for an entry of any."""
        redis = await self.connect()
        count = len(after)
        limits = max(1, room.messages // count), max(1, room.nbytes // count), room.largest, QUOTED
        with self.told():
            found: list[list[Entry]] = await self._read(keys=list(after), args=[*limits, field, *after.values()])
            if not any(found):
                came: Any = await redis.xread(dict(after), count=1, block=wait_ms)
                first = {name.decode(): entries for name, entries in came}
                found = [[(*entry, 0) for entry in first.get(name, ())] for name in after]
        return found

    async def settle(self, write: "Write | None", commit: "Commit | None") -> None:
        """Run `SETTLE`. Raises `StreamReset` if a lease is lost."""
        keys = ["", ""] if write is None else [write.stream, write.held]
        arguments: list[Any] = ["" if commit is None else commit.token]
        arguments += (0, 0) if write is None else (write.maxlen, len(write.groups))
        for name, (records, reached) in ({} if write is None else write.groups).items():
            arguments += (name, len(records), reached)
            for record in records:
                arguments += (record.message.position, record.message.key, record.value)
        arguments.append("" if commit is None else commit.group)
        for stream, (lease, last) in ({} if commit is None else commit.ids).items():
            keys += (lease, stream)
            arguments.append(last)
        await self.connect()
        with self.told():
            done = await self._settle(keys=keys, args=arguments)
        if not done:
            raise StreamReset("the lease on a stream of the source was lost; another may read there now")


Group = tuple[list[Record], str]
"""Records of a partition, and up to where the sink then holds answers."""


class Write(msgspec.Struct, frozen=True):
    """Answers by partition for a stream, and the hash that says what it holds."""

    stream: str
    held: str
    maxlen: int
    groups: Mapping[str, Group]


class Commit(msgspec.Struct, frozen=True):
    """For each stream its lease, which has to hold `token`, and the new last id of the group."""

    token: str
    group: str
    ids: Mapping[str, tuple[str, str]]
