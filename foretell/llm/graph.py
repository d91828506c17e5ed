"""From a decoder's spec and weights to an ONNX model that ONNX Runtime's fused kernels run. Knows no file of weights.

Inputs and outputs follow onnxruntime-genai's builder (input_ids, attention_mask, past_key_values.N.key/value,
present.N.key/value), but logits are computed for the positions in `logits_rows` only.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foretell.core.errors import ConfigError, PackageError
from foretell.llm.drawing import Drawing
from foretell.llm.linear import Form, Precision, embedding, linear
from foretell.llm.rotary import rotary_tables
from foretell.llm.spec import SPEC, DecoderSpec, encode_spec
from foretell.llm.weights import Weights

_BLOCK_SIZES = (16, 32, 64, 128, 256)


def build(
    spec: DecoderSpec,
    weights: Weights,
    folder: Path,
    precision: Precision = "int4",
    block_size: int = 32,
    output: Precision | None = None,
) -> None:
    """Write model.onnx and model.onnx.data into `folder`. Equal weights give equal bytes.

    `output` is the precision of the output layer: by default int8 where the others are int4, else the same.
    Raises `ConfigError` for a block size that the kernels lack, `PackageError` for a missing weight.
    """
    if block_size not in _BLOCK_SIZES:
        raise ConfigError(
            f"block size {block_size}: the int4 and int8 kernels take {', '.join(map(str, _BLOCK_SIZES))}"
        )
    form = Form(precision, block_size)
    last = Form(output or ("int8" if precision == "int4" else precision), block_size)
    with Drawing(folder / "model.onnx") as draw:
        _Decoder(spec, weights, draw, form, last).draw()
        draw.save()


class _Decoder:
    """Draws one decoder. Values are [batch * tokens, width], after the last attention [rows, width]."""

    def __init__(self, spec: DecoderSpec, weights: Weights, draw: Drawing, form: Form, output: Form) -> None:
        self._spec = spec
        self._weights = weights
        self._d = draw
        self._form = form
        self._output = output
        self._names = frozenset(weights.names())
        self._lengths: list[str] = []
        self._batch = ""
        self._rows = ""

    def draw(self) -> None:
        spec, d = self._spec, self._d
        d.note(SPEC, encode_spec(spec))
        tokens = d.input("input_ids", "int64", ["batch", "tokens"])
        self._batch = d.node("Concat", [d.node("Shape", [tokens]), d.integers(-1)], axis=0)
        self._lengths = self._read_lengths(d.input("attention_mask", "int64", ["batch", "total"]))
        self._rows = d.input("logits_rows", "int64", ["rows"])
        d.scope("embedding")
        tokens = d.node("Reshape", [tokens, d.integers(-1)])
        stream = embedding(d, "model.embed_tokens", tokens, self._table("model.embed_tokens"), self._form)
        if spec.embedding_scale != 1.0:
            stream = d.node(
                "Mul", [stream, d.constant("embedding_scale", np.array([spec.embedding_scale], np.float32))]
            )
        update = ""
        for layer in range(spec.layers):
            stream, update = self._layer(layer, stream, update)
        d.scope("output")
        normed, _ = self._add_and_norm(stream, update, "model.norm")
        self._logits(normed)

    def _read_lengths(self, mask: str) -> list[str]:
        """int32: positions of each sequence minus one [batch], and the longest's [], as GroupQueryAttention wants."""
        d = self._d
        d.scope("lengths")
        total = d.node("ReduceSum", [mask, d.integers(1)], keepdims=0)
        last = d.node("Cast", [d.node("Sub", [total, d.integers(1)])], to=6)
        width = d.node("Gather", [d.node("Shape", [mask]), d.constant("one", np.array(1, np.int64))])
        return [last, d.node("Cast", [width], to=6)]

    def _layer(self, layer: int, stream: str, update: str) -> tuple[str, str]:
        """One layer. `update` is what the layer before adds to the stream: adding it is fused with the norm."""
        d, name = self._d, f"model.layers.{layer}"
        d.scope(name)
        normed, stream = self._add_and_norm(stream, update, f"{name}.input_layernorm")
        attended = self._attention(layer, normed)
        if layer == self._spec.layers - 1:
            # everything behind the last attention is computed for the rows alone whose logits are wanted
            attended, stream = d.node("Gather", [attended, self._rows]), d.node("Gather", [stream, self._rows])
        width = self._spec.attention.heads * self._spec.head_dim
        projected = self._linear(f"{name}.self_attn.o_proj", attended, width)
        if self._spec.norm.post:
            projected = self._norm(projected, f"{name}.post_attention_layernorm")
        before = "pre_feedforward_layernorm" if self._spec.norm.post else "post_attention_layernorm"
        normed, stream = self._add_and_norm(stream, projected, f"{name}.{before}")
        fed = self._feed_forward(name, normed)
        if self._spec.norm.post:
            fed = self._norm(fed, f"{name}.post_feedforward_layernorm")
        return stream, fed

    def _attention(self, layer: int, normed: str) -> str:
        d, attention = self._d, self._spec.attention
        name = f"model.layers.{layer}.self_attn"
        window = attention.windows[layer]
        past, present = self._cache(layer)
        widths = [attention.heads * attention.head_dim, *[attention.kv_heads * attention.head_dim] * 2]
        parts = {f"{name}.{kind}_proj": width for kind, width in zip("qkv", widths, strict=True)}
        packed = self._packed(f"{name}.qkv_proj", parts, normed, self._spec.hidden)
        inputs = self._qk_normed(name, packed) if attention.qk_norm else [self._batched(packed), "", ""]
        output, *_ = d.nodes(
            "com.microsoft:GroupQueryAttention",
            [*inputs, *past, *self._lengths, *self._rotary(window)],
            ["", *present],
            num_heads=attention.heads,
            kv_num_heads=attention.kv_heads,
            scale=attention.scale,
            do_rotary=1,
            local_window_size=window or -1,
            softcap=attention.cap,
        )
        return d.node("Reshape", [output, d.integers(-1, attention.heads * attention.head_dim)])

    def _batched(self, value: str) -> str:
        """[batch * tokens, width] as [batch, tokens, width]."""
        return self._d.node("Reshape", [value, self._batch])

    def _cache(self, layer: int) -> tuple[list[str], list[str]]:
        """Keys and values that go in and, longer, come out. Both may be bound to the same memory."""
        d, heads, width = self._d, self._spec.kv_heads, self._spec.head_dim
        kinds = ("key", "value")
        past = [
            d.input(f"past_key_values.{layer}.{kind}", "float32", ["batch", heads, "past", width]) for kind in kinds
        ]
        present = [d.output(f"present.{layer}.{kind}", "float32", ["batch", heads, "present", width]) for kind in kinds]
        return past, present

    def _qk_normed(self, name: str, packed: str) -> list[str]:
        d, attention = self._d, self._spec.attention
        width = attention.head_dim
        sizes = d.integers(attention.heads * width, attention.kv_heads * width, attention.kv_heads * width)
        query, key, value = d.nodes("Split", [packed, sizes], ["", "", ""], axis=-1)
        normed = []
        for kind, each in (("q", query), ("k", key)):
            heads = d.node("Reshape", [each, d.integers(0, -1, width)])
            normed.append(self._batched(self._norm(heads, f"{name}.{kind}_norm")))
        return [*normed, self._batched(value)]

    def _feed_forward(self, name: str, normed: str) -> str:
        d, mlp = self._d, f"{name}.mlp"
        width = self._spec.ffn
        parts = {f"{mlp}.gate_proj": width, f"{mlp}.up_proj": width}
        both = self._packed(f"{mlp}.gate_up_proj", parts, normed, self._spec.hidden)
        gate, up = d.nodes("Split", [both], ["", ""], axis=-1, num_outputs=2)
        if self._spec.activation == "silu":
            gate = d.node("com.microsoft:QuickGelu", [gate], alpha=1.0)
        else:
            gate = d.node("Gelu", [gate], approximate="tanh")
        active = d.node("Mul", [gate, up])
        return self._linear(f"{mlp}.down_proj", active, width)

    def _logits(self, normed: str) -> None:
        spec, d = self._spec, self._d
        name = "model.embed_tokens" if spec.output.tied else "lm_head"
        logits = linear(d, name, normed, self._table(name), self._output, None)
        if spec.output.cap:
            cap = d.constant("logits_cap", np.array([spec.output.cap], np.float32))
            logits = d.node("Mul", [d.node("Tanh", [d.node("Div", [logits, cap])]), cap])
        d.node("Identity", [logits], "logits")
        d.output("logits", "float32", ["rows", spec.vocab])

    def _add_and_norm(self, stream: str, update: str, name: str) -> tuple[str, str]:
        """(norm of stream + update, stream + update); `update` "" is nothing."""
        if not update:
            return self._norm(stream, name), stream
        gamma = self._gamma(name)
        normed, _, _, total = self._d.nodes(
            "com.microsoft:SkipSimplifiedLayerNormalization",
            [stream, update, gamma],
            ["", "-", "-", ""],
            epsilon=self._spec.norm.eps,
        )
        return normed, total

    def _norm(self, value: str, name: str) -> str:
        inputs = [value, self._gamma(name)]
        return self._d.node("SimplifiedLayerNormalization", inputs, axis=-1, epsilon=self._spec.norm.eps)

    def _gamma(self, name: str) -> str:
        width = self._spec.head_dim if name.endswith(("q_norm", "k_norm")) else self._spec.hidden
        weight = self._weight(f"{name}.weight", width)
        return self._d.constant(f"{name}.weight", weight + np.float32(self._spec.norm.offset))

    def _table(self, name: str) -> NDArray[np.float32]:
        return self._weight(f"{name}.weight", self._spec.vocab, self._spec.hidden)

    def _rotary(self, window: int) -> list[str]:
        local = bool(window) and self._spec.local_rotary is not None
        names = [f"{'local_' if local else ''}{kind}" for kind in ("cosines", "sines")]
        if not self._d.has(names[0]):
            rotary = self._spec.local_rotary if local and self._spec.local_rotary else self._spec.rotary
            for name, table in zip(names, rotary_tables(rotary, self._spec.context), strict=True):
                self._d.constant(name, table)
        return names

    def _linear(self, name: str, value: str, width: int) -> str:
        return self._packed(name, {name: self._spec.hidden}, value, width)

    def _packed(self, name: str, parts: Mapping[str, int], value: str, width: int) -> str:
        """Several linear layers of one input of `width`, each with its own output width, as one.

        Phi-3 stores them packed, others in parts.
        """
        if f"{name}.weight" in self._names:
            parts = {name: sum(parts.values())}
        weight = np.concatenate([self._weight(f"{part}.weight", size, width) for part, size in parts.items()])
        biases = [self._weight(f"{part}.bias", size) for part, size in parts.items() if self._has_bias(part)]
        return linear(self._d, name, value, weight, self._form, np.concatenate(biases) if biases else None)

    def _has_bias(self, name: str) -> bool:
        kind = name.rpartition(".")[2]
        attention = self._spec.attention
        if kind == "o_proj":
            return attention.output_bias
        return attention.bias if kind in ("q_proj", "k_proj", "v_proj", "qkv_proj") else self._spec.ffn_bias

    def _weight(self, name: str, *shape: int) -> NDArray[np.float32]:
        weight = self._weights.get(name)
        if weight.shape != shape:
            raise PackageError(
                f'weight "{name}" has shape {list(weight.shape)}, the model\'s config says {list(shape)}'
            )
        return weight
