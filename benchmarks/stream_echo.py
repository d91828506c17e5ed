"""The floor of latency: events of a source come back with their number, over the same clients as foretell's, no model.

python -m benchmarks.stream_echo redis|nats PORT SOURCE SINK
"""

import asyncio
import json
import sys

import nats
from redis.asyncio import Redis


def answer(event: bytes) -> bytes:
    return json.dumps({"key": str(json.loads(event)["n"])}).encode()


async def over_redis(port: int, source: str, sink: str) -> None:
    reading, writing = Redis(port=port, protocol=2), Redis(port=port, protocol=2)
    at = b"0-0"
    while True:
        for _, entries in await reading.xread({source: at}, block=1000, count=100):
            for at, fields in entries:  # noqa: B007
                await writing.xadd(sink, {"value": answer(fields[b"value"])})


async def over_nats(port: int, source: str, sink: str) -> None:
    stream = (await nats.connect(f"nats://127.0.0.1:{port}")).jetstream()
    async for message in (await stream.subscribe(f"{source}.*", manual_ack=True)).messages:
        await stream.publish(sink, answer(message.data))
        await message.ack()


def main() -> None:
    scheme, port, source, sink = sys.argv[1:]
    try:
        asyncio.run({"redis": over_redis, "nats": over_nats}[scheme](int(port), source, sink))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
