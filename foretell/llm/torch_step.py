"""A decoding step on a GPU in five launches a layer: the layers of `torch.Decoder`, joined between reads of memory.

Imported only where triton is; what it cannot run the decoder's own layers do.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foretell.llm import torch_kernels
from foretell.llm.torch import Decoder
from foretell.llm.torch_attention import Heads, Scratch, attend
from foretell.llm.torch_kernels import Layer, Stream


class JoinedStep:
    """One token of each of the first n slots. Attention reads each as far as it is filled, whatever n is."""

    ROWS = 64
    """n at most: beyond it a step computes more than it reads, and libraries' products of matrices are better."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def logits(self, tokens: Tensor, positions: Tensor, caches: Sequence[Tensor]) -> Tensor:
        """float32 [n, vocab] behind tokens int64 [n] at `positions` [n]; keys and values go into the caches.

        A slot without work is at the position behind the context.
        """
        spec, embedding = self._decoder.spec, self._decoder.weights["model.embed_tokens.weight"]
        scratch = Scratch(len(tokens), spec.attention.heads, spec.kv_heads, spec.head_dim, embedding.device)
        first = self._norm("model.layers.0.input_layernorm")
        stream = torch_kernels.embed(tokens, embedding, spec.embedding_scale, first)
        for layer in range(spec.layers):
            attended = self._attend(layer, stream, positions, caches[2 * layer : 2 * layer + 2], scratch)
            stream = self._add(layer, "self_attn.o_proj", attended, stream)
            inner = self._linear(f"model.layers.{layer}.mlp.gate_up_proj", stream, spec.ffn, activation=spec.activation)
            stream = self._add(layer, "mlp.down_proj", inner, stream)
        output = "model.embed_tokens" if spec.output.tied else "lm_head"
        return self._linear(output, stream, spec.vocab, torch.float32, cap=spec.output.cap)

    @staticmethod
    def best(logits: Tensor) -> Tensor:
        """int64 [n]: of float32 [n, vocab] the largest, of equal ones the first."""
        return torch_kernels.best(logits)

    def _attend(
        self, layer: int, stream: Stream, positions: Tensor, caches: Sequence[Tensor], scratch: Scratch
    ) -> Tensor:
        attention, name = self._decoder.spec.attention, f"model.layers.{layer}.self_attn"
        window, width = attention.windows[layer], attention.head_dim
        heads = Heads(
            attention.heads,
            attention.kv_heads,
            width,
            attention.scale,
            window,
            attention.cap,
            (self._norm(f"{name}.q_norm"), self._norm(f"{name}.k_norm")) if attention.qk_norm else None,
            self._decoder.spec.norm.eps,
        )
        packed = self._linear(f"{name}.qkv_proj", stream, (attention.heads + 2 * attention.kv_heads) * width)
        attended = packed.new_empty((len(packed), attention.heads * width))
        turns = self._decoder.turns(window)
        return attend(packed, heads, turns, positions, (caches[0], caches[1]), attended, scratch)

    def _linear(self, name: str, stream: Stream, width: int, dtype: Any = None, **options: Any) -> Tensor:
        """The layer `name` of the stream, normed."""
        target = stream.value.new_empty((len(stream.value), width), dtype=dtype)
        eps = self._decoder.spec.norm.eps
        return torch_kernels.linear(stream, self._layer(name), target, eps, **options)

    def _add(self, layer: int, name: str, value: Tensor, stream: Stream) -> Stream:
        """The stream with the layer `name` of value, which is normed before it is added where the family does so."""
        spec, prefix = self._decoder.spec, f"model.layers.{layer}"
        linear = self._layer(f"{prefix}.{name}")
        if name.startswith("self_attn"):
            own = "post_attention_layernorm"
            following = f"{prefix}.{'pre_feedforward_layernorm' if spec.norm.post else own}"
        else:
            own = "post_feedforward_layernorm"
            last = layer + 1 == spec.layers
            following = "model.norm" if last else f"model.layers.{layer + 1}.input_layernorm"
        if not spec.norm.post:
            return torch_kernels.add(value, linear, stream, self._norm(following))
        update = torch_kernels.linear(value, linear, torch.empty_like(stream.value))
        before = self._norm(f"{prefix}.{own}")
        return torch_kernels.add_normed(update, before, spec.norm.eps, stream, self._norm(following))

    def _layer(self, name: str) -> Layer:
        weights = self._decoder.weights
        return Layer(weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def _norm(self, name: str) -> Tensor:
        return self._decoder.weights[f"{name}.weight"]
