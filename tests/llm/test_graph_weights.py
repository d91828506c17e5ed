"""The graph that foretell draws gives spec and weights back: what another executor runs is the package's own model."""

import json

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="the executor runs on torch")
pytest.importorskip("transformers", reason="transformers makes the tiny checkpoints")

from foretell.core.errors import PackageError
from foretell.llm.executors.base import Work
from foretell.llm.executors.onnx import OnnxSettings, open_onnx
from foretell.llm.executors.torch import TorchSettings, open_torch
from foretell.llm.families import read_config
from foretell.llm.graph_weights import read_graph
from foretell.llm.safetensors_weights import SafetensorsWeights
from tests.llm.executor_world import as_builder_makes_it, some_tokens
from tests.llm.graph_runs import checkpoint, graph_of
from tests.llm.test_graph_parity import CASES, TINY, config

TOKENS = [token % TINY["vocab_size"] for token in some_tokens(20, 1)]
STEPS = [[Work(0, 0, TOKENS, 20)], [Work(0, 20, [3], 1)]]


def graph(tmp_path, name="llama", precision="fp32"):
    checkpoint(tmp_path / "hf", config(name))
    return graph_of(tmp_path / "hf", tmp_path / "graph", precision=precision) / "model.onnx"


def logits(executor):
    found = [executor.run(step).logits.copy() for step in STEPS]
    executor.close()
    return np.concatenate(found)


@pytest.mark.parametrize("name", CASES)
def test_torch_runs_the_graph_of_every_family(tmp_path, name):
    model = graph(tmp_path, name)
    theirs = logits(open_onnx(model, OnnxSettings(1, 30, 1)))
    mine = logits(open_torch(*read_graph(model), TorchSettings(1, 30, 1, "cpu")))
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-3 * max(1.0, float(np.abs(theirs).max())))


@pytest.mark.parametrize(("precision", "distance"), [("fp16", 1e-3), ("int8", 0.03), ("int4", 0.2)])
@pytest.mark.parametrize("name", ["llama", "llama tied", "llama biases", "qwen3"])
def test_weights_come_back_as_near_as_the_precision_keeps_them(tmp_path, name, precision, distance):
    model = graph(tmp_path, name, precision)
    original = SafetensorsWeights(tmp_path / "hf")
    _, weights = read_graph(model)
    assert any(name.endswith("qkv_proj.weight") for name in weights.names())
    for found in weights.names():
        parts = {"qkv_proj": [f"{kind}_proj" for kind in "qkv"], "gate_up_proj": ["gate_proj", "up_proj"]}
        *layer, kind, ending = found.split(".")
        whole = np.concatenate([original.get(".".join([*layer, p, ending])) for p in parts.get(kind, [kind])])
        assert weights.get(found).shape == whole.shape
        assert np.abs(weights.get(found) - whole).max() <= distance * np.abs(whole).max(), found


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_torch_says_of_small_integers_what_onnx_runtime_says_but_for_the_rounding_of_inputs(tmp_path, precision):
    model = graph(tmp_path, "llama", precision)
    theirs = logits(open_onnx(model, OnnxSettings(1, 30, 1)))
    mine = logits(open_torch(*read_graph(model), TorchSettings(1, 30, 1, "cpu")))
    assert np.linalg.norm(mine - theirs) < 0.1 * np.linalg.norm(theirs)


def test_the_spec_is_what_the_config_says(tmp_path):
    spec, _ = read_graph(graph(tmp_path, "llama llama3"))
    told = read_config(json.loads((tmp_path / "hf" / "config.json").read_text()))
    assert (spec.rotary, spec.attention, spec.output) == (told.rotary, told.attention, told.output)


def test_what_foretell_did_not_draw_is_refused(tmp_path):
    model = graph(tmp_path)
    as_builder_makes_it(model, tmp_path / "builder")
    strange = onnx.load(tmp_path / "builder" / "model.onnx")
    onnx.save(strange, tmp_path / "strange.onnx")
    with pytest.raises(PackageError, match="only graphs that foretell drew"):
        read_graph(tmp_path / "builder" / "model.onnx")
    onnx.helper.set_model_props(strange, {"foretell.decoder": '{"layers": 3}'})
    onnx.save(strange, tmp_path / "strange.onnx")
    with pytest.raises(PackageError, match="describe no decoder"):
        read_graph(tmp_path / "strange.onnx")


def test_a_graph_cut_short_is_named(tmp_path):
    model = graph(tmp_path)
    _, weights = read_graph(model)
    with pytest.raises(PackageError, match=r'no weight "lm_hea\.weight" in the graph.*lm_head'):
        weights.get("lm_hea.weight")
    data = model.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(PackageError, match=r"model\.onnx\.data: cut short"):
        open_torch(*read_graph(model), TorchSettings(1, 30, 1, "cpu"))
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(PackageError, match="cut short"):
        read_graph(model)
