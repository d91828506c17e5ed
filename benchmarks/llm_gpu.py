"""The torch executor on a GPU, from a bare machine: `python3 -m benchmarks.llm_gpu probe|measure [--out FOLDER]`.

Needs torch, numpy and msgspec; transformers' generate runs beside where it is installed. Without the rest of
foretell's requirements, carry the wheels that are missing and unpack them first:

    python3 -m pip install -q --no-index --no-deps --target /tmp/site wheels/*.whl && export PYTHONPATH=/tmp/site
    python3 -m benchmarks.llm_gpu probe --out "$OUT"
    python3 -m benchmarks.llm_gpu measure --out "$OUT" --shapes smollm2-135m,llama-1b --sequences 1,8,32

Weights are random: no speed hangs on them. Every part stands alone; what fails prints its traceback and the others
run. One JSON file comes of it, written anew after every part.
"""

import argparse
import importlib
import importlib.metadata
import json
import math
import platform
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch transformers onnxruntime onnx tokenizers numpy msgspec llguidance jinja2 gguf tomli_w sqlalchemy psutil"
    " platformdirs pyarrow httptools hpack uvloop xxhash triton"
).split()
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 1e4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 1e5,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "llama-1b": {  # of Llama 3.2 1B, whose stretched positions cost nothing
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rope_theta": 5e5,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
PROMPT = 128
"""Tokens that each sequence holds before it is measured."""


class RandomWeights:
    """Weights of a config, each drawn when first asked for, of the size that training gives them."""

    def __init__(self, config: dict[str, Any]) -> None:
        hidden, ffn = config["hidden_size"], config["intermediate_size"]
        width = config.get("head_dim") or hidden // config["num_attention_heads"]
        heads, kv = width * config["num_attention_heads"], width * config["num_key_value_heads"]
        self._shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (config["vocab_size"], hidden),
            "model.norm.weight": (hidden,),
        }
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            self._shapes |= {
                f"{name}.input_layernorm.weight": (hidden,),
                f"{name}.post_attention_layernorm.weight": (hidden,),
                f"{name}.self_attn.q_proj.weight": (heads, hidden),
                f"{name}.self_attn.k_proj.weight": (kv, hidden),
                f"{name}.self_attn.v_proj.weight": (kv, hidden),
                f"{name}.self_attn.o_proj.weight": (hidden, heads),
                f"{name}.mlp.gate_proj.weight": (ffn, hidden),
                f"{name}.mlp.up_proj.weight": (ffn, hidden),
                f"{name}.mlp.down_proj.weight": (hidden, ffn),
            }
        self._seeds = {name: seed for seed, name in enumerate(self._shapes)}

    def names(self) -> Collection[str]:
        return self._shapes.keys()

    def get(self, name: str) -> Any:
        import numpy as np

        shape = self._shapes[name]
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        random = np.random.Generator(np.random.SFC64(self._seeds[name]))
        return random.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[1]))


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


def timed(step: Callable[[], Any], seconds: float) -> float:
    """Seconds of a step, the median of those that fit in `seconds`; the device is waited for each time."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3):
        step()
    wait()
    took, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(took) < 3:
        start = time.perf_counter()
        step()
        wait()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


class Model:
    """One shape, open in the executor: `arguments` say on what, for how many sequences, for how long."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        from foretell.llm.executors.torch import TorchSettings, open_torch
        from foretell.llm.families import read_config

        self.config = {"model_type": "llama", "rms_norm_eps": 1e-5, **SHAPES[name]}
        self.weights = RandomWeights(self.config)
        self._arguments = arguments
        context = min(arguments.context, self.config["max_position_embeddings"])
        settings = TorchSettings(max(arguments.sequences), context, 0, arguments.device, arguments.dtype)
        self.executor = open_torch(read_config(self.config, context), self.weights, settings)

    def filled(self, count: int, length: int = PROMPT) -> list[Any]:
        """The works that decode one token of `count` sequences, each of `length` tokens."""
        from foretell.llm.executors.base import Work

        for slot in range(count):
            self.executor.run([Work(slot, 0, tokens(length, slot, self.config), 0)])
        return [Work(slot, length, [slot + 1], 1) for slot in range(count)]

    def eager(self) -> None:
        """From here on no step is a captured graph."""
        executor: Any = self.executor
        decoder = executor._decoder

        def plain(size: int, reach: int) -> Callable[..., Any]:
            hidden = executor._hidden(size, reach)
            return lambda *inputs: decoder.logits(hidden(*inputs).flatten(0, 1))

        executor._captured_step = plain

    def decoding(self, length: int = PROMPT) -> dict[int, float]:
        """Tokens a second by the number of sequences, the best token of each on the host."""
        found = {}
        for count in self._arguments.sequences:
            works = self.filled(count, length)
            found[count] = round(count / timed(lambda w=works: self.executor.run(w).best, self._arguments.seconds), 1)
        return found

    def sampling(self) -> dict[int, float]:
        """The same, all logits on the host: what sampling of the whole vocabulary needs at the least."""
        found = {}
        for count in self._arguments.sequences:
            works = self.filled(count)
            found[count] = round(count / timed(lambda w=works: self.executor.run(w).logits, self._arguments.seconds), 1)
        return found

    def reading(self) -> dict[int, float]:
        """Tokens a second of a prompt of so many tokens, in one chunk."""
        from foretell.llm.executors.base import Work

        found = {}
        for length in (128, 512, min(2048, self.executor.shape.context)):
            work = Work(0, 0, tokens(length, 1, self.config), 1)
            found[length] = round(length / timed(lambda w=work: self.executor.run([w]).best, self._arguments.seconds))
        return found

    def greedy(self, count: int, steps: int) -> list[list[int]]:
        """What `count` sequences say, `steps` tokens each."""
        from foretell.llm.executors.base import Work

        said = [[work.tokens[0]] for work in self.filled(count)]
        for step in range(steps):
            works = [Work(slot, PROMPT + step, own[-1:], 1) for slot, own in enumerate(said)]
            for own, token in zip(said, self.executor.run(works).best.tolist(), strict=True):
                own.append(token)
        return said

    def engine(self, temperature: float) -> dict[int, float]:
        """Generated tokens a second of the whole engine: scheduler, executor, sampling, books."""
        return {count: self._engine(count, temperature) for count in self._arguments.sequences}

    def _engine(self, count: int, temperature: float) -> float:
        from foretell.core.generation import Sampling
        from foretell.llm.engine import Engine
        from foretell.llm.sampling import Sampler
        from foretell.llm.sequence import Sequence

        engine, length = Engine(self.executor), self._arguments.tokens
        for number in range(count):
            prompt = tokens(PROMPT, number, self.config)
            sampler = Sampler(Sampling(temperature=temperature), number, prompt)
            engine.add(Sequence(number, 0, prompt, sampler, (), length))
        generated, started = 0, 0.0
        while emitted := engine.step():
            if not started and engine.load().waiting == 0 and len(emitted) == count:
                started = time.perf_counter()  # all decode
            elif started:
                generated += sum(len(each.tokens) for each in emitted)
        return round(generated / (time.perf_counter() - started), 1)


def tokens(count: int, seed: int, config: dict[str, Any]) -> list[int]:
    import numpy as np

    drawn: list[int] = np.random.default_rng(seed).integers(1, config["vocab_size"], count).tolist()
    return drawn


def agreement(model: Model, graphs: list[list[int]], eager: list[list[int]]) -> dict[str, Any]:
    """How many texts of both are equal, and where the first difference is."""
    same = [a == b for a, b in zip(graphs, eager, strict=True)]
    first = [next((i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), -1)
             for a, b in zip(graphs, eager, strict=True)]
    return {"texts": len(same), "equal": sum(same), "first difference": first}


def beside(model: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """transformers' generate with the same weights: new tokens a second, the prompt's time taken off."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() and arguments.device != "cpu" else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    config = transformers.LlamaConfig(**{k: v for k, v in model.config.items() if k != "model_type"})
    peer = transformers.LlamaForCausalLM(config).to(dtype)
    state = {name: torch.tensor(model.weights.get(name), dtype=dtype) for name in model.weights.names()}
    peer.load_state_dict(state, strict=False)
    peer.tie_weights()
    peer = peer.to(device).eval()
    found: dict[str, Any] = {"version": transformers.__version__}
    for count in arguments.sequences:
        prompts = torch.tensor([tokens(PROMPT, slot, model.config) for slot in range(count)], device=device)
        took = []
        for new in (1, 1 + arguments.tokens):
            def run(new: int = new, prompts: Any = prompts) -> Any:
                return peer.generate(
                    prompts, attention_mask=torch.ones_like(prompts), do_sample=False, min_new_tokens=new,
                    max_new_tokens=new, pad_token_id=0,
                )

            run()
            start = time.perf_counter()
            said = run()
            said.cpu()
            took.append(time.perf_counter() - start)
        found[str(count)] = round(count * arguments.tokens / (took[1] - took[0]), 1)
    return found


def measure(report: Report, arguments: argparse.Namespace) -> None:
    """Every shape: graphs, the same kernels one by one, and transformers."""
    report.part("machine", lambda: command("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv"))
    report.part("versions", lambda: {name: version(name) for name in ("torch", "transformers", "numpy")})
    for shape in arguments.shapes:
        try:
            start = time.perf_counter()
            model = Model(shape, arguments)
            report.add(f"{shape} load s", round(time.perf_counter() - start, 1))
            measure_one(shape, model, report, arguments)
            model.executor.close()
        except Exception as error:
            traceback.print_exc()
            report.add(shape, {"error": f"{type(error).__name__}: {error}"})


def measure_one(shape: str, model: Model, report: Report, arguments: argparse.Namespace) -> None:
    import torch

    texts: list[list[list[int]]] = []
    count = max(arguments.sequences)
    report.part(f"{shape} decode tokens/s, graphs", model.decoding)
    if torch.cuda.is_available():
        report.add(f"{shape} GPU memory MB", torch.cuda.max_memory_allocated() // 2**20)
    report.part(f"{shape} decode tokens/s, graphs, 1000 held", lambda: model.decoding(min(1000, arguments.context - 2)))
    report.part(f"{shape} decode tokens/s, graphs, logits on the host", model.sampling)
    report.part(f"{shape} prompt tokens/s", model.reading)
    report.part(f"{shape} engine tokens/s, greedy", lambda: model.engine(0.0))
    report.part(f"{shape} engine tokens/s, temperature 1", lambda: model.engine(1.0))
    report.part(f"{shape} greedy, graphs", lambda: len(texts.append(model.greedy(count, 64)) or texts))
    model.eager()
    report.part(f"{shape} decode tokens/s, eager", model.decoding)
    report.part(f"{shape} greedy, eager", lambda: len(texts.append(model.greedy(count, 64)) or texts))
    report.part(f"{shape} greedy, graphs against eager", lambda: agreement(model, *texts))
    report.part(f"{shape} transformers tokens/s", lambda: beside(model, arguments))


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("probe", "measure"))
    parser.add_argument("--out", type=Path, default=Path("out"), help="the folder of the JSON file")
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=["smollm2-135m", "llama-1b"])
    parser.add_argument("--sequences", type=numbers, default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128, help="generated by each sequence of the engine")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of each measurement")
    arguments = parser.parse_args()
    report = Report(arguments.out / f"llm_gpu_{arguments.part}.json")
    if arguments.part == "probe":
        probe(report)
    else:
        measure(report, arguments)


if __name__ == "__main__":
    main()
