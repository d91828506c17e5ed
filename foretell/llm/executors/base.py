"""The contract between the engine and what runs one step of a decoder on a device."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Work(NamedTuple):
    """Tokens to run through one slot: position `past` is the first one's, so `past` tokens are in the slot already.

    Scores are wanted for the last `outputs` positions: 0 for a prompt chunk that is not the last, 1 for decoding,
    1 + drafts for a verification.
    """

    slot: int
    past: int
    tokens: Sequence[int]
    outputs: int


class Scores(NamedTuple):
    """Of m positions, in the order of the works. All arrays are valid until the next `run`.

    `logits` float32 [m, vocab]. `ids` int64 [m, k] and `values` float32 [m, k]: the k largest logits, best first,
    equal ones by smaller id. `log_total` float32 [m]: the log of the sum of exp(logits).
    """

    logits: NDArray[np.float32]
    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    log_total: NDArray[np.float32]


class Block(Protocol):
    """Keys and values of some consecutive positions, outside any slot. Opaque to the engine."""

    @property
    def nbytes(self) -> int: ...


class Shape(NamedTuple):
    """`slots` sequences at a time, each of at most `context` tokens; `token_bytes` of KV memory a token."""

    vocab: int
    slots: int
    context: int
    token_bytes: int


class Executor(Protocol):
    """Runs tokens through slots of KV memory. Decides alone how works become runs of the graph.

    Running sequences are kept compact by the engine (slots 0 … n-1 when n run), so that the executor can bind one
    prefix of its buffers. Positions of a slot beyond `past` are garbage, which `run` overwrites: taking tokens back
    (rejected drafts) is naming a smaller `past`.
    """

    @property
    def shape(self) -> Shape: ...

    def run(self, works: Sequence[Work]) -> Scores: ...

    def move(self, source: int, target: int, length: int) -> None:
        """Move the first `length` positions of a slot to another; the source's memory is given back."""

    def read(self, slot: int, start: int, stop: int) -> Block:
        """Copy positions [start, stop) out of a slot."""

    def write(self, slot: int, start: int, block: Block) -> None:
        """Copy a block into a slot at `start`."""

    def release(self, slot: int) -> None:
        """Give the slot's memory back to the system."""

    def close(self) -> None: ...
