"""Time for the load generator: a fine clock, and waiting to a point of it with microseconds of error."""

import asyncio
import ctypes
import os
import struct
import time
from typing import Protocol

_ITIMERSPEC = struct.Struct("=qqqq")
_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1


class Pace(Protocol):
    """`now` in seconds of a monotonic clock; `until` returns at or after that time, at once if it has passed."""

    def now(self) -> float: ...

    async def until(self, moment: float) -> None: ...


class RealPace:
    """Real time. On Linux it waits on a kernel timer: an event loop's own timers are whole milliseconds, which
    would bundle the arrivals of a thousand requests per second. Elsewhere it uses those.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None) if os.name == "posix" else None
        self._timer = -1

    def now(self) -> float:
        return time.monotonic()

    async def until(self, moment: float) -> None:
        if moment <= time.monotonic():
            # Still give way once, or a generator that is behind would never let answers in.
            await asyncio.sleep(0)
            return
        if not hasattr(self._libc, "timerfd_create"):
            await asyncio.sleep(moment - time.monotonic())
            return
        await self._alarm(moment)

    async def _alarm(self, moment: float) -> None:
        assert self._libc is not None
        loop = asyncio.get_running_loop()
        timer = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if timer < 0:
            await asyncio.sleep(moment - time.monotonic())
            return
        ring: asyncio.Future[None] = loop.create_future()
        whole = int(moment)
        spec = _ITIMERSPEC.pack(0, 0, whole, int((moment - whole) * 1e9))
        try:
            self._libc.timerfd_settime(timer, _ABSOLUTE, spec, None)
            loop.add_reader(timer, _ring, ring)
            await ring
        finally:
            loop.remove_reader(timer)
            os.close(timer)


def _ring(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
