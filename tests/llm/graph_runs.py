"""Tiny random checkpoints of transformers, our graphs of them, and a plain way to run such a graph."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

from foretell.llm.families import read_config
from foretell.llm.graph import build
from foretell.llm.safetensors_weights import SafetensorsWeights


class Decoder:
    """Runs a graph over slots of one buffer, as an executor does."""

    def __init__(self, folder: Path, slots: int = 1, room: int = 64) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        inputs = {i.name: i for i in self.session.get_inputs()}
        self.cache = {
            name: np.zeros((slots, i.shape[1], room, i.shape[3]), np.float32)
            for name, i in inputs.items()
            if name.startswith("past")
        }

    def run(self, tokens, past=0, rows=None) -> np.ndarray:
        """Logits [m, vocab] of `rows` (default: all) after running tokens [b, s] behind `past` (a number or [b])."""
        tokens = np.asarray(tokens, np.int64)
        batch, count = tokens.shape
        lengths = np.broadcast_to(np.asarray(past), (batch,)) + count
        feeds = {
            "input_ids": tokens,
            "attention_mask": (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64),
            "logits_rows": np.arange(batch * count) if rows is None else np.asarray(rows, np.int64),
        }
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, buffer in self.cache.items():
            part = buffer[:batch]
            kind = name.replace("past_key_values", "present")
            binding.bind_input(name, "cpu", 0, np.float32, part.shape, part.ctypes.data)
            binding.bind_output(kind, "cpu", 0, np.float32, part.shape, part.ctypes.data)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()


def checkpoint(folder: Path, config, seed: int = 0, dtype: str = "float32"):
    """A randomly initialised model of `config`, saved to `folder` as transformers saves it."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # norms and biases start as constants, which would hide a misread one
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.mul_(4.0)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if dtype == "float32":
        return model
    # casting the model rounded its rotary frequencies too; a loaded one has them whole
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def graph_of(folder: Path, target: Path, context: int | None = None, **options) -> Path:
    """Build the graph of a checkpoint's folder into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    spec = read_config(json.loads((folder / "config.json").read_text()), context)
    build(spec, SafetensorsWeights(folder), target, **options)
    return target


def reference(model, tokens) -> np.ndarray:
    """transformers' logits [b, s, vocab]."""
    import torch

    with torch.no_grad():
        return model(torch.as_tensor(np.asarray(tokens)), use_cache=False).logits.numpy()
