"""The contract between the engine and what runs one step of a decoder on a device."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from foretell.llm.draws import Draw, draw, draw_ranked, largest


class Work(NamedTuple):
    """Tokens to run through one slot: position `past` is the first one's, so `past` tokens are in the slot already.

    Scores are wanted for the last `outputs` positions: 0 for a prompt chunk that is not the last, 1 for decoding,
    1 + drafts for a verification.
    """

    slot: int
    past: int
    tokens: Sequence[int]
    outputs: int


class Scores:
    """Of m positions, in the order of the works. Everything but `logits` is computed when it is first asked for.

    `logits` float32 [m, vocab] may be the executor's own buffer: all is valid until the next `run`. `heads` is k of
    `ids` and `values`, at most the vocabulary.
    """

    def __init__(self, logits: NDArray[np.float32], heads: int = 64) -> None:
        self.logits = logits
        self.heads = min(heads, logits.shape[1])

    @cached_property
    def best(self) -> NDArray[np.int64]:
        """int64 [m]: the largest logit's id, of equal ones the smallest: all that greedy decoding needs."""
        best: NDArray[np.int64] = self.logits.argmax(axis=1)
        return best

    @property
    def ids(self) -> NDArray[np.int64]:
        """int64 [m, k]: the ids of the k largest logits, best first, equal ones by smaller id."""
        return self._largest[0]

    @property
    def values(self) -> NDArray[np.float32]:
        """float32 [m, k]: the k largest logits, best first."""
        return self._largest[1]

    def drawn(self, draws: Sequence[Draw]) -> list[int]:
        """A token for each draw."""
        return [self._drawn(one) for one in draws]

    def row(self, row: int) -> NDArray[np.float32]:
        """float32 [vocab]: the logits of one row."""
        logits: NDArray[np.float32] = self.logits[row]
        return logits

    def log_total(self, row: int) -> float:
        """The log of the sum of exp(logits) of one row."""
        logits = self.row(row)
        top = logits.max()
        return float(top + np.log(np.exp(logits - top).sum()))

    def _drawn(self, one: Draw) -> int:
        if 0 < one.top_k <= self.heads:  # executors have the best at hand
            return int(self.ids[one.row, draw_ranked(self.values[one.row, : one.top_k], one)])
        return draw(self.logits[one.row], one)

    @cached_property
    def _largest(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        ids = np.empty((len(self.logits), self.heads), np.int64)
        values = np.empty(ids.shape, np.float32)
        for row, logits in enumerate(self.logits):
            ids[row] = largest(logits, self.heads)
            values[row] = logits[ids[row]]
        return ids, values


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
