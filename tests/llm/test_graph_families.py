"""What configs mean, in both spellings of transformers 4 and 5, and what is refused and how."""

import json
import math

import numpy as np
import pytest

from foretell.core.errors import ConfigError, PackageError, Unsupported
from foretell.llm.families import FAMILIES, read_config
from foretell.llm.rotary import rotary_tables
from foretell.llm.safetensors_weights import SafetensorsWeights
from foretell.llm.spec import Rotary, RotaryScaling

BASE = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA = {"model_type": "llama", **BASE}


def test_an_unknown_architecture_is_told_which_are_known_and_what_else_there_is():
    with pytest.raises(Unsupported) as caught:
        read_config({"model_type": "qwen3_moe", **BASE})
    assert all(family in caught.value.message for family in FAMILIES)
    assert '"qwen3_moe"' in caught.value.message and "onnxruntime_genai.models.builder" in caught.value.message
    with pytest.raises(Unsupported, match="MambaForCausalLM"):
        read_config({"architectures": ["MambaForCausalLM"]})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_hidden_layers": None}, PackageError, '"num_hidden_layers" should be a positive number'),
        ({"vocab_size": "many"}, PackageError, '"vocab_size"'),
        ({"hidden_act": "relu"}, Unsupported, 'activation "relu"'),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, Unsupported, "rotary scaling yarn"),
        ({"rope_scaling": {"type": "linear"}}, PackageError, "rotary scaling linear lacks 'factor'"),
        ({"quantization_config": {"quant_method": "gptq"}}, Unsupported, "gptq already"),
        ({"rope_scaling": "linear"}, PackageError, "of the wrong kind.*'str' object"),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, PackageError, "of the wrong kind.*'two'"),
        ({"head_dim": "wide"}, PackageError, "of the wrong kind.*'wide'"),
        ({"quantization_config": "gptq"}, PackageError, "of the wrong kind"),
        ({"num_key_value_heads": 3}, PackageError, "4 attention heads cannot share 3"),
        (
            {"model_type": "mistral", "sliding_window": 8, "layer_types": ["sliding_attention"] * 2},
            PackageError,
            '"layer_types" has 2 entries for 4 layers',
        ),
        ({"use_bidirectional_attention": True}, Unsupported, "look backwards"),
    ],
)
def test_what_the_graph_cannot_do_is_refused_by_name(change, error, message):
    with pytest.raises(error, match=message):
        read_config({**LLAMA, **change})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
        ),
        ({"rope_theta": 1e6}, {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
        ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    ],
)
def test_rotary_parameters_are_read_as_transformers_4_and_5_write_them(old, new):
    assert read_config({**LLAMA, **old}).rotary == read_config({**LLAMA, **new}).rotary


def test_gemma3_is_read_from_the_text_part_of_a_multimodal_config_with_its_defaults():
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    scaling = {"factor": 8.0, "rope_type": "linear"}
    spec = read_config(
        {"model_type": "gemma3", "text_config": {**text, "rope_scaling": scaling, "sliding_window": 1024}}
    )
    assert (spec.attention.heads, spec.kv_heads, spec.head_dim, spec.vocab) == (8, 4, 256, 262208)
    assert spec.attention.windows[:6] == (1024,) * 5 + (0,) and spec.layers == 34
    assert spec.rotary == Rotary(1e6, 256, RotaryScaling("linear", factor=8.0))
    assert spec.local_rotary == Rotary(1e4, 256)
    assert spec.output.tied and spec.embedding_scale == math.sqrt(2560) and spec.norm.post


def test_windows_as_wide_as_the_context_are_none():
    assert read_config({"model_type": "mistral", **BASE, "sliding_window": 512}).attention.windows == (0,) * 4
    assert read_config({"model_type": "mistral", **BASE, "sliding_window": 511}).attention.windows == (511,) * 4


def test_longrope_keeps_to_the_original_context_unless_asked():
    config = {
        "model_type": "phi3",
        **BASE,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 128,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    }
    assert read_config(config).context == 128
    spec = read_config(config, context=1000)
    assert spec.context == 1000 and spec.rotary.scaling.attention_factor == math.sqrt(1 + math.log(32) / math.log(128))
    short, long = rotary_tables(spec.rotary, 128)[0], rotary_tables(spec.rotary, 129)[0]
    assert np.allclose(short[1:64], long[2:128:2], atol=1e-6)


def save(path, tensors, cut=0):
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        raw = array.tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    whole = len(text).to_bytes(8, "little") + text + data
    path.write_bytes(whole[: len(whole) - cut])


def test_safetensors_of_each_float_kind_are_read_and_multimodal_names_made_plain(tmp_path):
    values = np.array([[1.5, -2.25], [0.5, 3.0]], np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    tensors = {
        "a": ("F32", values),
        "b": ("F16", values.astype(np.float16)),
        "c": ("BF16", upper),
        "language_model.model.norm.weight": ("F64", values.astype(np.float64)),
        "model.language_model.d": ("F32", values),
    }
    save(tmp_path / "model.safetensors", tensors)
    weights = SafetensorsWeights(tmp_path)
    assert sorted(weights.names()) == ["a", "b", "c", "model.d", "model.norm.weight"]
    for name in weights.names():
        assert weights.get(name).dtype == np.float32 and np.array_equal(weights.get(name), values)


def test_broken_or_missing_safetensors_say_what_is_wrong(tmp_path):
    with pytest.raises(PackageError, match="convert them to safetensors"):
        SafetensorsWeights(tmp_path)
    path = tmp_path / "model.safetensors"
    save(path, {"weight": ("F32", np.zeros(4, np.float32)), "codes": ("I8", np.zeros(4, np.int8))})
    weights = SafetensorsWeights(tmp_path)
    with pytest.raises(PackageError, match=r'no weight "wieght".*Did you mean "weight"'):
        weights.get("wieght")
    with pytest.raises(PackageError, match="is I8"):
        weights.get("codes")
    save(path, {"weight": ("F32", np.zeros(4, np.float32))}, cut=3)
    with pytest.raises(PackageError, match='corrupt at "weight"'):
        SafetensorsWeights(tmp_path)
    for content in (b"", b"\x08", b"\xff" * 40, (4).to_bytes(8, "little") + b"[1]]", (2).to_bytes(8, "little") + b"[]"):
        path.write_bytes(content)
        with pytest.raises(PackageError, match="not a readable safetensors file"):
            SafetensorsWeights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    with pytest.raises(PackageError, match="not in the folder"):
        SafetensorsWeights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(PackageError, match="not an index"):
        SafetensorsWeights(tmp_path)


class Zeros:
    """Weights of whatever shape is told."""

    def __init__(self, shape):
        self.shape = shape

    def names(self):
        return ()

    def get(self, name):
        return np.zeros(self.shape, np.float32)


def test_weights_that_disagree_with_the_config_and_block_sizes_without_kernels_are_refused(tmp_path):
    graph = pytest.importorskip("foretell.llm.graph", reason="the graph is drawn with onnx", exc_type=ImportError)
    spec = read_config(LLAMA)
    with pytest.raises(PackageError, match=r"model.embed_tokens.weight.*\[100, 63\].*\[100, 64\]"):
        graph.build(spec, Zeros((100, 63)), tmp_path)
    with pytest.raises(ConfigError, match="block size 48"):
        graph.build(spec, Zeros((100, 64)), tmp_path, block_size=48)
