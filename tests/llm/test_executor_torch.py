"""The torch executor knows every family that the graph knows, and says what ONNX Runtime says."""

import json
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="the executor runs on torch")
transformers = pytest.importorskip("transformers", reason="transformers makes the tiny checkpoints")
pytest.importorskip("onnx", reason="the graph is drawn with onnx")

from foretell.core.errors import ConfigError, PackageError  # noqa: E402
from foretell.llm.executors.base import Work  # noqa: E402
from foretell.llm.executors.onnx import OnnxSettings, open_onnx  # noqa: E402
from foretell.llm.executors.torch import TorchSettings, open_torch  # noqa: E402
from foretell.llm.families import read_config  # noqa: E402
from foretell.llm.safetensors_weights import SafetensorsWeights  # noqa: E402
from tests.llm.executor_world import some_tokens  # noqa: E402
from tests.llm.graph_runs import checkpoint, graph_of  # noqa: E402
from tests.llm.test_graph_parity import CASES, TINY, config  # noqa: E402


def opened(folder, **settings):
    spec = read_config(json.loads((folder / "config.json").read_text()))
    return open_torch(spec, SafetensorsWeights(folder), TorchSettings(3, 30, 1, "cpu", **settings))


@pytest.mark.parametrize("name", CASES)
def test_a_family_says_what_its_graph_says(tmp_path, name):
    checkpoint(tmp_path / "hf", config(name))
    graph_of(tmp_path / "hf", tmp_path / "graph", precision="fp32")
    executors = [opened(tmp_path / "hf"), open_onnx(tmp_path / "graph" / "model.onnx", OnnxSettings(3, 30, 1))]
    prompts = [some_tokens(20, 1), some_tokens(9, 2)]
    prompts = [[token % TINY["vocab_size"] for token in prompt] for prompt in prompts]
    works = [
        [Work(0, 0, prompts[0], 20), Work(2, 0, prompts[1], 1)],
        [Work(0, 20, [3], 1), Work(2, 9, [4], 1)],  # slot 1 is idle between them
        [Work(0, 21, [3, 5, 8], 3), Work(2, 10, [4, 1, 0], 3)],
    ]
    for step in works:
        mine, theirs = (executor.run(step).logits.copy() for executor in executors)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-3 * max(1.0, float(np.abs(theirs).max())))
    for executor in executors:
        executor.close()


@pytest.fixture
def folder(tmp_path):
    checkpoint(tmp_path, config("llama"))
    return tmp_path


def test_half_precision_stays_near_full(folder):
    tokens = [token % TINY["vocab_size"] for token in some_tokens(12)]
    full, half = (opened(folder, dtype=dtype).run([Work(0, 0, tokens, 12)]).logits for dtype in ("float32", "bfloat16"))
    assert np.abs(full - half).max() < 0.1 * np.abs(full).max()


def test_more_context_than_the_model_has_is_refused(folder):
    spec = read_config(json.loads((folder / "config.json").read_text()))
    with pytest.raises(ConfigError, match="at most 64 tokens"):
        open_torch(spec, SafetensorsWeights(folder), TorchSettings(1, 65))
    with pytest.raises(ConfigError, match="CUDA"):
        open_torch(spec, SafetensorsWeights(folder), TorchSettings(1, 64, device="cuda"))


def test_a_missing_weight_is_named(folder):
    spec = read_config(json.loads((folder / "config.json").read_text()))

    spec = msgspec.structs.replace(
        spec, attention=msgspec.structs.replace(spec.attention, windows=(*spec.attention.windows, 0))
    )
    with pytest.raises(PackageError, match=r"model\.layers\.3\.input_layernorm"):
        open_torch(spec, SafetensorsWeights(folder), TorchSettings(1, 16, device="cpu"))


def test_kernels_that_do_not_run_here_leave_the_layers(folder, caplog):
    executor = opened(folder)
    executor._joined = SimpleNamespace(ROWS=64)  # neither can anything be captured on a CPU
    executor.capture()
    assert "its kernels don't run here" in caplog.text
    assert executor._joined is None
    assert executor.run([Work(0, 0, [1, 2, 3], 1)]).best.shape == (1,)
