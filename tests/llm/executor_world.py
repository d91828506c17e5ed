"""Executors of every kind over one tiny random Llama, and a folder shaped as onnxruntime-genai's builder makes them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from foretell.llm.executors.base import Executor, Shape, Work
from foretell.llm.executors.fake import FakeExecutor
from foretell.llm.executors.onnx import OnnxSettings, open_onnx
from foretell.llm.families import read_config
from foretell.llm.safetensors_weights import SafetensorsWeights
from tests.llm import graph_runs

SLOTS, CONTEXT = 6, 48
TINY = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}


def llama(folder: Path):
    """A checkpoint of a tiny random Llama in `folder`/hf and its graph in `folder`/ours; transformers' model."""
    import transformers

    model = graph_runs.checkpoint(folder / "hf", transformers.LlamaConfig(**TINY))
    graph_runs.graph_of(folder / "hf", folder / "ours", precision="fp32")
    as_builder_makes_it(folder / "ours" / "model.onnx", folder / "builder")
    return model


def as_builder_makes_it(ours: Path, target: Path) -> None:
    """The same decoder with the logits of all positions in float16, and positions as an input that nobody reads."""
    model = onnx.load(ours)
    graph = model.graph
    gathers = [node for node in graph.node if node.op_type == "Gather" and node.input[1] == "logits_rows"]
    makers = {output: node for node in graph.node for output in node.output}
    for gather in gathers:
        for node in graph.node:
            node.input[:] = [gather.input[0] if name == gather.output[0] else name for name in node.input]
        graph.node.remove(gather)
    last = makers["logits"]
    last.output[0] = "all"
    helper = onnx.helper
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1], np.int64), "any"))
    graph.node.extend(
        [
            helper.make_node("Shape", ["input_ids"], ["batch_tokens"]),
            helper.make_node("Concat", ["batch_tokens", "any"], ["whole"], axis=0),
            helper.make_node("Reshape", ["all", "whole"], ["wide"]),
            helper.make_node("Cast", ["wide"], ["logits"], to=onnx.TensorProto.FLOAT16),
        ]
    )
    inputs = [i for i in graph.input if i.name != "logits_rows"]
    inputs.append(onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, ["batch", "tokens"]))
    del graph.input[:]
    graph.input.extend(inputs)
    shape = ["batch", "tokens", TINY["vocab_size"]]
    for output in graph.output:
        if output.name == "logits":
            output.CopyFrom(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT16, shape))
    del model.metadata_props[:]
    target.mkdir(parents=True)
    onnx.save(model, target / "model.onnx")


def _fake(folder: Path) -> Executor:
    return FakeExecutor(Shape(TINY["vocab_size"], SLOTS, CONTEXT, 8))


def _onnx(folder: Path) -> Executor:
    return open_onnx(folder / "ours" / "model.onnx", OnnxSettings(SLOTS, CONTEXT, threads=1, spinning=False))


def _builder(folder: Path) -> Executor:
    return open_onnx(folder / "builder" / "model.onnx", OnnxSettings(SLOTS, CONTEXT, threads=1, spinning=False))


def _torch(folder: Path) -> Executor:
    # only the kind that needs torch imports it
    from foretell.llm.executors.torch import TorchSettings, open_torch

    spec = read_config(json.loads((folder / "hf" / "config.json").read_text()))
    weights = SafetensorsWeights(folder / "hf")
    return open_torch(spec, weights, TorchSettings(SLOTS, CONTEXT, threads=1, device="cpu"))


KINDS: dict[str, tuple[Callable[[Path], Executor], float]] = {
    "fake": (_fake, 0.0),
    "onnx": (_onnx, 1e-4),
    "builder": (_builder, 1e-2),
    "torch": (_torch, 1e-4),
}
"""How to open each executor, and how far two ways to the same logits may lie apart."""


def fill(executor: Executor, slot: int, tokens, chunk: int = 1000, past: int = 0) -> None:
    """Run tokens through a slot in chunks, wanting no scores."""
    for start in range(0, len(tokens), chunk):
        executor.run([Work(slot, past + start, list(tokens[start : start + chunk]), 0)])


def logits(executor: Executor, *works: Work) -> np.ndarray:
    """A copy of the logits of the works' wanted positions."""
    return executor.run(works).logits.copy()


def some_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, TINY["vocab_size"], count).tolist()
