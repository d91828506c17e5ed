"""What one step of a decoder costs here: `python -m benchmarks.llm_executor PACKAGE|GGUF [--precision int4] …`.

Prints decoded rows a second by the number of sequences, prompt tokens a second by chunk, the cost of verifying
drafts, and where the time goes. The floor is what the matrix products alone would allow.
"""

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort

from foretell.accel.ort import CPU, Choice, Session, describe, session_options
from foretell.llm.executors.base import Work
from foretell.llm.executors.onnx import OnnxExecutor, OnnxSettings, open_onnx
from foretell.llm.families import read_config
from foretell.llm.gguf import GgufModel
from foretell.llm.graph import build

PRODUCTS = ("MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMul", "Gemm", "FusedMatMul")


def fastest(call: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest call in `seconds`: what the machine can do when nothing else runs."""
    call()
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def decoding(executor: OnnxExecutor, sequences: int, length: int, seconds: float) -> float:
    """Rows a second of `sequences` that hold `length` tokens each."""
    for slot in range(sequences):
        executor.run([Work(slot, 0, [slot + 1] * length, 0)])
    works = [Work(slot, length, [1], 1) for slot in range(sequences)]
    return sequences / fastest(lambda: executor.run(works).best, seconds)


def reading(executor: OnnxExecutor, chunk: int, total: int, seconds: float) -> float:
    """Tokens a second of a prompt of `total` in chunks."""
    tokens = [number % 1000 for number in range(total)]

    def prompt() -> None:
        for start in range(0, total, chunk):
            part = tokens[start : start + chunk]
            executor.run([Work(0, start, part, int(start + len(part) == total))])

    return total / fastest(prompt, seconds)


def shares(model: Path, arguments: argparse.Namespace, works: list[Work]) -> str:
    """Milliseconds of a run of `works` by kind of operator, and what the matrix products alone would allow."""
    options = session_options(arguments.threads, spinning=not arguments.no_spinning)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        inner = ort.InferenceSession(str(model), options, providers=[CPU])
        executor = OnnxExecutor(Session(inner, describe(model), Choice("cpu", (CPU,), "")), 32, arguments.context)
        for _ in range(12):
            executor.run(works)
        events = json.loads(Path(inner.end_profiling()).read_text())
        executor.close()
    runs = [event for event in events if event["name"] == "model_run"][4:]  # the first ones touch memory
    kernels = [event for event in events if event.get("cat") == "Node" and event["ts"] >= runs[0]["ts"]]
    took: Counter[str] = Counter()
    for event in kernels:
        if event["name"].endswith("_kernel_time"):
            took[event["args"]["op_name"]] += event["dur"] / 1e3 / len(runs)
    products = sum(time for kind, time in took.items() if kind in PRODUCTS)
    rows = sum(len(work.tokens) for work in works)
    whole = sum(event["dur"] for event in runs) / 1e3 / len(runs)
    parts = ", ".join(f"{kind} {time:.2f}" for kind, time in took.most_common(8))
    return f"{whole:7.2f} ms; products alone {rows / products * 1e3:.0f} rows/s; {parts}"


def table(model: Path, arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    settings = OnnxSettings(32, arguments.context, arguments.threads, spinning=not arguments.no_spinning)
    executor = open_onnx(model, settings)
    seconds = arguments.seconds
    print(f"loaded in {time.perf_counter() - start:.1f} s; {executor.shape}")
    for length in arguments.lengths:
        print(f"decoding, {length} tokens held")
        for sequences in (1, 2, 4, 8, 16, 32):
            rows = decoding(executor, sequences, length, seconds)
            print(f"  {sequences:3d} sequences {rows:7.1f} rows/s  {1e3 * sequences / rows:7.2f} ms a step")
    print("a prompt of 512 tokens")
    for chunk in (32, 64, 128, 256, 512):
        print(f"  in chunks of {chunk:3d}: {reading(executor, chunk, 512, seconds):7.1f} tokens/s")
    print("verifying drafts of one sequence, 128 tokens held")
    executor.run([Work(0, 0, [1] * 128, 0)])
    for rows in (1, 2, 3, 4, 5, 6, 8):
        took = fastest(lambda rows=rows: executor.run([Work(0, 128, [1] * rows, rows)]).best, seconds)
        print(f"  {rows} rows {1e3 * took:7.2f} ms")
    executor.close()
    print("where the time goes (profiled, so a little slower)")
    for sequences in (1, 8, 32):
        works = [Work(slot, 128, [1], 1) for slot in range(sequences)]
        print(f"  {sequences:3d} sequences: {shares(model, arguments, works)}")
    print(f"  chunk of 128: {shares(model, arguments, [Work(0, 0, [1] * 128, 0)])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a package's folder, or a GGUF file to build a graph of")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-spinning", action="store_true")
    parser.add_argument("--lengths", type=int, nargs="*", default=[128])
    parser.add_argument("--seconds", type=float, default=0.5, help="time of each measurement")
    arguments = parser.parse_args()
    if arguments.model.is_dir():
        table(arguments.model / "model.onnx", arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = GgufModel.open(arguments.model)
        build(
            read_config(model.config(), arguments.context),
            model,
            Path(folder),
            arguments.precision,
            arguments.block_size,
        )
        table(Path(folder, "model.onnx"), arguments)


if __name__ == "__main__":
    main()
