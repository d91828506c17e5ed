"""Decoder specs from Hugging Face configs: the families that the graph builder knows, and what sets each apart.

Knows no weights and no files: a config.json is given as the mapping that it holds.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from foretell.core.errors import PackageError, Unsupported, did_you_mean
from foretell.llm.spec import Attention, DecoderSpec, Norm, Output, Rotary, RotaryScaling

_QWEN = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_GEMMA2 = {
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
    "tie_word_embeddings": True,
}
_GEMMA3 = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000.0,
    "rope_theta": 1e6,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
    "vocab_size": 262208,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6},
    "mistral": {"rms_norm_eps": 1e-6, "sliding_window": None},
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "phi3": {"rms_norm_eps": 1e-5, "sliding_window": None},
}
"""The `model_type` of each family (SmolLM's is llama) and what its configs may leave out."""

_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def read_config(config: Mapping[str, Any], context: int | None = None) -> DecoderSpec:
    """The spec of a Hugging Face `config` (transformers 4 and 5 spell rotary parameters differently; both are read).

    `context`: positions to provide for, by default all that the model was made for; of models stretched by longrope
    only the context before stretching, because beyond it they need other factors, for short prompts too.
    Raises `Unsupported` for another architecture or an option that the graph lacks, `PackageError` for a config
    without a key that is needed.
    """
    if config.get("model_type") == "gemma3" and isinstance(config.get("text_config"), Mapping):
        config = {"model_type": "gemma3_text", **config["text_config"]}
    family = str(config.get("model_type", ""))
    if family not in FAMILIES:
        raise unsupported(family or ", ".join(config.get("architectures") or ["without model_type"]))
    try:
        if config.get("quantization_config"):
            method = config["quantization_config"].get("quant_method", "quantized")
            raise Unsupported(f"the weights are {method} already; import the original ones and choose --precision")
        return _Config(family, {**FAMILIES[family], **{k: v for k, v in config.items() if v is not None}}).spec(context)
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise PackageError(f"config.json holds a value of the wrong kind: {error}; take the model's own file") from None


def unsupported(architecture: str) -> Unsupported:
    """The error for an architecture that the graph builder does not know."""
    return Unsupported(
        f'architecture "{architecture}" is not one that foretell builds graphs of ({", ".join(FAMILIES)}).'
        f" {did_you_mean(architecture, FAMILIES)} Many more can be exported with onnxruntime-genai's builder"
        " (python -m onnxruntime_genai.models.builder -m MODEL -o FOLDER -p int4 -e cpu); add that folder instead"
    )


class _Config:
    """Reads one family's config; knows which keys mean what."""

    def __init__(self, family: str, values: dict[str, Any]) -> None:
        self._family = family
        self._values = values
        self._gemma = family in ("gemma2", "gemma3_text")
        self._gemma3 = family == "gemma3_text"

    def spec(self, context: int | None) -> DecoderSpec:
        hidden, layers = self._number("hidden_size"), self._number("num_hidden_layers")
        attention = self._attention(hidden, layers)
        full = self._rotary("full_attention", attention.head_dim)
        longest = context or self._context(full)
        windows = attention.windows
        if not self._gemma3:  # whose layers with a window are told by it from the others: their rotary differs
            windows = tuple(0 if window >= longest else window for window in windows)
        return DecoderSpec(
            family=self._family,
            vocab=self._number("vocab_size"),
            hidden=hidden,
            ffn=self._number("intermediate_size"),
            context=longest,
            attention=msgspec.structs.replace(attention, windows=windows),
            rotary=full,
            local_rotary=self._rotary("sliding_attention", attention.head_dim) if self._gemma3 else None,
            norm=Norm(float(self._values["rms_norm_eps"]), offset=float(self._gemma), post=self._gemma),
            output=Output(self._flag("tie_word_embeddings"), float(self._values.get("final_logit_softcapping") or 0)),
            activation=self._activation(),
            ffn_bias=self._flag("mlp_bias"),
            embedding_scale=math.sqrt(hidden) if self._gemma else 1.0,
        )

    def _attention(self, hidden: int, layers: int) -> Attention:
        heads = self._number("num_attention_heads")
        kv_heads = int(self._values.get("num_key_value_heads") or heads)
        if heads % kv_heads:
            raise PackageError(f"config.json: {heads} attention heads cannot share {kv_heads} of keys and values")
        head_dim = int(self._values.get("head_dim") or hidden // heads)
        bias = self._flag("attention_bias")
        if self._flag("use_bidirectional_attention"):
            raise Unsupported("use_bidirectional_attention: only decoders that look backwards can generate")
        return Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            scale=float(self._values.get("query_pre_attn_scalar", head_dim)) ** -0.5,
            windows=self._windows(layers),
            bias=bias or self._family == "qwen2",
            output_bias=bias and self._family != "qwen2",
            qk_norm=self._family == "qwen3" or self._gemma3,
            cap=float(self._values.get("attn_logit_softcapping") or 0) if self._family == "gemma2" else 0.0,
        )

    def _windows(self, layers: int) -> tuple[int, ...]:
        window = int(self._values.get("sliding_window") or 0)
        if self._family in ("qwen2", "qwen3") and not self._flag("use_sliding_window"):
            window = 0
        if self._family == "llama" or not window:
            return (0,) * layers
        kinds = self._values.get("layer_types")
        if kinds is not None:
            if len(kinds) != layers:
                raise PackageError(f'config.json: "layer_types" has {len(kinds)} entries for {layers} layers')
            return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
        if self._family in ("qwen2", "qwen3"):
            first = int(self._values.get("max_window_layers", layers))
            return tuple(window if layer >= first else 0 for layer in range(layers))
        pattern = int(self._values.get("sliding_window_pattern", 0)) or layers + 1
        return tuple(0 if (layer + 1) % pattern == 0 else window for layer in range(layers))

    def _rotary(self, kind: str, head_dim: int) -> Rotary:
        """Of layers of one kind. transformers 5 has rope_parameters, for Gemma one set a kind of layer."""
        parameters = self._values.get("rope_parameters")
        if parameters is None:
            local = self._gemma3 and kind == "sliding_attention"
            scaling = {} if local else self._values.get("rope_scaling") or {}
            base = self._values.get("rope_local_base_freq" if local else "rope_theta", 10000.0)
            parameters = {"rope_theta": base, **scaling}
        parameters = parameters.get(kind) or parameters
        partial = parameters.get("partial_rotary_factor", self._values.get("partial_rotary_factor", 1.0))
        base = float(parameters.get("rope_theta", self._values.get("rope_theta", 10000.0)))
        return Rotary(base, int(head_dim * float(partial)), self._scaling(parameters))

    def _scaling(self, parameters: Mapping[str, Any]) -> RotaryScaling | None:
        kind = str(parameters.get("rope_type", parameters.get("type", "default")))
        if kind == "default":
            return None
        try:
            if kind == "linear":
                return RotaryScaling("linear", factor=float(parameters["factor"]))
            if kind == "llama3":
                return RotaryScaling(
                    "llama3",
                    factor=float(parameters["factor"]),
                    low=float(parameters["low_freq_factor"]),
                    high=float(parameters["high_freq_factor"]),
                    original=int(parameters["original_max_position_embeddings"]),
                )
            if kind in ("longrope", "su"):
                return self._longrope(parameters)
        except KeyError as error:
            raise PackageError(f"config.json: rotary scaling {kind} lacks {error}; take the model's own file") from None
        raise Unsupported(f"rotary scaling {kind}: foretell knows linear, llama3 and longrope")

    def _longrope(self, parameters: Mapping[str, Any]) -> RotaryScaling:
        original = self._values.get("original_max_position_embeddings")
        original = int(original or parameters["original_max_position_embeddings"])
        stretch = self._number("max_position_embeddings") / original
        amplitude = parameters.get("attention_factor")
        if amplitude is None:
            amplitude = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
        return RotaryScaling(
            "longrope",
            original=original,
            short=tuple(map(float, parameters["short_factor"])),
            long=tuple(map(float, parameters["long_factor"])),
            attention_factor=float(amplitude),
        )

    def _context(self, rotary: Rotary) -> int:
        if rotary.scaling is not None and rotary.scaling.kind == "longrope":
            return rotary.scaling.original
        return self._number("max_position_embeddings")

    def _activation(self) -> Literal["silu", "gelu_tanh"]:
        name = str(self._values.get("hidden_activation") or self._values.get("hidden_act", "silu"))
        if name not in _ACTIVATIONS:
            raise Unsupported(f'activation "{name}": foretell knows {", ".join(_ACTIVATIONS)}')
        return _ACTIVATIONS[name]

    def _number(self, key: str) -> int:
        value = self._values.get(key)
        if not isinstance(value, int) or value <= 0:
            raise PackageError(f'config.json: "{key}" should be a positive number, it is {value!r}')
        return value

    def _flag(self, key: str) -> bool:
        return bool(self._values.get(key, False))
