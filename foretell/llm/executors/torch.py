"""The executor on PyTorch, for CUDA and the CPU. Knows no packages and no scheduling.

Keys and values lie in memory that never moves; on a GPU a decoding step is captured once for each size as a CUDA
graph, and tokens are chosen where the logits are.
"""

import importlib
import importlib.util
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from foretell.accel.torch import free_memory, prepare
from foretell.core.errors import ConfigError
from foretell.llm.executors.base import Block, Scores, Shape, Work
from foretell.llm.executors.memory import KvMemory
from foretell.llm.spec import DecoderSpec
from foretell.llm.torch import Batch, Decoder
from foretell.llm.torch_graphs import CapturedStep, Decoded
from foretell.llm.torch_scores import DeviceScores, pick
from foretell.llm.weights import Weights

LOG = logging.getLogger("foretell.llm.executors.torch")


_KERNELS = "foretell.llm.torch_step"
"""Imported where triton is."""

_STEP = 256
"""Where attention cannot read by lengths it reads a multiple of this many positions: one captured graph for each."""


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
    executor = TorchExecutor(decoder, _fitting(decoder, settings), settings.context)
    executor.capture()
    return executor


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
        self._joined = _joined(decoder)
        self._captured: dict[tuple[int, int], CapturedStep] = {}
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

    def capture(self) -> None:
        """Capture the steps of joined kernels in all sizes now, since compiling them takes seconds the first time.

        Where they cannot be compiled (Triton needs a C compiler) the decoder's own layers run.
        """
        if self._joined is None:
            return
        try:
            for power in range((min(self._shape.slots, self._joined.ROWS) - 1).bit_length() + 1):
                self._captured_step(min(1 << power, self._shape.slots), 1)
        except Exception as error:
            LOG.warning("decoding is slower than it could be, as its kernels don't run here: %s", error)
            self._joined = None
            self._captured.clear()

    def run(self, works: Sequence[Work]) -> Scores:
        """Run the works."""
        rows: list[int] = []
        pieces: list[Decoded] = []
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
            if len(pieces) > 1:
                logits = torch.cat([piece.logits for piece in pieces])
                pieces = [Decoded(logits if rows == sorted(rows) else logits[np.argsort(rows)])]
        return DeviceScores(*pieces[0]) if self._decoder.device.type == "cuda" else Scores(pieces[0].logits.numpy())

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

    def _several(self, group: list[Work]) -> list[Decoded]:
        """Of works with s tokens each: [] where no scores are wanted."""
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
        return [Decoded(self._decoder.logits(pick(hidden, wanted)))] if wanted else []

    def _decode(self, group: list[Work]) -> list[Decoded]:
        """Of works with one token each, from the first slots up to the last in use: [] where no scores are wanted.

        Slots between that have no work compute something too: it goes to the position behind the context.
        """
        size, reach = max(work.slot for work in group) + 1, max(work.past for work in group) + 1
        gpu = self._decoder.device.type == "cuda"
        if gpu:
            size = min(1 << (size - 1).bit_length(), self._shape.slots)
        inputs = np.zeros((2, size), np.int64)
        inputs[1] = self._shape.context
        for work in group:
            inputs[:, work.slot] = work.tokens[0], work.past
        wanted = [work.slot for work in group if work.outputs]
        if gpu:
            decoded = self._captured_step(size, reach)(torch.from_numpy(inputs), wanted)
            return [decoded] if wanted else []
        hidden = self._hidden(torch.from_numpy(inputs), reach)
        return [Decoded(self._decoder.logits(pick(hidden, wanted)))] if wanted else []

    def _hidden(self, inputs: Tensor, reach: int) -> Tensor:
        tokens, positions = inputs[:, :, None]
        batch = Batch(tokens, positions, self._slots[: len(tokens)], 0, reach)
        return self._decoder.forward(batch, self._caches).flatten(0, 1)

    def _captured_step(self, size: int, reach: int) -> CapturedStep:
        """A decoding step as a CUDA graph: one launch in place of one for each kernel. Captured on first use.

        Joined kernels read by lengths: one graph for a size; else it takes one for a size and a reach.
        """
        joined = self._joined is not None and size <= self._joined.ROWS
        reach = 0 if joined else min(_rounded(reach), self._shape.context)
        if (size, reach) not in self._captured:
            step = self._joined_step if joined else partial(self._plain_step, reach)
            self._captured[size, reach] = CapturedStep(step, size, self._shape.context, self._pool)
        return self._captured[size, reach]

    def _joined_step(self, inputs: Tensor) -> Decoded:
        logits = self._joined.logits(*inputs, self._caches)
        return Decoded(logits, self._joined.best(logits))

    def _plain_step(self, reach: int, inputs: Tensor) -> Decoded:
        return Decoded(self._decoder.logits(self._hidden(inputs, reach)))


def _joined(decoder: Decoder) -> Any:
    """The step by joined kernels where they can run: with triton, on a GPU that computes in bfloat16. Else None.

    Not in float16: a row is multiplied by a norm's weights before its size is known, which might overflow there.
    """
    able = decoder.device.type == "cuda" and torch.cuda.get_device_capability(decoder.device) >= (8, 0)
    if able and decoder.dtype != torch.float16 and importlib.util.find_spec("triton") is not None:
        return importlib.import_module(_KERNELS).JoinedStep(decoder)
    return None


def _rounded(reach: int) -> int:
    """Up to a multiple of 256, beyond 1024 of a quarter of the power of two below: few graphs, little read in vain."""
    step = max(_STEP, (1 << (reach - 1).bit_length()) // 8)
    return -(-reach // step) * step
