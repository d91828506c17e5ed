"""NVIDIA's aiperf against foretell's server: `python -m benchmarks.llm_clients [URL] [--streams 8] [--requests 64]`.

A load generator that is not ours, unchanged, measures the same server: it proves the API, and checks our own numbers.
It is installed into an environment of its own. Without a URL, SmolLM2 is served for the while.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.environments import PEERS, Unavailable, ensure
from benchmarks.llm_engines import foretell, weights
from benchmarks.llm_texts import tokenizer_of

SHOWN = {
    "output_token_throughput": "output tokens/s",
    "request_throughput": "requests/s",
    "time_to_first_token": "first token",
    "inter_token_latency": "inter-token",
    "request_latency": "whole answer",
}


def tokenizer_folder() -> Path:
    """A folder that transformers takes for a tokenizer, so that nothing is asked of a hub."""
    folder = PEERS / "run" / "aiperf-tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_of(weights()).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def profile(url: str, model: str, streams: int, requests: int) -> dict:
    """Run aiperf over streamed chats and return what it exports. Raises `Unavailable` with its last words."""
    python, out = ensure("aiperf"), PEERS / "run" / "aiperf"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(python.parent / "aiperf"), "profile", "--model", model, "--url", url, "--endpoint-type", "chat"]
    command += ["--streaming", "--use-server-token-count", "--tokenizer", str(tokenizer_folder())]
    command += ["--concurrency", str(streams), "--request-count", str(requests), "--ui", "none"]
    command += ["--synthetic-input-tokens-mean", "128", "--output-tokens-mean", "64"]
    command += ["--extra-inputs", "ignore_eos:true", "--extra-inputs", "temperature:0"]
    done = subprocess.run([*command, "--artifact-dir", str(out)], capture_output=True, text=True, timeout=600)
    found = sorted(out.rglob("profile_export_aiperf.json"))
    if done.returncode or not found:
        raise Unavailable(f"aiperf ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return json.loads(found[0].read_text())


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 if any request failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm_clients", description=__doc__)
    parser.add_argument("url", nargs="?", default="")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--requests", type=int, default=64)
    options = parser.parse_args(arguments)
    engine = None if options.url else foretell()
    try:
        url = options.url or f"http://127.0.0.1:{engine.port}"
        found = profile(url, options.model, options.streams, options.requests)
    finally:
        if engine:
            engine.process.stop()
    for key, label in SHOWN.items():
        numbers = found.get(key) or {}
        told = ", ".join(f"{name} {numbers[name]:,.1f}" for name in ("avg", "p50", "p90", "p99") if name in numbers)
        print(f"{label}: {told} {numbers.get('unit', '')}")
    errors = (found.get("error_request_count") or {}).get("avg", 0)
    print(f"errors: {errors:g}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
