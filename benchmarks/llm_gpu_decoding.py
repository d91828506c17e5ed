"""What `benchmarks.llm_gpu` measures: a model of random weights in the torch executor, the engine, and transformers."""

import argparse
import importlib
import math
import statistics
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
import torch

from foretell.core.generation import Sampling
from foretell.llm.draws import Draw
from foretell.llm.engine import Engine, EngineSettings
from foretell.llm.executors.base import Work
from foretell.llm.executors.torch import TorchSettings, open_torch
from foretell.llm.families import read_config
from foretell.llm.sampling import Sampler
from foretell.llm.scheduler import Budget
from foretell.llm.sequence import Sequence
from foretell.llm.torch_graphs import Decoded

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
BUDGET = Budget(512, 4096)
"""`opening`'s on a GPU, which reads the prompts of 32 sequences in one step: they all decode together."""


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
        shape = self._shapes[name]
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        random = np.random.Generator(np.random.SFC64(self._seeds[name]))
        return random.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[1]))


def timed(step: Callable[[], Any], seconds: float) -> float:
    """Seconds of a step, the median of those that fit in `seconds`; the device is waited for each time."""
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
        self.config = {"model_type": "llama", "rms_norm_eps": 1e-5, **SHAPES[name]}
        self.weights = RandomWeights(self.config)
        self._arguments = arguments
        context = min(arguments.context, self.config["max_position_embeddings"])
        settings = TorchSettings(max(arguments.sequences), context, 0, arguments.device, arguments.dtype)
        self.executor = open_torch(read_config(self.config, context), self.weights, settings)

    def filled(self, count: int, length: int = PROMPT) -> list[Any]:
        """The works that decode one token of `count` sequences, each of `length` tokens."""
        for slot in range(count):
            self.executor.run([Work(slot, 0, tokens(length, slot, self.config), 0)])
        return [Work(slot, length, [slot + 1], 1) for slot in range(count)]

    def first(self) -> float:
        """Seconds until the first token of one sequence is there: the capture of a graph, and what CUDA loads."""
        works = self.filled(1)
        start = time.perf_counter()
        self.executor.run(works).best  # noqa: B018
        return round(time.perf_counter() - start, 2)

    def eager(self) -> None:
        """From here on a step is the decoder's own layers, kernel by kernel."""
        executor: Any = self.executor
        decoder = executor._decoder

        def plain(size: int, reach: int) -> Callable[..., Any]:
            def step(inputs: Any, wanted: list[int]) -> Any:
                return Decoded(decoder.logits(executor._hidden(inputs.to(decoder.device), reach)[wanted]))

            return step

        executor._captured_step = plain

    def kernels(self) -> dict[str, Any]:
        """Of a decoding step of all sequences: microseconds and launches of each kernel, the dearest first."""
        works = self.filled(max(self._arguments.sequences))
        activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        for _ in range(3):
            self.executor.run(works).best  # noqa: B018
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(10):
                self.executor.run(works).best  # noqa: B018
            torch.cuda.synchronize()
        on_device = [
            (event.self_device_time_total / 10, event.count / 10, event.key[:60])
            for event in profile.key_averages()
            if event.self_device_time_total and str(event.device_type).endswith("CUDA")
        ]
        on_device.sort(reverse=True)
        found: dict[str, Any] = {name: [round(time, 1), count] for time, count, name in on_device[:14]}
        return {"all": [round(sum(row[0] for row in on_device), 1), sum(row[1] for row in on_device)], **found}

    def decoding(self, length: int = PROMPT, share: float = 1.0) -> dict[int, float]:
        """Tokens a second by the number of sequences, the best token of each on the host."""
        found = {}
        for count in self._arguments.sequences:
            works = self.filled(count, length)
            found[count] = round(
                count / timed(lambda w=works: self.executor.run(w).best, share * self._arguments.seconds), 1
            )
        return found

    def sampling(self, temperature: float, top_p: float) -> dict[int, float]:
        """The same, a token of each drawn."""
        found = {}
        for count in self._arguments.sequences:
            works = self.filled(count)
            draws = [Draw(row, (row + 0.5) / count, temperature, 0.0, 0, top_p) for row in range(count)]
            step = partial(self._draw, works, draws)
            found[count] = round(count / timed(step, 0.5 * self._arguments.seconds), 1)
        return found

    def _draw(self, works: list[Work], draws: list[Draw]) -> list[int]:
        return self.executor.run(works).drawn(draws)

    def reading(self) -> dict[int, float]:
        """Tokens a second of a prompt of so many tokens, in one chunk."""
        found = {}
        for length in (each for each in (128, 512, 2000) if each < self.executor.shape.context):
            work = Work(0, 0, tokens(length, 1, self.config), 1)
            found[length] = round(length / timed(lambda w=work: self.executor.run([w]).best, self._arguments.seconds))
        return found

    def greedy(self, count: int, steps: int) -> list[list[int]]:
        """What `count` sequences say, `steps` tokens each."""
        said = [[work.tokens[0]] for work in self.filled(count)]
        for step in range(steps):
            works = [Work(slot, PROMPT + step, own[-1:], 1) for slot, own in enumerate(said)]
            for own, token in zip(said, self.executor.run(works).best.tolist(), strict=True):
                own.append(token)
        return said

    def engine(self, sampling: Sampling) -> dict[int, float]:
        """Generated tokens a second of the whole engine: scheduler, executor, sampling, books."""
        return {count: self._engine(count, sampling) for count in self._arguments.sequences}

    def _engine(self, count: int, sampling: Sampling) -> float:
        engine, length = Engine(self.executor, EngineSettings(BUDGET)), self._arguments.tokens
        for number in range(count):
            prompt = tokens(PROMPT, number, self.config)
            sampler = Sampler(sampling, number, prompt)
            engine.add(Sequence(number, 0, prompt, sampler, (), length))
        generated, started = 0, 0.0
        while emitted := engine.step():
            if not started and engine.load().waiting == 0 and len(emitted) == count:
                started = time.perf_counter()  # all decode
            elif started:
                generated += sum(len(each.tokens) for each in emitted)
        return round(generated / (time.perf_counter() - started), 1)


def tokens(count: int, seed: int, config: dict[str, Any]) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(1, config["vocab_size"], count).tolist()
    return drawn


def distance(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """How far logits and greedy texts of 4 prompts lie from float32 on the CPU, by what is computed in."""
    few = {**vars(arguments), "sequences": [4], "context": min(256, arguments.context)}
    found: dict[str, Any] = {}
    theirs: Any = None
    for device, dtype in (("cpu", "float32"), (arguments.device, "float32"), (arguments.device, "auto")):
        model = Model(name, argparse.Namespace(**{**few, "device": device, "dtype": dtype}))
        prompts = [Work(0, 0, tokens(PROMPT, seed, model.config), 8) for seed in range(4)]
        logits = np.concatenate([model.executor.run([work]).logits for work in prompts])
        decoded = model.executor.run(model.filled(4)).logits.copy()
        texts = model.greedy(4, 16)
        model.executor.close()
        if theirs is None:
            theirs = logits, decoded, texts
            continue
        found[f"{device} {dtype}"] = {
            "relative distance": apart(logits, theirs[0]),
            "of a decoding step": apart(decoded, theirs[1]),
            **agreement(texts, theirs[2]),
        }
    return found


def apart(mine: Any, theirs: Any) -> float:
    """The distance of logits from others, in parts of their norm."""
    return float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))


def agreement(graphs: list[list[int]], eager: list[list[int]]) -> dict[str, Any]:
    """How many texts of both are equal, and where each differs first."""
    same = [a == b for a, b in zip(graphs, eager, strict=True)]
    first = [
        next((i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), -1)
        for a, b in zip(graphs, eager, strict=True)
    ]
    return {"texts": len(same), "equal": sum(same), "first difference": first}


def beside(model: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """transformers' generate with the same weights: new tokens a second, the prompt's time taken off."""
    transformers: Any = importlib.import_module("transformers")

    device = "cuda" if torch.cuda.is_available() and arguments.device != "cpu" else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    config = transformers.LlamaConfig(**{k: v for k, v in model.config.items() if k != "model_type"})
    with torch.device(device):
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
                    prompts,
                    attention_mask=torch.ones_like(prompts),
                    do_sample=False,
                    min_new_tokens=new,
                    max_new_tokens=new,
                    pad_token_id=0,
                )

            run()
            start = time.perf_counter()
            said = run()
            said.cpu()
            took.append(time.perf_counter() - start)
        found[str(count)] = round(count * arguments.tokens / (took[1] - took[0]), 1)
    return found


def parts(model: Model, arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What is measured of a model, in this order: nothing is a captured graph any more from "eager" on."""
    count = max(arguments.sequences)
    longer = min(1000, arguments.context - 2)
    said: dict[str, Any] = {}

    def say(name: str) -> str:
        said[name] = model.greedy(count, 64), model.executor.run(model.filled(count)).logits.copy()
        return f"{count} texts"

    def compare() -> dict[str, Any]:
        (texts, logits), (other_texts, other_logits) = said["graphs"], said["eager"]
        return {"relative distance": apart(logits, other_logits), **agreement(texts, other_texts)}

    return {
        "first decode s": model.first,
        "decode tokens/s, graphs": model.decoding,
        "GPU memory MB": lambda: torch.cuda.max_memory_allocated() // 2**20,
        f"decode tokens/s, graphs, {longer} held": lambda: model.decoding(longer),
        "kernels, µs and launches of a step": model.kernels,
        "decode tokens/s, graphs, temperature 1": lambda: model.sampling(1.0, 1.0),
        "decode tokens/s, graphs, temperature 0.2, top-p 0.9": lambda: model.sampling(0.2, 0.9),
        "prompt tokens/s": model.reading,
        "engine tokens/s, greedy": lambda: model.engine(Sampling(temperature=0.0)),
        "engine tokens/s, temperature 1": lambda: model.engine(Sampling(temperature=1.0)),
        "engine tokens/s, temperature 0.2, top-p 0.9": lambda: model.engine(Sampling(temperature=0.2, top_p=0.9)),
        "greedy, graphs": lambda: say("graphs"),
        "eager from here": model.eager,
        "decode tokens/s, eager": lambda: model.decoding(share=0.5),
        "greedy, eager": lambda: say("eager"),
        "graphs against eager": compare,
        "transformers generate tokens/s": lambda: beside(model, arguments),
    }
