"""GGUF files of tiny checkpoints, written the way llama.cpp's converter writes them, and vocabularies for them."""

import json
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

from foretell.llm.families import read_config
from foretell.llm.safetensors_weights import SafetensorsWeights

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
Q = gguf.GGMLQuantizationType


def write_gguf(
    folder: Path, path: Path, vocabulary: dict | None = None, kind: Q = Q.F32, template: str = "", **metadata
) -> Path:
    """The checkpoint in `folder` as a GGUF file; matrices as `kind`. `metadata` wins over what the config says."""
    config = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    architecture = _ARCHITECTURES.get(family, family)
    spec = read_config(config)
    writer = gguf.GGUFWriter(path, architecture)
    _write_sizes(writer, config, spec)
    for name, value in metadata.items():
        writer.add_key_value(f"{architecture}.{name.replace('__', '.')}", *value)
    weights = SafetensorsWeights(folder)
    for name in weights.names():
        array = weights.get(name)
        stem = name.rpartition(".")[0]
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            array = _permuted(array, spec.attention.heads if stem.endswith("q_proj") else spec.kv_heads)
        if family.startswith("gemma") and name.endswith("norm.weight"):
            array = array + np.float32(1)
        given = kind if array.ndim == 2 and array.shape[1] % 32 == 0 else Q.F32
        writer.add_tensor(_gguf_name(name, family), quantize(array, given), raw_dtype=given)
    if config.get("rope_parameters", {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_divisors(config["rope_parameters"], spec.head_dim))
    if config.get("rope_parameters", {}).get("rope_type") == "longrope":
        for length in ("short", "long"):
            factors = np.array(config["rope_parameters"][f"{length}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
    for key, (value, of) in (vocabulary or {}).items():
        writer.add_key_value(f"tokenizer.ggml.{key}", value, *of)
    if template:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_sizes(writer, config, spec) -> None:
    writer.add_block_count(spec.layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(spec.hidden)
    writer.add_feed_forward_length(spec.ffn)
    writer.add_head_count(spec.attention.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm.eps)
    writer.add_rope_freq_base(spec.rotary.base)
    writer.add_rope_dimension_count(spec.rotary.dim)
    if spec.rotary.scaling is not None and spec.rotary.scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(spec.rotary.scaling.factor)
    if spec.family == "phi3" and spec.rotary.scaling is not None:
        writer.add_rope_scaling_orig_ctx_len(spec.rotary.scaling.original)
        writer.add_rope_scaling_attn_factors(spec.rotary.scaling.attention_factor)
    if any(spec.attention.windows) and spec.family in ("gemma2", "gemma3_text", "phi3"):
        writer.add_sliding_window(config["sliding_window"])
        if config.get("layer_types") and spec.family != "phi3":
            writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    if spec.family == "gemma2":
        writer.add_attn_logit_softcapping(spec.attention.cap)
        writer.add_final_logit_softcapping(spec.output.cap)


def _gguf_name(name: str, family: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    _, _, number, inside = stem.split(".", 3)
    names = {**_NAMES, **_GEMMA} if family.startswith("gemma") else _NAMES
    return f"blk.{number}.{names[inside]}.{kind}"


def _permuted(array, heads):
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def _llama3_divisors(parameters, head_dim):
    """As llama.cpp's converter computes them."""
    waves = 2 * np.pi * parameters["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    original = parameters["original_max_position_embeddings"]
    low, high, factor = parameters["low_freq_factor"], parameters["high_freq_factor"], parameters["factor"]
    smooth = (original / waves - low) / (high - low)
    middle = 1 / ((1 - smooth) / factor + smooth)
    return np.where(waves < original / high, 1.0, np.where(waves > original / low, float(factor), middle)).astype(
        np.float32
    )


_T = gguf.GGUFValueType
STRINGS, INTS, FLOATS = (_T.ARRAY, _T.STRING), (_T.ARRAY, _T.INT32), (_T.ARRAY, _T.FLOAT32)


def byte_level_vocabulary(tokenizer, pre: str, bos: int = -1, eos: int = -1, **others) -> dict:
    """Key below "tokenizer.ggml." → (value, GGUF types), of a byte-level tokenizer of Hugging Face's library."""
    document = json.loads(tokenizer.to_str())
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {each["id"]: 3 if each["special"] else 4 for each in document["added_tokens"]}
    result = {
        "model": ("gpt2", (_T.STRING,)),
        "pre": (pre, (_T.STRING,)),
        "tokens": ([names[i] for i in range(len(names))], STRINGS),
        "token_type": ([added.get(i, 1) for i in range(len(names))], INTS),
        "merges": ([" ".join(pair) for pair in document["model"]["merges"]], STRINGS),
    }
    return result | _ids(bos, eos) | {key: (value, (_T.BOOL,)) for key, value in others.items()}


def sentencepiece_vocabulary(processor, **others) -> dict:
    """The same of a sentencepiece model, with scores instead of merges."""
    ids = range(processor.get_piece_size())

    def kind(i):
        if processor.is_unknown(i):
            return 2
        if processor.is_control(i):
            return 3
        return 6 if processor.is_byte(i) else 1

    pieces = [processor.id_to_piece(i) for i in ids]
    result = {
        "model": ("llama", (_T.STRING,)),
        "pre": ("default", (_T.STRING,)),
        "tokens": (pieces, STRINGS),
        "scores": ([processor.get_score(i) for i in ids], FLOATS),
        "token_type": ([kind(i) for i in ids], INTS),
        "unknown_token_id": (processor.unk_id(), (_T.UINT32,)),
    }
    result |= _ids(processor.bos_id(), processor.eos_id())
    return result | {key: (value, (_T.BOOL,)) for key, value in others.items()}


def _ids(bos: int, eos: int) -> dict:
    named = {"bos_token_id": bos, "eos_token_id": eos}
    return {key: (value, (_T.UINT32,)) for key, value in named.items() if value >= 0}
