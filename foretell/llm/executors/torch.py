"""The executor on PyTorch, for CUDA and the CPU: the decoder of a spec with weights as they are in checkpoints.

Written from the same spec as the ONNX graph (graph.py), so every family that one knows, this one knows. Keys and
values lie in memory that never moves; on a GPU a decoding step is captured once for each size as a CUDA graph.
Knows no packages and no scheduling.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from foretell.accel.torch import prepare
from foretell.core.errors import ConfigError
from foretell.llm.executors.base import Block, Scores, Shape, Work
from foretell.llm.executors.memory import KvMemory
from foretell.llm.rotary import rotary_tables
from foretell.llm.spec import DecoderSpec, Rotary
from foretell.llm.weights import Weights

_STEP = 256
"""On a GPU attention reads this many positions or a multiple of it: one captured graph for each."""


class TorchSettings(msgspec.Struct, frozen=True):
    """`slots` sequences at a time of at most `context` tokens. `dtype` auto: bfloat16 on a GPU, else float32."""

    slots: int
    context: int
    threads: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"


class _Batch(NamedTuple):
    """Tokens int64 [b, s] at `positions` [b, s] of slots `slots` [b]; attention reads the first `reach` positions.

    `first` is the first of the slots when they follow each other (their memory is then used where it lies), or -1.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    first: int
    reach: int


def open_torch(spec: DecoderSpec, weights: Weights, settings: TorchSettings) -> "TorchExecutor":
    """Load the weights. Raises `ConfigError` when the device is not to be had, `PackageError` for missing weights."""
    if settings.slots < 1 or not 1 <= settings.context <= spec.context:
        raise ConfigError(
            f"{settings.slots} slots of {settings.context} tokens: it must be at least 1 slot, and at most"
            f" {spec.context} tokens, which is what the model was opened for"
        )
    device = prepare(settings.device, settings.threads)
    name = settings.dtype if settings.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return TorchExecutor(_Decoder(spec, weights, device, getattr(torch, name)), settings.slots, settings.context)


class TorchExecutor:
    """Implements `Executor`. Works of equally many tokens run together, in whatever slots they are.

    Each slot has one position more than the context: what must be computed and is not wanted is written there.
    """

    def __init__(self, decoder: "_Decoder", slots: int, context: int) -> None:
        self._decoder = decoder
        spec = decoder.spec
        arrays, shape = 2 * spec.layers, (slots, spec.kv_heads, context + 1, spec.head_dim)
        self._memory: KvMemory | None = None
        if decoder.device.type == "cpu" and decoder.dtype == torch.float32:
            self._memory = memory = KvMemory(arrays, slots, spec.kv_heads, context + 1, spec.head_dim, np.float32)
            self._caches = [torch.from_numpy(memory.part(array, 0, slots)) for array in range(arrays)]
        else:  # zeros, since a masked position still weighs 0 * what lies there
            self._caches = [torch.zeros(shape, dtype=decoder.dtype, device=decoder.device) for _ in range(arrays)]
        token_bytes = arrays * spec.kv_heads * spec.head_dim * self._caches[0].element_size()
        self._shape = Shape(spec.vocab, slots, context, token_bytes)
        self._captured: dict[tuple[int, int], Callable[[Tensor, Tensor], Tensor]] = {}

    @property
    def shape(self) -> Shape:
        return self._shape

    def run(self, works: Sequence[Work]) -> Scores:
        """Run the works. Logits are float32 in the host's memory, of this run alone."""
        rows: list[int] = []
        pieces: list[Tensor] = []
        starts = np.cumsum([0, *(work.outputs for work in works)]).tolist()
        counts: dict[int, list[int]] = {}
        for number, work in enumerate(works):
            counts.setdefault(len(work.tokens), []).append(number)
        with torch.inference_mode():
            for count, members in counts.items():
                group = [works[number] for number in members]
                hidden = self._decode(group) if count == 1 else self._several(group)
                wanted: list[int] = []
                for place, number in enumerate(members):
                    outputs = works[number].outputs
                    wanted += range((place + 1) * count - outputs, (place + 1) * count)
                    rows += range(starts[number], starts[number] + outputs)
                if wanted:
                    pieces.append(self._decoder.logits(hidden.flatten(0, 1)[wanted]))
        if not pieces:
            return Scores(np.empty((0, self._shape.vocab), np.float32))
        logits = torch.cat(pieces).cpu().numpy()
        return Scores(logits[np.argsort(rows)])

    def move(self, source: int, target: int, length: int) -> None:
        for cache in self._caches:
            cache[target, :, :length] = cache[source, :, :length]
        self.release(source)

    def read(self, slot: int, start: int, stop: int) -> Block:
        block: Block = torch.stack([cache[slot, :, start:stop] for cache in self._caches])
        return block

    def write(self, slot: int, start: int, block: Block) -> None:
        assert isinstance(block, Tensor)
        for cache, part in zip(self._caches, block, strict=True):
            cache[slot, :, start : start + part.shape[1]] = part

    def release(self, slot: int) -> None:
        """On a GPU, where memory was taken whole at the start, this does nothing."""
        if self._memory is not None:
            self._memory.release(slot)

    def close(self) -> None:
        self._captured.clear()
        self._caches = []
        if self._memory is not None:
            self._memory.close()

    def _several(self, group: list[Work]) -> Tensor:
        """Hidden states [b, s, hidden] of works with s tokens each."""
        device, count = self._decoder.device, len(group[0].tokens)
        past = torch.tensor([work.past for work in group], device=device)
        slots = [work.slot for work in group]
        batch = _Batch(
            torch.tensor([list(work.tokens) for work in group], device=device),
            past[:, None] + torch.arange(count, device=device),
            torch.tensor(slots, device=device),
            slots[0] if slots == list(range(slots[0], slots[0] + len(slots))) else -1,
            max(work.past for work in group) + count,
        )
        return self._decoder.forward(batch, self._caches)

    def _decode(self, group: list[Work]) -> Tensor:
        """Hidden states [b, 1, hidden] of works with one token each, from the first slots up to the last in use.

        Slots between that have no work compute something too: it goes to the position behind the context.
        """
        size, reach = max(work.slot for work in group) + 1, max(work.past for work in group) + 1
        gpu = self._decoder.device.type == "cuda"
        if gpu:
            size = min(1 << (size - 1).bit_length(), self._shape.slots)
            reach = min(-(-reach // _STEP) * _STEP, self._shape.context)
        tokens, positions = np.zeros((size, 1), np.int64), np.full((size, 1), self._shape.context)
        for work in group:
            tokens[work.slot], positions[work.slot] = work.tokens[0], work.past
        inputs = torch.from_numpy(tokens), torch.from_numpy(positions)
        step = self._captured_step(size, reach) if gpu else self._step(size, reach)
        return step(*inputs)[[work.slot for work in group]]

    def _step(self, size: int, reach: int) -> Callable[[Tensor, Tensor], Tensor]:
        slots = torch.arange(size, device=self._decoder.device)
        return lambda tokens, positions: self._decoder.forward(_Batch(tokens, positions, slots, 0, reach), self._caches)

    def _captured_step(self, size: int, reach: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The same as a CUDA graph: one launch in place of one for each kernel. Captured on first use."""
        if (size, reach) not in self._captured:
            self._captured[size, reach] = _capture(self._step(size, reach), size, self._shape.context)
        return self._captured[size, reach]


def _capture(step: Callable[[Tensor, Tensor], Tensor], size: int, idle: int) -> Callable[[Tensor, Tensor], Tensor]:
    tokens = torch.zeros((size, 1), dtype=torch.int64, device="cuda")
    positions = torch.full((size, 1), idle, dtype=torch.int64, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up in a first run, which may not be captured
        step(tokens, positions)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hidden = step(tokens, positions)

    def replay(new_tokens: Tensor, new_positions: Tensor) -> Tensor:
        tokens.copy_(new_tokens)
        positions.copy_(new_positions)
        graph.replay()
        return hidden

    return replay


class _Decoder:
    """The layers, as functions of tensors. `forward` writes keys and values into the caches that it is given."""

    def __init__(self, spec: DecoderSpec, weights: Weights, device: Any, dtype: Any) -> None:
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self._weights = {
            name: torch.tensor(array, dtype=dtype, device=device) for name, array in _packed(spec, weights)
        }
        self._rotary = self._tables(spec.rotary)
        self._local = self._tables(spec.local_rotary) if spec.local_rotary else self._rotary

    def forward(self, batch: _Batch, caches: Sequence[Tensor]) -> Tensor:
        """Hidden states [b, s, hidden] behind the last layer, before the last norm."""
        stream = functional.embedding(batch.tokens.to(self.device), self._weights["model.embed_tokens.weight"])
        stream = stream * self.spec.embedding_scale
        batch = batch._replace(positions=batch.positions.to(self.device))
        masks = {window: self._mask(batch, window) for window in set(self.spec.attention.windows)}
        post = self.spec.norm.post
        for layer, window in enumerate(self.spec.attention.windows):
            name = f"model.layers.{layer}"
            normed = self._norm(stream, f"{name}.input_layernorm")
            update = self._attention(
                f"{name}.self_attn", normed, batch, caches[2 * layer : 2 * layer + 2], window, masks
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
        self, name: str, normed: Tensor, batch: _Batch, caches: Sequence[Tensor], window: int, masks: dict[int, Tensor]
    ) -> Tensor:
        attention = self.spec.attention
        heads = self._linear(f"{name}.qkv_proj", normed).unflatten(-1, (-1, attention.head_dim))
        queries, keys, values = heads.split([attention.heads, attention.kv_heads, attention.kv_heads], 2)
        if attention.qk_norm:
            queries, keys = self._norm(queries, f"{name}.q_norm"), self._norm(keys, f"{name}.k_norm")
        tables = self._local if window else self._rotary
        queries, keys = _rotated(queries, batch.positions, tables), _rotated(keys, batch.positions, tables)
        read = []
        for cache, new in zip(caches, (keys, values), strict=True):
            cache[batch.slots[:, None], :, batch.positions] = new
            own = cache[batch.slots] if batch.first < 0 else cache[batch.first : batch.first + len(batch.slots)]
            read.append(own[:, :, : batch.reach])
        attended = self._attend(queries.transpose(1, 2), read[0], read[1], masks[window])
        return self._linear(f"{name}.o_proj", attended.transpose(1, 2).flatten(2))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        attention = self.spec.attention
        if not attention.cap:
            return functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, scale=attention.scale, enable_gqa=True
            )
        shared = attention.heads // attention.kv_heads
        keys, values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
        scores = (queries @ keys.transpose(2, 3)).float() * attention.scale
        scores = torch.tanh(scores / attention.cap) * attention.cap
        return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(values.dtype) @ values

    def _mask(self, batch: _Batch, window: int) -> Tensor:
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
        return functional.linear(value, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def _norm(self, value: Tensor, name: str) -> Tensor:
        """RMS norm, in float32 as transformers does it."""
        norm, wide = self.spec.norm, value.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
        return (scaled * (self._weights[f"{name}.weight"].float() + norm.offset)).to(value.dtype)

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


def _rotated(heads: Tensor, positions: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Heads [b, s, n, width] turned by their positions, in halves; numbers beyond the rotary's stay as they are."""
    cosines, sines = (table[positions][:, :, None] for table in tables)
    half = cosines.shape[-1]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return torch.cat([*(part.to(heads.dtype) for part in turned), rest], -1)
