"""The executor on ONNX Runtime: decoder graphs with our inputs and outputs, or those of onnxruntime-genai's builder.

Keys and values are bound once for each range of slots and updated in place; logits are written into one buffer.
Knows no tokens' meaning, no packages and no scheduling.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from foretell.accel.binding import Binding
from foretell.accel.ort import Session, open_session
from foretell.core.errors import ConfigError, PackageError
from foretell.core.tensor import DTYPES, TensorSpec
from foretell.llm.executors.base import Block, Scores, Shape, Work
from foretell.llm.executors.memory import KvMemory
from foretell.llm.executors.runs import Run, split

_KNOWN = {"input_ids", "attention_mask", "position_ids", "logits_rows"}
_MOST_BINDINGS = 256
"""Ranges of slots whose bindings are kept; each takes some ten kilobytes."""


class OnnxSettings(msgspec.Struct, frozen=True):
    """`slots` sequences at a time of at most `context` tokens; `threads` 0 is all cores.

    `spinning`: idle threads burn their core between a step's hundreds of short operators. Without it decoding through
    the server ran at 0.69, 0.77 and 0.92 of the speed at 1, 8 and 32 streams (medians of four rounds, two cores).
    """

    slots: int
    context: int
    threads: int = 0
    device: str = "cpu"
    spinning: bool = True


def open_onnx(model: Path, settings: OnnxSettings) -> "OnnxExecutor":
    """Load a decoder graph. Raises `PackageError` when it is not one, `ConfigError` when memory is refused."""
    if settings.slots < 1 or settings.context < 1:
        raise ConfigError(f"{settings.slots} slots of {settings.context} tokens: both must be at least 1")
    session = open_session(model, settings.threads, settings.device, spinning=settings.spinning)
    return OnnxExecutor(session, settings.slots, settings.context)


class OnnxExecutor:
    """Implements `Executor`. Not thread-safe. The arrays of `Scores` are valid until the next `run`."""

    def __init__(self, session: Session, slots: int, context: int) -> None:
        self._session = session
        inputs = {spec.name: spec for spec in session.signature.inputs}
        outputs = {spec.name: spec for spec in session.signature.outputs}
        caches = _caches(inputs, outputs)
        self._names = [(name, _present(name)) for name in caches]
        first = inputs[caches[0]]
        self._memory = KvMemory(len(caches), slots, first.shape[1], context, first.shape[3], DTYPES[first.datatype])
        self._bindings: dict[tuple[int, int], Binding] = {}
        self._gathers = "logits_rows" in inputs
        self._positions = "position_ids" in inputs
        self._logits_type = DTYPES[outputs["logits"].datatype]
        self._shape = Shape(outputs["logits"].shape[-1], slots, context, self._memory.token_bytes)
        self._logits = np.empty((0, self._shape.vocab), np.float32)
        self._every = np.empty(0, self._logits_type)
        self._counting = np.arange(context, dtype=np.int64)

    @property
    def shape(self) -> Shape:
        return self._shape

    def run(self, works: Sequence[Work]) -> Scores:
        """Run the works. Raises `ModelFailed` with the runtime's reason; slots then hold garbage beyond `past`."""
        count = sum(work.outputs for work in works)
        if len(self._logits) < count:
            self._logits = np.empty((count, self._shape.vocab), np.float32)
        rows: list[int] = []
        for run in split(works):
            self._execute(run, self._logits[len(rows) : len(rows) + len(run.rows)])
            rows += run.rows
        logits = self._logits[:count]
        return Scores(logits if rows == list(range(count)) else logits[np.argsort(rows)])

    def move(self, source: int, target: int, length: int) -> None:
        self._memory.move(source, target, length)

    def read(self, slot: int, start: int, stop: int) -> Block:
        return self._memory.read(slot, start, stop)

    def write(self, slot: int, start: int, block: Block) -> None:
        assert isinstance(block, np.ndarray)
        self._memory.write(slot, start, block)

    def release(self, slot: int) -> None:
        self._memory.release(slot)

    def close(self) -> None:
        self._bindings.clear()
        self._session.close()
        self._memory.close()

    def _execute(self, run: Run, logits: NDArray[np.float32]) -> None:
        binding = self._binding(run.first, len(run.tokens))
        tokens = np.array(run.tokens, np.int64)
        lengths = np.array(run.past, np.int64) + tokens.shape[1]
        binding.input("input_ids", tokens)
        binding.input("attention_mask", self._mask(lengths))
        if self._positions:
            binding.input("position_ids", np.array(run.past, np.int64)[:, None] + self._counting[: tokens.shape[1]])
        if self._gathers:
            binding.input("logits_rows", np.array(run.wanted, np.int64))
            binding.output("logits", logits)
            binding.run()
        else:
            every = self._room_for(tokens.shape)
            binding.output("logits", every)
            binding.run()
            logits[:] = every.reshape(-1, self._shape.vocab)[run.wanted]

    def _mask(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n, longest]: 1 for each position of the sequence."""
        return (self._counting[: lengths.max()] < lengths[:, None]).astype(np.int64)

    def _room_for(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """A buffer [n, s, vocab] for graphs that give the logits of all positions."""
        size = shape[0] * shape[1] * self._shape.vocab
        if len(self._every) < size:
            self._every = np.empty(size, self._logits_type)
        return self._every[:size].reshape(*shape, self._shape.vocab)

    def _binding(self, first: int, count: int) -> Binding:
        """The binding of a range of slots, whose keys and values are bound already."""
        binding = self._bindings.get((first, count))
        if binding is None:
            if len(self._bindings) >= _MOST_BINDINGS:
                self._bindings.clear()
            binding = self._bindings[first, count] = Binding(self._session)
            for number, (past, present) in enumerate(self._names):
                part = self._memory.part(number, first, count)
                binding.input(past, part)
                binding.output(present, part)
        return binding


def _caches(inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec]) -> list[str]:
    """Names of the inputs that are keys and values, which must all have one shape. Raises `PackageError`."""
    caches = [name for name in inputs if name.startswith("past_key_values.")]
    strange = sorted(set(inputs) - _KNOWN - set(caches))
    missing = sorted({"input_ids", "attention_mask"} - set(inputs)) + sorted(
        {"logits", *map(_present, caches)} - set(outputs)
    )
    if strange or missing or not caches:
        raise PackageError(
            f"the graph is no decoder that foretell can run: it lacks {', '.join(missing) or 'nothing'}, and has inputs"
            f" that are not known ({', '.join(strange) or 'none'}). Build it with foretell add, or with"
            " onnxruntime-genai's builder"
        )
    shapes = {inputs[name].shape for name in caches}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != 4 or shape[1] < 1 or shape[3] < 1:
        raise PackageError(
            f"keys and values are shaped {sorted(shapes)}; foretell runs graphs whose layers all have"
            " [batch, heads, positions, width], with heads and width fixed"
        )
    return caches


def _present(past: str) -> str:
    return past.replace("past_key_values", "present", 1)
