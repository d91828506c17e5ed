"""The executor on PyTorch, for CUDA and the CPU. Knows no packages and no scheduling.

Keys and values lie in memory that never moves; on a GPU a decoding step is captured once for each size as a CUDA
graph, and logits stay there unless somebody asks for them.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foretell.accel.torch import free_memory, prepare
from foretell.core.errors import ConfigError
from foretell.llm.executors.base import Block, Scores, Shape, Work
from foretell.llm.executors.memory import KvMemory
from foretell.llm.spec import DecoderSpec
from foretell.llm.torch import Batch, Decoder
from foretell.llm.weights import Weights

LOG = logging.getLogger("foretell.llm.executors.torch")

_Step = Callable[[Tensor, Tensor], Tensor]
"""From tokens and positions, int64 [size, 1] each."""

_STEP = 256
"""On a GPU attention reads a multiple of this many positions: one captured graph for each."""


class TorchSettings(msgspec.Struct, frozen=True):
    """`slots` sequences at a time of at most `context` tokens. `dtype` auto: bfloat16 on a GPU, else float32.

    Memory for keys and values that is taken whole (all but float32 on the CPU) is at most `kv_bytes`, or `kv_share` of
    what is free with the weights loaded: there are fewer slots where it does not suffice.
    """

    slots: int
    context: int
    threads: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    kv_bytes: int = 0
    kv_share: float = 0.7


def open_torch(spec: DecoderSpec, weights: Weights, settings: TorchSettings) -> "TorchExecutor":
    """Load the weights. Raises `ConfigError` when the device is not to be had, `PackageError` for missing weights."""
    if settings.slots < 1 or not 1 <= settings.context <= spec.context:
        raise ConfigError(
            f"{settings.slots} slots of {settings.context} tokens: it must be at least 1 slot, and at most"
            f" {spec.context} tokens, which is what the model was opened for"
        )
    device = prepare(settings.device, settings.threads)
    name = settings.dtype if settings.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    decoder = Decoder(spec, weights, device, getattr(torch, name))
    return TorchExecutor(decoder, _fitting(decoder, settings), settings.context)


def _fitting(decoder: Decoder, settings: TorchSettings) -> int:
    """How many slots there is memory for. Raises `ConfigError` when there is none for a single one."""
    if _is_lazy(decoder):
        return settings.slots
    room = settings.kv_bytes or int(free_memory(decoder.device) * settings.kv_share)
    one = (settings.context + 1) * decoder.token_bytes
    slots = min(settings.slots, room // one)
    if slots < 1:
        raise ConfigError(
            f"the keys and values of one sequence of {settings.context} tokens take {one / 1e9:.2f} GB, and there are"
            f" {room / 1e9:.2f} GB for them; set [generation] context lower, or kv_memory_mb higher"
        )
    if slots < settings.slots:
        LOG.warning(
            "%s has memory for %d sequences of %d tokens, not for %d; a lower [generation] context makes more",
            decoder.device,
            slots,
            settings.context,
            settings.slots,
        )
    return slots


def _is_lazy(decoder: Decoder) -> bool:
    """Whether keys and values take memory only as they come, as numpy's do."""
    return bool(decoder.device.type == "cpu" and decoder.dtype == torch.float32)


class TorchExecutor:
    """Implements `Executor`. Works of equally many tokens run together, in whatever slots they are.

    Each slot has one position more than the context: what must be computed and is not wanted is written there.
    """

    def __init__(self, decoder: Decoder, slots: int, context: int) -> None:
        self._decoder = decoder
        spec = decoder.spec
        arrays, shape = 2 * spec.layers, (slots, spec.kv_heads, context + 1, spec.head_dim)
        self._memory: KvMemory | None = None
        if _is_lazy(decoder):
            self._memory = memory = KvMemory(arrays, slots, spec.kv_heads, context + 1, spec.head_dim, np.float32)
            self._all = torch.from_numpy(memory.whole)
        else:  # zeros, since a masked position still weighs 0 * what lies there
            self._all = torch.zeros((arrays, *shape), dtype=decoder.dtype, device=decoder.device)
        self._caches = list(self._all.unbind())
        self._shape = Shape(spec.vocab, slots, context, decoder.token_bytes)
        self._slots = torch.arange(slots, device=decoder.device)  # captured graphs read it: it must stay where it is
        self._captured: dict[tuple[int, int], _Step] = {}
        self._pool: Any = torch.cuda.graph_pool_handle() if decoder.device.type == "cuda" else None

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def device(self) -> str:
        """cpu or cuda."""
        return str(self._decoder.device.type)

    @property
    def lazy(self) -> bool:
        """Whether keys and values take memory only as they come."""
        return self._memory is not None

    def free_memory(self) -> int:
        """Bytes that are left where the weights lie."""
        return free_memory(self._decoder.device)

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
                pieces += self._decode(group) if count == 1 else self._several(group)
                for number in members:
                    rows += range(starts[number], starts[number] + works[number].outputs)
            if not pieces:
                return Scores(np.empty((0, self._shape.vocab), np.float32))
            logits = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            if rows != list(range(len(rows))):
                logits = logits[np.argsort(rows)]
        return _DeviceScores(logits) if self._decoder.device.type == "cuda" else Scores(logits.numpy())

    def move(self, source: int, target: int, length: int) -> None:
        self._all[:, target, :, :length] = self._all[:, source, :, :length]
        self.release(source)

    def read(self, slot: int, start: int, stop: int) -> Block:
        block: Block = self._all[:, slot, :, start:stop].clone()
        return block

    def write(self, slot: int, start: int, block: Block) -> None:
        assert isinstance(block, Tensor)
        self._all[:, slot, :, start : start + block.shape[2]] = block

    def release(self, slot: int) -> None:
        """On a GPU, where memory was taken whole at the start, this does nothing."""
        if self._memory is not None:
            self._memory.release(slot)

    def close(self) -> None:
        self._captured.clear()
        self._caches = []
        self._all = torch.empty(0)
        if self._memory is not None:
            self._memory.close()

    def _several(self, group: list[Work]) -> list[Tensor]:
        """Logits of works with s tokens each: [] or one tensor."""
        device, count = self._decoder.device, len(group[0].tokens)
        past = torch.tensor([work.past for work in group], device=device)
        slots = [work.slot for work in group]
        batch = Batch(
            torch.tensor([list(work.tokens) for work in group], device=device),
            past[:, None] + torch.arange(count, device=device),
            torch.tensor(slots, device=device),
            slots[0] if slots == list(range(slots[0], slots[0] + len(slots))) else -1,
            max(work.past for work in group) + count,
        )
        hidden = self._decoder.forward(batch, self._caches).flatten(0, 1)
        wanted = [
            row for place, work in enumerate(group, 1) for row in range(place * count - work.outputs, place * count)
        ]
        return [self._decoder.logits(_rows(hidden, wanted))] if wanted else []

    def _decode(self, group: list[Work]) -> list[Tensor]:
        """Logits of works with one token each, from the first slots up to the last in use: [] or one tensor.

        Slots between that have no work compute something too: it goes to the position behind the context.
        """
        size, reach = max(work.slot for work in group) + 1, max(work.past for work in group) + 1
        gpu = self._decoder.device.type == "cuda"
        if gpu:
            size = min(1 << (size - 1).bit_length(), self._shape.slots)
            reach = min(_rounded(reach), self._shape.context)
        tokens, positions = np.zeros((size, 1), np.int64), np.full((size, 1), self._shape.context)
        for work in group:
            tokens[work.slot], positions[work.slot] = work.tokens[0], work.past
        inputs = torch.from_numpy(tokens), torch.from_numpy(positions)
        wanted = [work.slot for work in group if work.outputs]
        if gpu:
            logits = self._captured_step(size, reach)(*inputs)
            return [_rows(logits, wanted).clone()] if wanted else []  # the next replay writes where these lie
        hidden = self._hidden(size, reach)(*inputs).flatten(0, 1)
        return [self._decoder.logits(_rows(hidden, wanted))] if wanted else []

    def _hidden(self, size: int, reach: int) -> _Step:
        slots = self._slots[:size]
        return lambda tokens, positions: self._decoder.forward(Batch(tokens, positions, slots, 0, reach), self._caches)

    def _captured_step(self, size: int, reach: int) -> _Step:
        """From tokens to logits [size, vocab] as a CUDA graph: one launch in place of one for each kernel.

        Captured on first use.
        """
        if (size, reach) not in self._captured:
            hidden, logits = self._hidden(size, reach), self._decoder.logits
            self._captured[size, reach] = _capture(
                lambda tokens, positions: logits(hidden(tokens, positions).flatten(0, 1)),
                size,
                self._shape.context,
                self._pool,
            )
        return self._captured[size, reach]


class _DeviceScores(Scores):
    """Scores whose logits [m, vocab] stay on the device until somebody asks for them: greedy decoding never does."""

    def __init__(self, logits: Tensor, heads: int = 64) -> None:
        self._logits = logits
        self.heads = min(heads, logits.shape[1])

    @cached_property
    def logits(self) -> NDArray[np.float32]:  # type: ignore[override]
        host: NDArray[np.float32] = self._logits.cpu().numpy()
        return host

    @cached_property
    def best(self) -> NDArray[np.int64]:
        """Of equal ones the smallest, which torch's argmax does not promise."""
        logits = self._logits
        ids = torch.arange(logits.shape[1], device=logits.device)
        best: NDArray[np.int64] = (
            torch.where(logits == logits.amax(-1, keepdim=True), ids, logits.shape[1] - 1).amin(-1).cpu().numpy()
        )
        return best

    @cached_property
    def _largest(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        values, ids = self._logits.sort(dim=-1, descending=True, stable=True)
        return ids[:, : self.heads].cpu().numpy(), values[:, : self.heads].cpu().numpy()


def _rounded(reach: int) -> int:
    """Up to a multiple of 256, beyond 1024 of a quarter of the power of two below: few graphs, little read in vain."""
    step = max(_STEP, (1 << (reach - 1).bit_length()) // 8)
    return -(-reach // step) * step


def _rows(tensor: Tensor, rows: list[int]) -> Tensor:
    """The rows of a tensor; a view where they follow each other, so that no numbers go to the device."""
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return tensor[rows[0] : rows[0] + len(rows)]
    return tensor[rows]


def _capture(step: _Step, size: int, idle: int, pool: Any) -> _Step:
    """Graphs share the memory `pool`: the result is valid until any of them runs again."""
    tokens = torch.zeros((size, 1), dtype=torch.int64, device="cuda")
    positions = torch.full((size, 1), idle, dtype=torch.int64, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up in a first run, which may not be captured
        step(tokens, positions)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = step(tokens, positions)

    def replay(new_tokens: Tensor, new_positions: Tensor) -> Tensor:
        tokens.copy_(new_tokens)
        positions.copy_(new_positions)
        graph.replay()
        return result

    return replay
