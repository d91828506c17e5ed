"""Virtual time: an event loop whose clock jumps to the next timer, so that hours of load take milliseconds."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any


class _Selector(selectors.DefaultSelector):
    """Waits by moving the clock."""

    now = 0.0

    def select(self, timeout=None):
        self.now += max(timeout or 0.0, 0.0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self):
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self):
        return self._virtual.now


class VirtualPace:
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def until(self, moment: float) -> None:
        await asyncio.sleep(max(moment - self.now(), 0.0))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)


class FakeTarget:
    """A target that does what `answer(index)` does."""

    def __init__(self, answer: Callable[[int], Awaitable[None]], name: str = "fake", rows: int = 1) -> None:
        self.name, self.rows, self._answer = name, rows, answer
        self.opened = self.closed = self.sent = 0

    async def open(self):
        self.opened += 1

    async def send(self, index):
        self.sent += 1
        await self._answer(index)

    async def close(self):
        self.closed += 1


def takes(seconds: float) -> Callable[[int], Awaitable[None]]:
    async def answer(index):
        await asyncio.sleep(seconds)

    return answer


def single_server(service_s: float, stall_at: float = -1.0, stall_s: float = 0.0):
    """A server that works on one request at a time and stops for `stall_s` at `stall_at`."""
    free_at = 0.0

    async def answer(index):
        nonlocal free_at
        now = asyncio.get_running_loop().time()
        begin = max(now, free_at)
        if stall_at <= begin < stall_at + stall_s:
            begin = stall_at + stall_s
        free_at = begin + service_s
        await asyncio.sleep(free_at - now)

    return answer
