"""The torch executor on a GPU, from a bare machine: `python3 -m benchmarks.llm_gpu probe|measure [--out FOLDER]`.

Needs torch, numpy and msgspec; transformers' generate runs beside where it is installed. Without the rest of
foretell's requirements, carry the wheels that are missing and unpack them first:

    python3 -m pip install -q --no-index --no-deps --target /tmp/site wheels/*.whl && export PYTHONPATH=/tmp/site:.
    python3 -m benchmarks.llm_gpu probe --out "$OUT"
    python3 -m pytest --noconftest -q tests/llm/test_torch_step.py tests/llm/test_torch_scores.py
    python3 -m pytest --noconftest -q tests/llm/test_opening.py tests/llm/test_graph_weights.py
    python3 -m benchmarks.llm_gpu measure --out "$OUT" --shapes smollm2-135m,llama-1b --sequences 1,8,32

Weights are random: no speed hangs on them. Every part stands alone; what fails prints its traceback and the others
run. One JSON file comes of it, written anew after every part.
"""

import argparse
import importlib
import json
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "transformers", "triton", "onnxruntime", "onnx", "tokenizers", "numpy", "msgspec", "llguidance"),
    *("jinja2", "gguf", "tomli_w", "sqlalchemy", "psutil", "platformdirs", "pyarrow", "httptools", "hpack", "xxhash"),
)


class Report:
    """What was found, on the screen and in one JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = {"weights": "random", "started": time.strftime("%Y-%m-%d %H:%M:%S")}

    def add(self, name: str, value: Any) -> None:
        self._found[name] = value
        print(f"{name}: {value}", flush=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._found, indent=1, default=str))

    def part(self, name: str, run: Callable[[], Any]) -> None:
        """Run one part; what it raises is a finding too."""
        start = time.perf_counter()
        try:
            self.add(name, run())
        except Exception as error:
            traceback.print_exc()
            self.add(name, {"error": f"{type(error).__name__}: {error}"})
        print(f"  ({name} took {time.perf_counter() - start:.1f} s)", flush=True)


def probe(report: Report) -> None:
    """What is on this machine."""
    report.part("python", lambda: [sys.version, sys.executable, platform.platform()])
    report.part("packages", lambda: {name: version(name) for name in PACKAGES})
    report.part("gpu", lambda: command("nvidia-smi"))
    report.part("disk", lambda: {place: shutil.disk_usage(place).free // 2**20 for place in ("/", "/tmp")})
    report.part("foretell", lambda: importlib.import_module("foretell.llm.executors.torch").__name__)


def version(package: str) -> str:
    try:
        module = importlib.import_module(package)
    except Exception as error:
        return f"missing ({type(error).__name__}: {error})"
    return str(getattr(module, "__version__", "there"))


def command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout


def measure(report: Report, arguments: argparse.Namespace) -> None:
    """Every shape: graphs, the same kernels one by one, and transformers."""
    report.part(
        "machine", lambda: command("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv")
    )
    report.part("versions", lambda: {name: version(name) for name in ("torch", "transformers", "numpy")})
    decoding: Any = importlib.import_module("benchmarks.llm_gpu_decoding")  # which imports torch
    for shape in arguments.shapes:
        try:
            start = time.perf_counter()
            model = decoding.Model(shape, arguments)
            report.add(f"{shape} load s", round(time.perf_counter() - start, 1))
            for name, part in decoding.parts(model, arguments).items():
                if any(wanted in name for wanted in arguments.only):
                    report.part(f"{shape} {name}", part)
            model.executor.close()
            del model
            if shape in arguments.check:
                report.part(f"{shape} against float32 on the CPU", lambda s=shape: decoding.distance(s, arguments))
        except Exception as error:
            traceback.print_exc()
            report.add(shape, {"error": f"{type(error).__name__}: {error}"})


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("probe", "measure"))
    parser.add_argument("--out", type=Path, default=Path("out"), help="the folder of the JSON file")
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=["smollm2-135m", "llama-1b"])
    parser.add_argument("--check", type=lambda text: text.split(","), default=["tiny", "smollm2-135m"])
    parser.add_argument(
        "--only", type=lambda text: text.split("|"), default=[""], help="parts whose names hold one of a|b"
    )
    parser.add_argument("--sequences", type=numbers, default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128, help="generated by each sequence of the engine")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seconds", type=float, default=1.0, help="time of each measurement")
    arguments = parser.parse_args()
    report = Report(arguments.out / f"llm_gpu_{arguments.part}.json")
    if arguments.part == "probe":
        probe(report)
    else:
        measure(report, arguments)


if __name__ == "__main__":
    main()
