"""Sends requests at a target by a plan and records when each was due and how long it took. Knows neither HTTP nor
models nor statistics.

Closed loop: `concurrency` callers, each sends its next request when it has the answer to the last. Open loop:
requests are due at Poisson times of a given rate, whatever the server does, and their latency counts from the
time they were due; a stall therefore shows in every request that it kept waiting (coordinated omission).
"""

import asyncio
import contextlib
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from foretell.bench.pace import Pace, RealPace
from foretell.core.errors import ConfigError, ForetellError

_PROGRESS_EVERY_S = 0.2
_AFTER_ERROR_S = 0.01


class LoadPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to load a target.

    concurrency: callers of the closed loop. rate: requests per second of the open loop (0: closed loop).
    duration_s: how long requests are sent. requests: how many to send (0: as many as fit; otherwise the
    duration is no limit). warmup_s: load that is not measured, before. timeout_s: an answer that takes longer is
    counted as the error "timeout". max_in_flight: requests the open loop has out at once; further ones wait, and
    their wait counts. seed: of the arrival times.
    """

    concurrency: int = 8
    rate: float = 0.0
    duration_s: float = 10.0
    requests: int = 0
    warmup_s: float = 1.0
    timeout_s: float = 30.0
    max_in_flight: int = 512
    seed: int = 0

    def check(self) -> "LoadPlan":
        """Return the plan, or raise `ConfigError` that names the field which makes no sense."""
        lows = {"concurrency": 1, "rate": 0, "requests": 0, "warmup_s": 0, "max_in_flight": 1}
        for name, low in lows.items():
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        for name in ("duration_s", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be more than 0")
        return self


class Target(Protocol):
    """What is measured. `send` returns when request number `index` is answered and raises if the answer is none;
    it may be cancelled. `rows`: rows of each request.
    """

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> int: ...

    async def open(self) -> None: ...

    async def send(self, index: int) -> None: ...

    async def close(self) -> None: ...


class RequestFailed(Exception):
    """An answer that is an error; its text is the kind it is counted under, such as "HTTP 429"."""


class Progress(msgspec.Struct, frozen=True):
    """Where a run stands: seconds, requests answered and failed, and its share done between 0 and 1."""

    elapsed_s: float
    answered: int
    failed: int
    share: float


OnProgress = Callable[[Progress], None]


class Recording:
    """What happened, in order of completion: `due` seconds since the start, `latency` and `late` (how long after
    its due time the generator sent it) in seconds, and `kind`, an index into `kinds` where 0 is "ok".
    """

    def __init__(self) -> None:
        self._due, self._latency, self._late, self._kind = array("d"), array("d"), array("d"), array("H")
        self.kinds = ["ok"]
        self.answered = 0
        self.elapsed_s = 0.0

    def add(self, due: float, latency: float, late: float, kind: str = "ok") -> None:
        if kind == "ok":
            self.answered += 1
        elif kind not in self.kinds:
            self.kinds.append(kind)
        self._due.append(due)
        self._latency.append(latency)
        self._late.append(late)
        self._kind.append(self.kinds.index(kind))

    def extend(self, other: "Recording", after_s: float) -> None:
        """Append what `other` holds, its times moved by `after_s`."""
        for due, latency, late, kind in zip(other._due, other._latency, other._late, other._kind, strict=True):
            self.add(due + after_s, latency, late, other.kinds[kind])

    def __len__(self) -> int:
        return len(self._due)

    @property
    def due(self) -> NDArray[np.float64]:
        return np.array(self._due)

    @property
    def latency(self) -> NDArray[np.float64]:
        return np.array(self._latency)

    @property
    def late(self) -> NDArray[np.float64]:
        return np.array(self._late)

    @property
    def ok(self) -> NDArray[np.bool_]:
        ok: NDArray[np.bool_] = np.array(self._kind, dtype=np.uint16) == 0
        return ok

    @property
    def errors(self) -> dict[str, int]:
        """Kind of error → how many, all of them."""
        counts = np.bincount(np.array(self._kind, dtype=np.int64), minlength=len(self.kinds))
        return {kind: int(n) for kind, n in zip(self.kinds[1:], counts[1:], strict=True)}


async def run_load(
    target: Target, plan: LoadPlan, on_progress: OnProgress | None = None, pace: Pace | None = None
) -> Recording:
    """Load an open `target` by `plan` (without its warm-up) and return what happened. Ends by itself: after the
    last request is sent it waits for answers no longer than `timeout_s`.
    """
    run = _Run(target, plan.check(), pace or RealPace())
    async with run.helpers(on_progress):
        await (run.open_loop() if plan.rate else run.closed_loop())
    run.recording.elapsed_s = run.pace.now() - run.start
    return run.recording


def arrivals(plan: LoadPlan) -> Iterator[float]:
    """Due times of an open loop, seconds from its start: gaps are exponential with mean 1 / rate."""
    random = np.random.default_rng(plan.seed)
    sent, at = 0, 0.0
    while True:
        for gap in random.exponential(1 / plan.rate, 1024).tolist():
            at += gap
            if (sent >= plan.requests) if plan.requests else (at >= plan.duration_s):
                return
            sent += 1
            yield at


def kind_of(error: BaseException) -> str:
    """The name an error is counted under."""
    if isinstance(error, RequestFailed):
        return str(error)
    if isinstance(error, ForetellError):
        return f"{error.outcome}: {type(error).__name__}"
    return type(error).__name__


class _Run:
    """One run's state: what is in flight and since when, what was sent, what is recorded."""

    def __init__(self, target: Target, plan: LoadPlan, pace: Pace) -> None:
        self.target = target
        self.plan = plan
        self.pace = pace
        self.start = pace.now()
        self.recording = Recording()
        self._sent = 0
        self._flying: dict[asyncio.Task, float] = {}
        self._timed_out: set[asyncio.Task] = set()

    async def closed_loop(self) -> None:
        await asyncio.gather(*(asyncio.create_task(self._caller()) for _ in range(self.plan.concurrency)))

    async def open_loop(self) -> None:
        room = asyncio.Semaphore(self.plan.max_in_flight)
        tasks: set[asyncio.Task] = set()

        def finished(task: asyncio.Task) -> None:
            tasks.discard(task)
            room.release()

        for due in arrivals(self.plan):
            await self.pace.until(self.start + due)
            await room.acquire()
            task = asyncio.create_task(self._once(self.start + due))
            tasks.add(task)
            task.add_done_callback(finished)
        await asyncio.gather(*tasks)

    async def _caller(self) -> None:
        limit, stop = self.plan.requests, self.start + self.plan.duration_s
        while (self._sent < limit) if limit else (self.pace.now() < stop):
            if not await self._once(self.pace.now()):
                # A refused connection fails in microseconds; without a pause callers would only spin.
                await self.pace.until(self.pace.now() + _AFTER_ERROR_S)

    async def _once(self, due: float) -> bool:
        task = asyncio.current_task()
        assert task is not None
        index, self._sent = self._sent, self._sent + 1
        sent = self._flying[task] = self.pace.now()
        kind = "ok"
        try:
            await self.target.send(index)
        except asyncio.CancelledError:
            if task not in self._timed_out:
                raise
            self._timed_out.discard(task)
            task.uncancel()
            kind = "timeout"
        except Exception as error:
            kind = kind_of(error)
        finally:
            self._flying.pop(task, None)
        self.recording.add(due - self.start, self.pace.now() - due, sent - due, kind)
        return kind == "ok"

    @contextlib.asynccontextmanager
    async def helpers(self, on_progress: OnProgress | None) -> AsyncIterator[None]:
        """Run the tasks that end overdue requests and report progress for as long as the block runs."""
        tasks = [asyncio.create_task(self._end_overdue())]
        if on_progress:
            tasks.append(asyncio.create_task(self._report(on_progress)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _end_overdue(self) -> None:
        # One look at everything in flight is cheaper than a timer for each request.
        while True:
            await asyncio.sleep(self.plan.timeout_s / 20)
            late = self.pace.now() - self.plan.timeout_s
            for task, since in list(self._flying.items()):
                if since < late and task not in self._timed_out:
                    self._timed_out.add(task)
                    task.cancel()

    async def _report(self, on_progress: OnProgress) -> None:
        plan, recording = self.plan, self.recording
        while True:
            await asyncio.sleep(_PROGRESS_EVERY_S)
            elapsed = self.pace.now() - self.start
            share = len(recording) / plan.requests if plan.requests else elapsed / plan.duration_s
            failed = len(recording) - recording.answered
            on_progress(Progress(elapsed, recording.answered, failed, min(share, 1.0)))
