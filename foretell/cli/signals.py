"""Ctrl-C and SIGTERM while an event loop runs."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def on_interrupt(act: Callable[[], object]) -> Iterator[None]:
    """SIGINT and SIGTERM call `act` in the running loop. Afterwards they do what they did before: uvloop, unlike
    asyncio, leaves its own handlers in place when it closes.
    """
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with contextlib.suppress(NotImplementedError):  # Windows
        for number in before:
            loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            if handler is not None:  # None: not set from Python, and not to be set from it
                signal.signal(number, handler)
