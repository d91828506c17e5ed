"""GGUF files: weights, config and tokenizer as a Hugging Face folder would hold them. The only importer of gguf.

Numbers are dequantized by gguf's own code. Names, the order of rows and the config's keys are turned back into
Hugging Face's, so that nothing behind this knows where a model came from. The format and the metadata keys:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderField, ReaderTensor
from gguf.quants import dequantize
from numpy.typing import NDArray

from foretell.core.errors import PackageError, did_you_mean
from foretell.core.generation import Sampling
from foretell.llm.families import unsupported
from foretell.llm.tokenizer_gguf import Vocabulary

_MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}
"""GGUF architecture → `model_type` of a config.json. Mistral and SmolLM are llama there."""

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_INSIDE_BY_TYPE = {
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
}


class _Gemma(NamedTuple):
    """`pattern`: every so many layers one sees everything."""

    layers_of_27b: int
    pattern: int


_GEMMAS = {"gemma2": _Gemma(46, 2), "gemma3_text": _Gemma(62, 6)}

_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL = 1.0, 4.0, 8192
"""What all Llama 3.x models have beside the factor: GGUF files hold only the frequencies that came of it."""


@contextlib.contextmanager
def _sound(where: str) -> Iterator[None]:
    """What metadata of the wrong kind raise while they are read becomes a `PackageError`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise PackageError(
            f"{where}: its metadata are damaged ({type(error).__name__}: {error}); get another conversion"
        ) from None


class _Reader(GGUFReader):  # type: ignore[misc]
    """The library's reader over a plain array: as `memmap` each of a header's hundred thousand slices takes three times
    as long."""

    @property
    def data(self) -> NDArray[np.uint8]:
        return self._plain

    @data.setter
    def data(self, mapped: NDArray[np.uint8]) -> None:
        self._plain = mapped.view(np.ndarray)


class GgufModel:
    """An opened file: the `Weights` of a model, and its metadata.

    `model_type`: as config.json has it. Tensors are mapped, so memory holds only what is being converted.
    """

    def __init__(self, reader: GGUFReader, where: str) -> None:
        self._where = where
        self._metadata = {name: _Lazy(field) for name, field in reader.fields.items()}
        self._architecture = str(self._need("general.architecture"))
        if self._architecture not in _MODEL_TYPES:
            raise unsupported(self._architecture)
        self.model_type = _MODEL_TYPES[self._architecture]
        if int(self._get("split.count", 1)) > 1:
            raise PackageError(f"{where} is one part of a split model; join the parts (llama-gguf-split --merge) first")
        self._raw = {tensor.name: tensor for tensor in reader.tensors}
        self._tensors = {_canonical(tensor.name, self.model_type): tensor for tensor in reader.tensors}
        # llama.cpp rotates neighbouring numbers of q and k of these architectures, Hugging Face halves of a head.
        self._permuted: dict[str, int] = {}
        if self._architecture == "llama":
            heads = self._number("attention.head_count")
            self._permuted = {"q_proj": heads, "k_proj": self._number("attention.head_count_kv", heads)}

    @classmethod
    def open(cls, path: Path) -> "GgufModel":
        """Read the header of a .gguf file. Raises `PackageError` if it is damaged, `Unsupported` for its kind."""
        try:
            reader = _Reader(path)
        except Exception as error:  # gguf raises whatever its parsing trips over
            raise PackageError(f"{path.name} is not a readable GGUF file, or cut short ({error})") from None
        with _sound(path.name):
            return cls(reader, path.name)

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def get(self, name: str) -> NDArray[np.float32]:
        if name not in self._tensors:
            raise PackageError(f'{self._where} has no weight "{name}". {did_you_mean(name, self._tensors)}')
        numbers = self._floats(self._tensors[name])
        if (heads := self._permuted.get(name.split(".")[-2])) is not None:
            pairs = numbers.reshape(heads, -1, 2, *numbers.shape[1:])
            numbers = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(numbers.shape)
        if self.model_type in _GEMMAS and name.endswith("norm.weight"):
            numbers = numbers - np.float32(1)  # GGUF files hold what the graph multiplies with
        return numbers

    def config(self) -> dict[str, Any]:
        """What the model's config.json says, as far as a decoder's graph needs it. Raises `PackageError`."""
        with _sound(self._where):
            return self._config()

    def _config(self) -> dict[str, Any]:
        heads = self._number("attention.head_count")
        hidden, layers = self._number("embedding_length"), self._number("block_count")
        head_dim = self._number("attention.key_length", hidden // heads)
        config: dict[str, Any] = {
            "model_type": self.model_type,
            "vocab_size": int(self._raw["token_embd.weight"].shape[1]) if "token_embd.weight" in self._raw else 0,
            "hidden_size": hidden,
            "intermediate_size": self._number("feed_forward_length"),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "rms_norm_eps": self._float("attention.layer_norm_rms_epsilon", 1e-6),
            "max_position_embeddings": self._number("context_length"),
            "tie_word_embeddings": "output.weight" not in self._raw,
            "rope_theta": self._float("rope.freq_base", 10000.0),
            "rope_scaling": self._rope_scaling(),
        }
        if self.model_type in _GEMMAS:
            config |= self._gemma(hidden, heads, head_dim, layers)
        elif self._key("attention.sliding_window") in self._metadata and self.model_type == "phi3":
            config["sliding_window"] = self._number("attention.sliding_window")
        if self.model_type == "phi3":
            config["partial_rotary_factor"] = self._number("rope.dimension_count", head_dim) / head_dim
            original = self._number("rope.scaling.original_context_length", config["max_position_embeddings"])
            config["original_max_position_embeddings"] = original
        if self.model_type == "llama":
            config["attention_bias"] = "blk.0.attn_q.bias" in self._raw
            config["mlp_bias"] = "blk.0.ffn_up.bias" in self._raw
        return config

    def vocabulary(self) -> Vocabulary:
        """The metadata that a tokenizer is built from. Raises `PackageError` when the file has none."""
        prefix = "tokenizer.ggml."
        found = {name.removeprefix(prefix): name for name in self._metadata if name.startswith(prefix)}
        if "tokens" not in found:
            raise PackageError(f"{self._where} has no tokenizer; put the model's tokenizer.json beside it")
        wanted = {field.encode_name for field in msgspec.structs.fields(Vocabulary)}
        with _sound(self._where):
            values = {key: self._get(name) for key, name in found.items() if key in wanted}
            return msgspec.convert({**values, "architecture": self._architecture}, Vocabulary)

    def chat_template(self) -> str:
        """The default chat template; "" when the file has none."""
        return str(self._get("tokenizer.chat_template", ""))

    def sampling(self) -> Sampling:
        """What the model's makers recommend, where the file says it."""
        names = {"temperature": "temp", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "penalty_repeat"}
        given = {ours: f"general.sampling.{theirs}" for ours, theirs in names.items()}
        with _sound(self._where):
            values: dict[str, Any] = {
                o: _shortest(self._get(name)) for o, name in given.items() if name in self._metadata
            }
            if (top_k := self._get("general.sampling.top_k")) is not None:
                values["top_k"] = int(top_k)
            return Sampling(**values)

    def _gemma(self, hidden: int, heads: int, head_dim: int, layers: int) -> dict[str, Any]:
        # The files don't say how queries are scaled; of the published models only those of 27B differ.
        scalar = hidden // heads if layers == _GEMMAS[self.model_type].layers_of_27b else head_dim
        given: dict[str, Any] = {
            "sliding_window": self._number("attention.sliding_window"),
            "query_pre_attn_scalar": scalar,
            "rope_local_base_freq": self._float("rope.freq_base_swa", 10000.0),
            "final_logit_softcapping": self._float("final_logit_softcapping", 0.0) or None,
            "attn_logit_softcapping": self._float("attn_logit_softcapping", 0.0) or None,
        }
        pattern = self._get(self._key("attention.sliding_window_pattern"), _GEMMAS[self.model_type].pattern)
        if isinstance(pattern, list):
            given["layer_types"] = ["sliding_attention" if local else "full_attention" for local in pattern]
        else:
            given["sliding_window_pattern"] = int(pattern)
        return given

    def _rope_scaling(self) -> dict[str, Any] | None:
        if "rope_factors_long.weight" in self._raw:
            factors = [self._floats(self._raw[f"rope_factors_{kind}.weight"]).tolist() for kind in ("short", "long")]
            scaling = {
                "rope_type": "longrope",
                "short_factor": [_shortest(x) for x in factors[0]],
                "long_factor": [_shortest(x) for x in factors[1]],
            }
            amplitude = self._float("rope.scaling.attn_factor", 0.0)
            return {**scaling, "attention_factor": amplitude} if amplitude else scaling
        if "rope_freqs.weight" in self._raw:
            return self._llama3(self._floats(self._raw["rope_freqs.weight"]))
        kind = str(self._get(self._key("rope.scaling.type"), "none"))
        factor = self._float("rope.scaling.factor", 0.0) or self._float("rope.scale_linear", 1.0)
        if kind == "none" or factor in (0.0, 1.0):
            return None
        return {"rope_type": kind, "factor": factor}

    def _llama3(self, divisors: NDArray[np.float32]) -> dict[str, Any]:
        """The parameters that give these divisors of the rotary frequencies. Raises `PackageError` for others."""
        factor = _shortest(divisors.max())
        base = self._float("rope.freq_base", 10000.0)
        frequencies = base ** -(np.arange(len(divisors)) / len(divisors))
        # Llama 3.1: long waves are divided by factor, short ones kept, those between blended by their length.
        turns = _LLAMA3_ORIGINAL * frequencies / (2 * np.pi)
        smooth = np.clip((turns - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0.0, 1.0)
        expected = 1 / ((1 - smooth) / factor + smooth)
        if not np.allclose(expected, divisors, rtol=1e-3):
            raise PackageError(
                f"{self._where}: its rotary frequencies are scaled in a way that is none of Llama 3's; import the"
                " model's Hugging Face folder, whose config.json says how"
            )
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": _LLAMA3_LOW,
            "high_freq_factor": _LLAMA3_HIGH,
            "original_max_position_embeddings": _LLAMA3_ORIGINAL,
        }

    def _floats(self, tensor: ReaderTensor) -> NDArray[np.float32]:
        kind = GGMLQuantizationType(tensor.tensor_type)
        try:
            numbers = dequantize(tensor.data, kind)
        except (NotImplementedError, ValueError) as error:
            raise PackageError(
                f'{self._where}: weight "{tensor.name}" is {kind.name}, which gguf cannot read ({error}). Take a file'
                " of another quantization, best F16, BF16 or Q8_0"
            ) from None
        return np.ascontiguousarray(numbers.astype(np.float32, copy=False)).reshape(tensor.shape[::-1].tolist())

    def _key(self, name: str) -> str:
        return f"{self._architecture}.{name}"

    def _get(self, name: str, default: Any = None) -> Any:
        return self._metadata[name]() if name in self._metadata else default

    def _need(self, name: str) -> Any:
        value = self._get(name)
        if value is None:
            raise PackageError(f'{self._where} does not say "{name}", so it cannot be imported; get another conversion')
        return value

    def _number(self, name: str, default: int | None = None) -> int:
        key = self._key(name)
        value = self._get(key, default) if default is not None else self._need(key)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise PackageError(f'{self._where}: "{key}" differs from layer to layer, which foretell cannot build')
            value = value[0]
        try:
            return int(value)
        except (TypeError, ValueError):
            raise self._wrong(key, value, "a whole number") from None

    def _float(self, name: str, default: float) -> float:
        key = self._key(name)
        value = self._get(key, default)
        try:
            return _shortest(value)
        except (TypeError, ValueError):
            raise self._wrong(key, value, "a number") from None

    def _wrong(self, key: str, value: Any, expected: str) -> PackageError:
        return PackageError(f'{self._where}: "{key}" is {value!r}, not {expected}; get another conversion')


class _Lazy:
    """A metadata field that is decoded when asked for: vocabularies are long."""

    def __init__(self, field: ReaderField) -> None:
        self._field = field

    def __call__(self) -> Any:
        return self._field.contents()


def _shortest(value: Any) -> float:
    """The float that a person would have written: GGUF holds 1e-05 as 9.99999974e-06."""
    return float(str(np.float32(value)))


def _canonical(name: str, model_type: str) -> str:
    """Hugging Face's name of a tensor; its own if that is unknown."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    if stem.startswith("blk."):
        _, number, part = stem.split(".", 2)
        inside: Mapping[str, str] = {**_INSIDE, **_INSIDE_BY_TYPE.get(model_type, {})}
        if part in inside:
            return f"model.layers.{number}.{inside[part]}.{kind}"
    return name
