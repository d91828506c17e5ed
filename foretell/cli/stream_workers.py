"""Several processes of one stream: they share the source as readers of a group, each with its model and its state.

A worker that dies is started again; one that refuses (a wrong flag) ends all.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TextIO

import msgspec
import psutil

from foretell.core.errors import ForetellError
from foretell.streams.progress import Counts, together
from foretell.streams.retry import Backoff

EVERY_S = 0.25
RESET = "--reset-state"


class Workers:
    """`arguments`: those of this process, which every worker gets."""

    def __init__(self, count: int, arguments: Sequence[str], backoff: Backoff | None = None) -> None:
        self._arguments = [*arguments, "--workers", "1", "--metrics", ""]
        self._backoff = backoff or Backoff(0.5, 10.0)
        self._now = [Counts()] * count
        self._gone: list[Counts] = []
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    def counts(self) -> Counts:
        """All workers as one, those that died included."""
        return together([*self._gone, *self._now])

    def stop(self) -> None:
        """Each commits what it has begun and ends."""
        self._stopping.set()
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    async def run(self) -> None:
        """Until all have ended. Raises `ForetellError` if one refused."""
        try:
            ended = await asyncio.gather(*(self._keep(number) for number in range(len(self._now))))
        finally:
            for process in self._running.values():
                process.kill()
        if any(ended):
            raise ForetellError("a worker could not run; its own words are above")

    async def _keep(self, number: int) -> bool:
        """Run one worker, again whenever it dies. Whether it refused."""
        arguments = self._arguments
        for wait_s in self._backoff.waits():
            code = await self._once(number, arguments)
            arguments = [each for each in arguments if each != RESET]  # what it wrote since is to stay
            if code >= 0 or self._stopping.is_set():
                if code > 0:
                    self.stop()
                return code > 0
            self._gone.append(
                msgspec.structs.replace(self._now[number], lag=-1, held=0, per_s=0.0, p50_ms=0.0, p99_ms=0.0)
            )
            self._now[number] = Counts(trouble=f"worker {number} died ({signal.Signals(-code).name}) and starts again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)
            if self._stopping.is_set():
                return False
        raise AssertionError("waits() never ends")

    async def _once(self, number: int, arguments: Sequence[str]) -> int:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the workers in order.
        command = [sys.executable, "-m", "foretell", *arguments, "--worker", str(number)]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, start_new_session=True)
        self._running[number] = process
        share_cores(process.pid, number, len(self._now))
        if self._stopping.is_set():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        async for line in process.stdout:
            self._now[number] = msgspec.json.decode(line, type=Counts)
        code = await process.wait()
        del self._running[number]
        return code


def share_cores(pid: int, number: int, count: int) -> None:
    """Give worker `number` its part of the cores, so that models of several workers do not crowd each other out."""
    if not hasattr(psutil.Process, "cpu_affinity"):  # macOS
        return
    with contextlib.suppress(psutil.Error, OSError):  # it may have died already
        process = psutil.Process(pid)
        cores = process.cpu_affinity()
        process.cpu_affinity(cores[number % len(cores) :: count])


def report_channel() -> TextIO:
    """Standard output, for reports alone from now on: what is printed in this process and its children goes to standard
    error.
    """
    sys.stdout.flush()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return out


@contextlib.asynccontextmanager
async def report_to(out: TextIO, read: Callable[[], Counts]) -> AsyncIterator[None]:
    """A worker's side: a line of counts now and then, and one at the end. A worker whose parent is gone ends."""
    parent = os.getppid()

    def write() -> None:
        out.write(msgspec.json.encode(read()).decode() + "\n")
        out.flush()

    async def go_on() -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            write()

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(BrokenPipeError):
            write()
