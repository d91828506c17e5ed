"""A decoder described without any framework: what its layers are, not where its weights lie.

Filled from a Hugging Face config (families.py) or from GGUF metadata; the graph builder reads nothing else.
"""

from typing import Literal

import msgspec

SPEC = "foretell.decoder"
"""Where a graph's metadata hold the spec that it was drawn from."""


class RotaryScaling(msgspec.Struct, frozen=True):
    """How rotary frequencies are stretched beyond the trained context.

    linear: all divided by `factor` (Chen et al. 2023, arXiv 2306.15595). llama3: only wavelengths longer than
    `original` / `high`, blended up to `original` / `low` (Llama 3.1). longrope: each divided by its own factor, and
    cos and sin multiplied by `attention_factor` (Ding et al. 2024, arXiv 2402.13753): `long` factors when the
    package's context exceeds `original`, else `short`.
    """

    kind: Literal["linear", "llama3", "longrope"]
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    attention_factor: float = 1.0


class Rotary(msgspec.Struct, frozen=True):
    """Rotary embedding of the first `dim` numbers of each head, in halves (not interleaved)."""

    base: float
    dim: int
    scaling: RotaryScaling | None = None


class Attention(msgspec.Struct, frozen=True):
    """`windows`: per layer how many positions a token sees, itself included; 0 is all. `scale`: of queries times keys.

    `qk_norm`: RMS norm of each head of q and k before rotary. `cap`: scores become cap * tanh(score / cap); 0 is off.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    windows: tuple[int, ...]
    bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    cap: float = 0.0


class Norm(msgspec.Struct, frozen=True):
    """RMS norm. `offset` is added to all weights (Gemma's are stored minus one).

    `post`: attention and feed-forward are normed after as well as before (Gemma).
    """

    eps: float
    offset: float = 0.0
    post: bool = False


class Output(msgspec.Struct, frozen=True):
    """From hidden states to logits; `tied` to the embedding's weights. `cap` as for attention."""

    tied: bool
    cap: float = 0.0


class DecoderSpec(msgspec.Struct, frozen=True):
    """A decoder with gated feed-forward layers, pre-norm, rotary positions and grouped-query attention.

    `context`: positions that the graph can hold. `local_rotary`: of layers with a window, where it differs.
    """

    family: str
    vocab: int
    hidden: int
    ffn: int
    context: int
    attention: Attention
    rotary: Rotary
    norm: Norm
    output: Output
    activation: Literal["silu", "gelu_tanh"] = "silu"
    ffn_bias: bool = False
    embedding_scale: float = 1.0
    local_rotary: Rotary | None = None

    @property
    def layers(self) -> int:
        return len(self.attention.windows)

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim

    @property
    def kv_heads(self) -> int:
        return self.attention.kv_heads


def encode_spec(spec: DecoderSpec) -> str:
    """As JSON, without the family: how a source calls it makes no difference to what it computes."""
    return msgspec.json.encode(msgspec.structs.replace(spec, family="")).decode()


def decode_spec(text: str) -> DecoderSpec:
    """The spec that `encode_spec` wrote. Raises `msgspec.MsgspecError`."""
    return msgspec.json.decode(text, type=DecoderSpec)
