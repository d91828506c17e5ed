"""A decoder of a spec in torch, its layers as functions of tensors. Knows no slots, no graphs and no packages.

Written from the same spec as the ONNX graph (graph.py), so every family that one knows, this one knows.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from foretell.llm.rotary import rotary_tables
from foretell.llm.spec import DecoderSpec, Rotary
from foretell.llm.weights import Weights


class Batch(NamedTuple):
    """Tokens int64 [b, s] at `positions` [b, s] of slots `slots` [b]; attention reads the first `reach` positions.

    `first` is the first of the slots when they follow each other (their memory is then used where it lies), or -1.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    first: int
    reach: int


class _Turn(NamedTuple):
    """Cosines and sines [b, s, 1, dim / 2] of a batch's positions."""

    cosines: Tensor
    sines: Tensor


class Decoder:
    """`forward` writes keys and values into the caches that it is given.

    `weights` are by the checkpoint's names, but for what has the same input: that is one (qkv_proj, gate_up_proj).
    Norms' are float32, all others `dtype`.
    """

    def __init__(self, spec: DecoderSpec, weights: Weights, device: Any, dtype: Any) -> None:
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self.weights: dict[str, Tensor] = {}
        for name, array in _packed(spec, weights):
            if name.endswith("norm.weight"):  # norms are computed in float32, as transformers does it
                array, kind = array + np.float32(spec.norm.offset), torch.float32
            else:
                kind = dtype
            self.weights[name] = torch.tensor(array, dtype=kind, device=device)
        self._rotary = self._tables(spec.rotary)
        self._local = self._tables(spec.local_rotary) if spec.local_rotary else self._rotary

    @property
    def token_bytes(self) -> int:
        """Of the keys and values of one position in all layers."""
        spec = self.spec
        return int(2 * spec.layers * spec.kv_heads * spec.head_dim * self.dtype.itemsize)

    def turns(self, window: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines float32 [context + 1, dim / 2] by position, of layers with such a window."""
        return self._local if window else self._rotary

    def forward(self, batch: Batch, caches: Sequence[Tensor]) -> Tensor:
        """Hidden states [b, s, hidden] behind the last layer, before the last norm."""
        stream = functional.embedding(batch.tokens.to(self.device), self.weights["model.embed_tokens.weight"])
        stream = stream * self.spec.embedding_scale
        batch = batch._replace(positions=batch.positions.to(self.device))
        windows = set(self.spec.attention.windows)
        masks = {window: self._mask(batch, window) for window in windows}
        turns = {window: self._turn(batch, window) for window in windows}
        post = self.spec.norm.post
        for layer, window in enumerate(self.spec.attention.windows):
            name = f"model.layers.{layer}"
            normed = self._norm(stream, f"{name}.input_layernorm")
            update = self._attention(
                f"{name}.self_attn", normed, batch, caches[2 * layer : 2 * layer + 2], masks[window], turns[window]
            )
            if post:
                update = self._norm(update, f"{name}.post_attention_layernorm")
            stream = stream + update
            normed = self._norm(stream, f"{name}.{'pre_feedforward' if post else 'post_attention'}_layernorm")
            update = self._feed_forward(f"{name}.mlp", normed)
            if post:
                update = self._norm(update, f"{name}.post_feedforward_layernorm")
            stream = stream + update
        return stream

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [m, vocab] of hidden states [m, hidden]."""
        output = self.spec.output
        logits = self._linear("model.embed_tokens" if output.tied else "lm_head", self._norm(hidden, "model.norm"))
        logits = logits.float()
        return torch.tanh(logits / output.cap) * output.cap if output.cap else logits

    def _attention(
        self, name: str, normed: Tensor, batch: Batch, caches: Sequence[Tensor], mask: Tensor, turn: _Turn
    ) -> Tensor:
        attention = self.spec.attention
        counts = [attention.heads, attention.kv_heads]
        heads = self._linear(f"{name}.qkv_proj", normed).unflatten(-1, (-1, attention.head_dim))
        both, values = heads.split([sum(counts), attention.kv_heads], 2)
        if attention.qk_norm:
            queries, keys = both.split(counts, 2)
            both = torch.cat([self._norm(queries, f"{name}.q_norm"), self._norm(keys, f"{name}.k_norm")], 2)
        queries, keys = _rotated(both, turn).split(counts, 2)
        read = []
        for cache, new in zip(caches, (keys, values), strict=True):
            cache[batch.slots[:, None], :, batch.positions] = new
            own = cache[batch.slots] if batch.first < 0 else cache[batch.first : batch.first + len(batch.slots)]
            read.append(own[:, :, : batch.reach])
        attended = self._attend(queries.transpose(1, 2), read[0], read[1], mask)
        return self._linear(f"{name}.o_proj", attended.transpose(1, 2).flatten(2))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """[b, heads, s, width] of queries [b, heads, s, width] over keys and values [b, kv_heads, reach, width].

        The query heads that share keys stand as further rows of one: nothing is repeated, and every kernel can do it.
        """
        attention, shape = self.spec.attention, queries.shape
        shared = attention.heads // attention.kv_heads
        queries = queries.unflatten(1, (-1, shared)).flatten(2, 3)
        mask = mask[:, :, None].expand(-1, -1, shared, -1, -1).flatten(2, 3)
        if not attention.cap:
            attended = functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, scale=attention.scale
            )
            return attended.unflatten(2, (shared, -1)).reshape(shape)
        scores = (queries @ keys.transpose(2, 3)).float() * attention.scale
        scores = torch.tanh(scores / attention.cap) * attention.cap
        attended = scores.masked_fill(~mask, float("-inf")).softmax(-1).to(values.dtype) @ values
        return attended.unflatten(2, (shared, -1)).reshape(shape)

    def _mask(self, batch: Batch, window: int) -> Tensor:
        """bool [b, 1, s, reach]: which positions a token sees."""
        there, own = torch.arange(batch.reach, device=self.device), batch.positions[:, None, :, None]
        seen = there <= own
        # an idle slot's token, behind the context, sees everything: a row that sees nothing would be NaN
        return seen & ((there > own - window) | (own > batch.reach)) if window else seen

    def _feed_forward(self, name: str, normed: Tensor) -> Tensor:
        gate, up = self._linear(f"{name}.gate_up_proj", normed).chunk(2, -1)
        gate = functional.silu(gate) if self.spec.activation == "silu" else functional.gelu(gate, approximate="tanh")
        return self._linear(f"{name}.down_proj", gate * up)

    def _linear(self, name: str, value: Tensor) -> Tensor:
        return functional.linear(value, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, value: Tensor, name: str) -> Tensor:
        """RMS norm, in float32."""
        weight = self.weights[f"{name}.weight"]
        return functional.rms_norm(value.float(), weight.shape, weight, self.spec.norm.eps).to(value.dtype)

    def _turn(self, batch: Batch, window: int) -> _Turn:
        cosines, sines = (table[batch.positions][:, :, None] for table in self.turns(window))
        return _Turn(cosines, sines)

    def _tables(self, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Cosines and sines [context + 1, dim / 2]; the position behind the context is like the last."""
        cosines, sines = (
            torch.from_numpy(np.concatenate([table, table[-1:]])).to(self.device)
            for table in rotary_tables(rotary, self.spec.context)
        )
        return cosines, sines


def _packed(spec: DecoderSpec, weights: Weights) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names and arrays of all weights and biases; what has the same input is one, as some checkpoints have it."""
    names = frozenset(weights.names())
    plain = ["model.embed_tokens", "model.norm", *([] if spec.output.tied else ["lm_head"])]
    norms = ["input_layernorm", "post_attention_layernorm"]
    if spec.norm.post:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    if spec.attention.qk_norm:
        norms += ["self_attn.q_norm", "self_attn.k_norm"]
    packs: list[tuple[str, list[str]]] = [(name, [name]) for name in plain]
    for layer in range(spec.layers):
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        packs += [(f"{prefix}.{name}", [f"{prefix}.{name}"]) for name in norms]
        packs += [(name, [name]) for name in (f"{attention}.o_proj", f"{mlp}.down_proj")]
        packs.append((f"{attention}.qkv_proj", [f"{attention}.{kind}_proj" for kind in "qkv"]))
        packs.append((f"{mlp}.gate_up_proj", [f"{mlp}.{kind}_proj" for kind in ("gate", "up")]))
    for name, parts in packs:
        parts = [name] if f"{name}.weight" in names else parts
        yield f"{name}.weight", np.concatenate([weights.get(f"{part}.weight") for part in parts])
        if any(f"{part}.bias" in names for part in parts):
            yield f"{name}.bias", np.concatenate([weights.get(f"{part}.bias") for part in parts])


def _rotated(heads: Tensor, turn: _Turn) -> Tensor:
    """Heads [b, s, n, width] turned by their positions, in halves; numbers beyond the rotary's stay as they are."""
    cosines, sines = turn
    half = cosines.shape[-1]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return torch.cat([*turned, rest], -1).to(heads.dtype)
