"""Runs a whole measurement: opens the target, warms it up, loads it while its processes are watched, sums up. The
file that the command line calls.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import msgspec
import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from foretell.bench.compare import Comparison, compare
from foretell.bench.load import LoadPlan, OnProgress, Target, run_load
from foretell.bench.load import Progress as LoadProgress
from foretell.bench.measure import PRICE_PER_CORE_HOUR, Result, price, summarise
from foretell.bench.pace import Pace
from foretell.bench.processes import ProcessWatch
from foretell.core.errors import ConfigError

try:
    import uvloop
except ImportError:  # Windows
    uvloop = None

_T = TypeVar("_T")


class MeasureSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is measured beside latency.

    target_s: the latency that goodput asks for. server_pid: the process whose tree is watched for CPU and memory
    (`processes.find_server`); 0 for none. price_per_core_hour: dollars.
    """

    target_s: float | None = None
    server_pid: int = 0
    price_per_core_hour: float = PRICE_PER_CORE_HOUR


async def bench(
    target: Target,
    plan: LoadPlan,
    on_progress: OnProgress | None = None,
    settings: MeasureSettings = MeasureSettings(),
    pace: Pace | None = None,
) -> Result:
    """Measure `target` by `plan`. Raises `ConfigError` for a plan that makes no sense, or if nothing that was
    sent in the warm-up is answered (it names the commonest error).
    """
    plan.check()
    await target.open()
    try:
        await _warm_up(target, plan, pace)
        watch = ProcessWatch(settings.server_pid) if settings.server_pid else None
        if watch:
            watch.start()
        wall, cpu = time.perf_counter(), time.process_time()
        recording = await run_load(target, plan, on_progress, pace)
        share = (time.process_time() - cpu) / (time.perf_counter() - wall)
        uses = await asyncio.to_thread(watch.stop) if watch else []
    finally:
        await target.close()
    result = summarise(target.name, plan, target.rows, recording, settings.target_s, share)
    if not uses:
        return result
    shared = any(use.pid == psutil.Process().pid for use in uses)
    return price(result, uses, settings.price_per_core_hour, psutil.cpu_count() or 1, shared)


def run_bench(
    target: Target, plan: LoadPlan, settings: MeasureSettings = MeasureSettings(), progress: bool = True
) -> Result:
    """`bench` for callers without an event loop, with a progress bar on standard error."""
    with progress_bar(target.name, progress) as on_progress:
        return run_async(bench(target, plan, on_progress, settings))


def run_compare(a: Target, b: Target, plan: LoadPlan, rounds: int = 8, progress: bool = True) -> Comparison:
    """`compare` for callers without an event loop, with a progress bar on standard error. Opens and closes both."""

    async def whole(on_progress: OnProgress | None) -> Comparison:
        await a.open()
        try:
            await b.open()
            try:
                return await compare(a, b, plan.check(), rounds, on_progress)
            finally:
                await b.close()
        finally:
            await a.close()

    with progress_bar(f"{a.name} ↔ {b.name}", progress) as on_progress:
        return run_async(whole(on_progress))


async def _warm_up(target: Target, plan: LoadPlan, pace: Pace | None) -> None:
    if not plan.warmup_s:
        return
    warm = msgspec.structs.replace(plan, duration_s=plan.warmup_s, requests=0)
    recording = await run_load(target, warm, pace=pace)
    if len(recording) and not recording.answered:
        kind = max(recording.errors, key=lambda name: recording.errors[name])
        raise ConfigError(
            f"none of {len(recording)} warm-up requests to {target.name} was answered, mostly: {kind}. Try one by hand"
        )


def run_async(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` to its end on a new event loop, uvloop's where there is one."""
    loop = uvloop.new_event_loop if uvloop else None
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(work)


def progress_bar(name: str, visible: bool) -> AbstractContextManager[Callable[[LoadProgress], None] | None]:
    """A bar on standard error while the body runs, moved by calling what it gives; None where it is not wanted."""
    return _Bar(name) if visible else nullcontext(None)


class _Bar:
    """A rich progress bar as an `OnProgress`."""

    def __init__(self, name: str) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(name, total=1.0, told="warming up")

    def __enter__(self) -> Callable[[LoadProgress], None]:
        self._bar.start()
        return self._tell

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def _tell(self, now: LoadProgress) -> None:
        told = f"{now.answered / max(now.elapsed_s, 1e-9):,.0f}/s"
        told += f", {now.failed} failed" if now.failed else ""
        self._bar.update(self._task, completed=now.share, told=told)
