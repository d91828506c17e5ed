"""CUDA graphs: what is launched again and again over the same memory is captured once and replayed as one launch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foretell.llm.torch_scores import Draws, anywhere, pick, ranked

_NEUTRAL = (0.0, 1.0, 0.0, 1.0, 1.0)
"""The fields of a `Draw` of a row that nobody asks for."""


class Decoded(NamedTuple):
    """Logits float32 [m, vocab]; where they are at hand, the id of the largest of each int64 [m], and a quick way to
    draw from them."""

    logits: Tensor
    best: Tensor | None = None
    draws: Draws | None = None


Step = Callable[[Tensor], Decoded]
"""From tokens and their positions, int64 [2, size]."""


class CapturedStep:
    """A step of `size` slots, where a slot without work is at position `idle`. Graphs share the memory `pool`: what
    comes of a step, and what is drawn from it, is valid until any of them runs again."""

    def __init__(self, step: Step, size: int, idle: int, pool: Any) -> None:
        self._inputs = torch.zeros((2, size), dtype=torch.int64, device="cuda")
        self._inputs[1] = idle
        self._pool = pool
        self._graph, self._decoded = _capture(lambda: step(self._inputs), pool)
        self._table = torch.empty((size, len(_NEUTRAL)), dtype=torch.float64, device="cuda")
        self._draws: dict[bool, tuple[Any, Tensor]] = {}

    def __call__(self, inputs: Tensor, wanted: list[int]) -> Decoded:
        """What comes of the slots `wanted`."""
        self._inputs.copy_(inputs)
        self._graph.replay()
        logits, best, _ = self._decoded
        if not wanted:
            return Decoded(logits[:0])
        return Decoded(pick(logits, wanted), None if best is None else pick(best, wanted), partial(self._draw, wanted))

    def _draw(self, wanted: list[int], kind: bool, rows: list[int], table: NDArray[np.float64]) -> list[int]:
        """As `Draws`, of what came of the slots `wanted`; captured on first use."""
        slots = [wanted[row] for row in rows]
        every = np.tile(np.array(_NEUTRAL), (len(self._table), 1))
        every[slots] = table
        with torch.inference_mode():
            self._table.copy_(torch.from_numpy(every))
            if kind not in self._draws:
                how = ranked if kind else anywhere
                self._draws[kind] = _capture(lambda: how(self._decoded.logits, self._table), self._pool)
            graph, tokens = self._draws[kind]
            graph.replay()
        found = tokens.tolist()
        return [found[slot] for slot in slots]


def _capture(run: Callable[[], Any], pool: Any) -> tuple[Any, Any]:
    """The graph of what `run` launches, and what it returns."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode():
        with torch.cuda.stream(side):  # libraries set themselves up in a first run, which may not be captured
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            result = run()
    return graph, result
