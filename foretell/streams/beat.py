"""Something that is done every so often beside a source, as long as it is open."""

import asyncio
from collections.abc import Awaitable, Callable

PATIENCE_S = 2.0


class Beat:
    """Calls `beat` every `every_s` seconds until it returns false or `close`."""

    def __init__(self, beat: Callable[[], Awaitable[bool]], every_s: float) -> None:
        self._beat = beat
        self._every_s = every_s
        self._closing = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Let a call that has begun end. Clients of brokers may swallow a cancellation, so that is asked for again."""
        self._closing.set()
        await asyncio.wait((self._task,), timeout=PATIENCE_S)
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=0.1)

    async def _run(self) -> None:
        going = True
        while going:
            try:
                await asyncio.wait_for(self._closing.wait(), self._every_s)
                return
            except TimeoutError:
                going = await self._beat()
