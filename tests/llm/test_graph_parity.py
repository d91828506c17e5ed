"""The graphs compute what transformers computes: every family, every rotary stretching, windows, biases, ties."""

import numpy as np
import pytest

from tests.llm.graph_runs import Decoder, checkpoint, graph_of, reference

transformers = pytest.importorskip("transformers", reason="transformers is the reference")
pytest.importorskip("torch", reason="transformers runs on torch")
pytest.importorskip("onnx", reason="the graph is drawn with onnx")

TINY = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LONG = {"short_factor": [1.0 + i / 4 for i in range(8)], "long_factor": [1.5 + i for i in range(8)]}


def config(name: str):
    """One tiny configuration a case, as its family's own class makes it."""
    t = transformers
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    longrope = {"rope_type": "longrope", **LONG, "original_max_position_embeddings": 32}
    gemma = {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24}
    made = {
        "llama": lambda: t.LlamaConfig(**TINY),
        "llama tied": lambda: t.LlamaConfig(**TINY, tie_word_embeddings=True),
        "llama biases": lambda: t.LlamaConfig(**TINY, attention_bias=True, mlp_bias=True),
        "llama linear": lambda: t.LlamaConfig(**TINY, rope_scaling={"rope_type": "linear", "factor": 2.5}),
        "llama llama3": lambda: t.LlamaConfig(**TINY, rope_scaling={"rope_type": "llama3", **llama3}),
        "llama wide heads": lambda: t.LlamaConfig(**TINY, head_dim=32, rope_theta=5e5),
        "mistral": lambda: t.MistralConfig(**TINY, sliding_window=None),
        "mistral window": lambda: t.MistralConfig(**TINY, sliding_window=6),
        "qwen2": lambda: t.Qwen2Config(**TINY, rope_theta=1e6),
        "qwen2 window": lambda: t.Qwen2Config(
            **TINY, use_sliding_window=True, sliding_window=6, max_window_layers=1, tie_word_embeddings=True
        ),
        "qwen3": lambda: t.Qwen3Config(**TINY, head_dim=32),
        "gemma3": lambda: t.Gemma3TextConfig(
            **TINY, **gemma, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
        ),
        "gemma3 wide window": lambda: t.Gemma3TextConfig(
            **TINY,
            **{**gemma, "sliding_window": TINY["max_position_embeddings"]},
            layer_types=["sliding_attention"] * 3,
        ),
        "gemma3 linear": lambda: t.Gemma3TextConfig(
            **TINY,
            **gemma,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        "gemma2": lambda: t.Gemma2Config(
            **TINY, **gemma, final_logit_softcapping=3.0, attn_logit_softcapping=2.0, layer_types=None
        ),
        "phi3": lambda: t.Phi3Config(**TINY, pad_token_id=0, eos_token_id=1),
        "phi3 window": lambda: t.Phi3Config(**TINY, sliding_window=7, pad_token_id=0, eos_token_id=1),
        "phi3 partial": lambda: t.Phi3Config(
            **{**TINY, "hidden_size": 128}, partial_rotary_factor=0.5, pad_token_id=0, eos_token_id=1
        ),
        "phi3 longrope": lambda: t.Phi3Config(
            **TINY,
            rope_scaling=longrope,
            original_max_position_embeddings=32,
            pad_token_id=0,
            eos_token_id=1,
        ),
    }
    return made if name == "*" else made[name]()


CASES = list(config("*")) if transformers else []
TOKENS = np.random.default_rng(3).integers(0, 96, (1, 24))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Checkpoints by case, made once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("checkpoint")
            made[name] = folder, checkpoint(folder, config(name))
        return made[name]

    return get


def relative(found, expected) -> float:
    """The largest difference, in units of the expected logits' spread."""
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.parametrize("name", CASES)
def test_fp32_gives_transformers_logits_from_whole_prompts_chunks_and_single_tokens(name, models, tmp_path):
    folder, model = models(name)
    expected = reference(model, TOKENS)[0]
    decoder = Decoder(graph_of(folder, tmp_path, precision="fp32"))
    assert relative(decoder.run(TOKENS), expected) < 1e-4
    parts = [decoder.run(TOKENS[:, :9], 0), decoder.run(TOKENS[:, 9:16], 9)]
    parts += [decoder.run(TOKENS[:, i : i + 1], i) for i in range(16, 24)]
    assert relative(np.concatenate(parts), expected) < 1e-4


# what rounding costs random weights, whose logits have no structure that would hide it; trained ones lose far less
DISTANCE = {"fp16": 2e-2, "int8": 0.25, "int4": 0.6}


def mean_distance(found, expected) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())


@pytest.mark.parametrize("precision", DISTANCE)
@pytest.mark.parametrize("name", ["llama", "llama biases", "llama tied", "qwen2", "qwen3", "gemma3", "phi3"])
def test_fewer_bits_stay_within_their_distance(name, precision, models, tmp_path):
    folder, model = models(name)
    expected = reference(model, TOKENS)[0]
    decoder = Decoder(graph_of(folder, tmp_path, precision=precision))
    found = decoder.run(TOKENS)
    assert mean_distance(found, expected) < DISTANCE[precision]
    decoder = Decoder(graph_of(folder, tmp_path, precision=precision))
    parts = [decoder.run(TOKENS[:, :16], 0), *(decoder.run(TOKENS[:, i : i + 1], i) for i in range(16, 24))]
    assert mean_distance(np.concatenate(parts), found) < DISTANCE[precision] / 2


@pytest.mark.parametrize("block_size", [16, 64, 128])
def test_blocks_may_be_larger_than_what_divides_the_width(block_size, models, tmp_path):
    folder, model = models("llama")
    decoder = Decoder(graph_of(folder, tmp_path, precision="int4", block_size=block_size))
    assert mean_distance(decoder.run(TOKENS), reference(model, TOKENS)[0]) < DISTANCE["int4"]


def test_the_output_layer_has_a_precision_of_its_own(models, tmp_path):
    folder, model = models("llama tied")
    expected = reference(model, TOKENS)[0]
    found = {
        output: mean_distance(
            Decoder(graph_of(folder, tmp_path / output, precision="fp32", output=output)).run(TOKENS), expected
        )
        for output in ("int4", "int8", "fp16")
    }
    assert found["int4"] > found["int8"] > found["fp16"] > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_checkpoints_are_read(dtype, tmp_path):
    model = checkpoint(tmp_path / "model", config("llama"), dtype=dtype)
    decoder = Decoder(graph_of(tmp_path / "model", tmp_path / "graph", precision="fp32"))
    assert relative(decoder.run(TOKENS), reference(model, TOKENS)[0]) < 1e-4


def test_sharded_checkpoints_are_read(models, tmp_path):
    _, model = models("llama")
    model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    decoder = Decoder(graph_of(tmp_path / "model", tmp_path / "graph", precision="fp32"))
    assert relative(decoder.run(TOKENS), reference(model, TOKENS)[0]) < 1e-4


def test_contexts_beyond_the_original_one_take_longropes_long_factors(models, tmp_path):
    folder, model = models("phi3 longrope")
    tokens = np.random.default_rng(5).integers(0, 96, (1, 40))
    decoder = Decoder(graph_of(folder, tmp_path, context=64, precision="fp32"))
    assert relative(decoder.run(tokens), reference(model, tokens)[0]) < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_ragged_batches_give_each_sequence_what_it_gets_alone(precision, models, tmp_path):
    folder, _ = models("gemma3")
    graph = graph_of(folder, tmp_path, precision=precision)
    lengths, together, alone = [3, 17, 9], Decoder(graph, slots=3), []
    for slot, length in enumerate(lengths):
        single = Decoder(graph)
        single.run(TOKENS[:, :length])
        for name, buffer in together.cache.items():
            buffer[slot] = single.cache[name][0]
        alone.append(single.run(TOKENS[:, length : length + 1], length)[0])
    found = together.run([[TOKENS[0, length]] for length in lengths], lengths)
    assert relative(found, np.stack(alone)) < 1e-4


def test_only_the_wanted_rows_get_logits(models, tmp_path):
    folder, _ = models("llama")
    decoder = Decoder(graph_of(folder, tmp_path, precision="int4"))
    whole = decoder.run(TOKENS)
    assert relative(decoder.run(TOKENS, rows=[23, 4]), whole[[23, 4]]) < 1e-5
    assert decoder.run(TOKENS, rows=[]).shape == (0, 96)


def test_equal_weights_give_equal_bytes(models, tmp_path):
    folder, model = models("qwen3")
    model.save_pretrained(tmp_path / "again")
    for precision in ("int4", "int8", "fp16", "fp32"):
        files = [graph_of(f, tmp_path / precision / f.name, precision=precision) for f in (folder, tmp_path / "again")]
        for name in ("model.onnx", "model.onnx.data"):
            assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes()
