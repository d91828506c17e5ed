"""Runs whole measurements of a language model: connects, warms up, loads while the server's processes are watched,
sums up, one load after the other. The file that the command line calls.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import psutil

from foretell.bench.llm.measure import LlmResult, Targets, summarise
from foretell.bench.llm.openai import OpenAiTarget, connect
from foretell.bench.llm.prompts import Prompts, Scale
from foretell.bench.load import LoadPlan, OnProgress, RequestFailed, run_load
from foretell.bench.measure import PRICE_PER_CORE_HOUR
from foretell.bench.pace import Pace
from foretell.bench.processes import ProcessWatch
from foretell.bench.run import progress_bar, run_async
from foretell.core.errors import ConfigError

MakePrompts = Callable[[Scale], Prompts]
"""Prompts, given how words count as tokens where they are sent."""
_WARM = 8


class LlmSettings(msgspec.Struct, frozen=True):
    """What is asked, and what is measured beside latency.

    url, model, chat, key, more: as `openai.connect` takes them. server_pid: the process whose tree is watched for
    memory and CPU; 0 for none. price_per_hour: dollars for the machine; None: this machine's cores at the usual price.
    """

    url: str
    model: str = ""
    chat: bool = False
    key: str = ""
    more: dict[str, Any] = {}
    targets: Targets = Targets()
    server_pid: int = 0
    price_per_hour: float | None = None


async def bench_llm(
    target: OpenAiTarget,
    plan: LoadPlan,
    settings: LlmSettings,
    on_progress: OnProgress | None = None,
    pace: Pace | None = None,
) -> LlmResult:
    """Load `target` by `plan` and sum up. Raises `ConfigError` for a plan that makes no sense, and where even the
    warm-up fails.
    """
    plan.check()
    await _warm_up(target, plan)
    await target.open()
    watch = ProcessWatch(settings.server_pid) if settings.server_pid else None
    if watch:
        watch.start()
    wall, cpu = time.perf_counter(), time.process_time()
    recording = await run_load(target, plan, on_progress, pace)
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    uses = await asyncio.to_thread(watch.stop) if watch else []
    price = settings.price_per_hour
    if price is None:
        price = PRICE_PER_CORE_HOUR * (psutil.cpu_count() or 1)
    result = summarise(target.name, plan, recording, target.answers, settings.targets, price, share)
    return msgspec.structs.replace(result, processes=uses)


def run_llm(
    name: str, settings: LlmSettings, make_prompts: MakePrompts, plans: Sequence[LoadPlan], progress: bool = True
) -> list[LlmResult]:
    """`bench_llm` by each of `plans`, for callers without an event loop, with a progress bar on standard error."""

    async def whole() -> list[LlmResult]:
        endpoint = await connect(settings.url, settings.model, settings.chat, settings.key, settings.more)
        target = OpenAiTarget(name or endpoint.model, endpoint, make_prompts(endpoint.scale))
        results = []
        try:
            for plan in plans:
                with progress_bar(f"{target.name}, {load_of(plan)}", progress) as on_progress:
                    result = await bench_llm(target, plan, settings, on_progress)
                results.append(msgspec.structs.replace(result, notes=[*endpoint.notes, *result.notes]))
        finally:
            await target.close()
        return results

    return run_async(whole())


def load_of(plan: LoadPlan) -> str:
    """The load in a few words: "8 streams", "2.5 requests/s"."""
    if plan.rate:
        return f"{plan.rate:g} requests/s"
    return f"{plan.concurrency} stream{'s' if plan.concurrency > 1 else ''}"


async def _warm_up(target: OpenAiTarget, plan: LoadPlan) -> None:
    count = min(_WARM, plan.concurrency if not plan.rate else _WARM)
    try:
        async with asyncio.timeout(plan.timeout_s):
            await asyncio.gather(*(target.warm_up() for _ in range(count)))
    except (RequestFailed, OSError) as error:
        told = " ".join(getattr(error, "__notes__", []))
        raise ConfigError(f"{target.name} fails to answer the warm-up: {error} {told}".strip()) from error
