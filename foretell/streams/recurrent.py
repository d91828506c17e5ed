"""Models with a state of their own: inputs that are fed from outputs of the same key's message before.

`state=stateN` says that the input `state` is what the output `stateN` was. A key's first message gets zeros, and so
does one that comes after the key was `idle`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from foretell.core.errors import ConfigError, did_you_mean
from foretell.core.tensor import DTYPES, Signature, Tensor, Tensors, TensorSpec
from foretell.streams.memory import TENSORS, Memories, Memory, alive, pack, unpack
from foretell.streams.state import StateStore
from foretell.streams.times import Times, duration
from foretell.streams.watermark import Marks


class _Loop(NamedTuple):
    """An input, the output that it is fed from, along which axis its rows are, and what a new key starts with."""

    input: str
    output: str
    axis: int
    start: Tensor


class Recurrent:
    """Keeps tensors by key between messages. `kinds` is what it keeps (see `StateStore.open`)."""

    kinds = {TENSORS: Memories()}  # noqa: RUF012

    def __init__(self, pairs: Iterable[str], signature: Signature, idle: str = "1d") -> None:
        self._loops = tuple(_loop(pair, signature) for pair in pairs)
        self._idle_ms = duration(idle, "idle")
        self.inputs = frozenset(loop.input for loop in self._loops)
        """These inputs come from here and not from the message."""

    def waves(self, keys: Sequence[bytes]) -> list[list[int]]:
        """A micro-batch cut so that no key is in one part twice: each message needs what the one before it left."""
        waves: list[list[int]] = []
        seen: dict[bytes, int] = {}
        for at, key in enumerate(keys):
            wave = seen[key] = seen.get(key, -1) + 1
            if wave == len(waves):
                waves.append([])
            waves[wave].append(at)
        return waves

    def feed(self, store: StateStore, partition: str, keys: Sequence[bytes], times: Times, marks: Marks) -> Tensors:
        """The recurrent inputs of these messages, no key twice among them; times and marks are theirs."""
        table = store.table(partition, TENSORS)
        table.fetch(keys)
        moments = zip(keys, times.tolist(), marks.before.tolist(), strict=True)
        items = [alive(table.held.get(key), time, mark) for key, time, mark in moments]
        return {
            loop.input: np.concatenate(
                [unpack(known[loop.input]) if loop.input in known else loop.start for known in items], loop.axis
            )
            for loop in self._loops
        }

    def keep(
        self, store: StateStore, partition: str, keys: Sequence[bytes], times: Times, marks: Marks, outputs: Tensors
    ) -> Tensors:
        """Keep the model's outputs for the next messages of these keys; gives back the other outputs."""
        table = store.table(partition, TENSORS)
        table.fetch(keys)
        untils = (np.maximum(times, marks.before) + self._idle_ms).tolist()
        for at, (key, until) in enumerate(zip(keys, untils, strict=True)):
            items = {loop.input: pack(np.take(outputs[loop.output], [at], loop.axis)) for loop in self._loops}
            table.put(key, Memory(until, items))
        fed = {loop.output for loop in self._loops}
        return {name: array for name, array in outputs.items() if name not in fed}


def _loop(pair: str, signature: Signature) -> _Loop:
    source, separator, target = pair.partition("=")
    if not separator:
        raise ConfigError(f'"{pair}" says no recurrent tensor; write INPUT=OUTPUT, such as state=stateN')
    given = _spec(source.strip(), signature.inputs, "input")
    made = _spec(target.strip(), signature.outputs, "output")
    alike = len(given.shape) == len(made.shape) and all(
        a == b or -1 in (a, b) for a, b in zip(given.shape, made.shape, strict=True)
    )
    if given.datatype != made.datatype or not alike:
        raise ConfigError(f"{pair}: the output {made} cannot be the input {given} of the next message")
    if given.shape.count(-1) != 1 or given.datatype == "BYTES":
        raise ConfigError(f"{pair}: {given} needs one variable axis, that of the rows, and numbers")
    start = np.zeros([1 if size == -1 else size for size in given.shape], DTYPES[given.datatype])
    return _Loop(given.name, made.name, given.shape.index(-1), start)


def _spec(name: str, specs: Sequence[TensorSpec], what: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise ConfigError(f'the model has no {what} "{name}". {did_you_mean(name, [spec.name for spec in specs])}')
