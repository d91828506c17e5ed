"""Batches of rows of different lengths: cut into groups of like lengths when that saves padding.

Knows masks and lengths, not tokens. The plain twin is the wrapped predictor itself.
"""

import numpy as np

from foretell.core.model import Predictor
from foretell.core.tensor import Signature, Tensor, Tensors

RUN_COST = 16
"""What one more run of the model costs, in tokens: MiniLM takes 2.4 ms + 0.3 ms a token, a larger model less."""

RUN_TOKENS = 1024
"""A CPU gains nothing from more tokens in one run (64 rows of 32 run as fast in parts of 8), and memory grows."""

WORTHWHILE = 0.9
"""Groups are made only if they bring the cost of the batch below this share."""


class Ragged:
    """A predictor over padded [n, t] inputs that runs long and short rows apart.

    Rows are right-padded and `mask` [n, t] is 1 where a token is. Outputs with a variable second axis come back
    as [n, t, …] with zeros where a row's group had no such position; those positions are masked ones.
    """

    def __init__(self, predictor: Predictor, mask: str, run_tokens: int = RUN_TOKENS) -> None:
        self._predictor = predictor
        self._mask = mask
        self._run_tokens = run_tokens
        self._sliced = {s.name for s in predictor.signature.inputs if len(s.shape) == 2 and s.shape[1] == -1}
        self._padded = {s.name for s in predictor.signature.outputs if len(s.shape) > 1 and s.shape[1] == -1}

    @property
    def signature(self) -> Signature:
        return self._predictor.signature

    def predict(self, inputs: Tensors) -> Tensors:
        mask = inputs[self._mask]
        lengths = mask.sum(axis=1)
        if len(lengths) < 2 or not mask[:, 0].all():
            return self._predictor.predict(inputs)
        groups = limit_groups(plan_groups(lengths), lengths, self._run_tokens)
        if len(groups) == 1:
            return self._predictor.predict(inputs)
        merged: Tensors = {}
        for rows in groups:
            self._merge(merged, self._run(inputs, rows, int(lengths[rows].max())), rows, mask.shape)
        return merged

    def close(self) -> None:
        self._predictor.close()

    def _run(self, inputs: Tensors, rows: Tensor, longest: int) -> Tensors:
        return self._predictor.predict(
            {
                name: np.ascontiguousarray(array[rows, :longest]) if name in self._sliced else array[rows]
                for name, array in inputs.items()
            }
        )

    def _merge(self, merged: Tensors, part: Tensors, rows: Tensor, shape: tuple[int, ...]) -> None:
        for name, array in part.items():
            padded = name in self._padded
            if name not in merged:
                full = shape + array.shape[2:] if padded else shape[:1] + array.shape[1:]
                merged[name] = np.zeros(full, array.dtype)
            if padded:
                merged[name][rows, : array.shape[1]] = array
            else:
                merged[name][rows] = array


def plan_groups(lengths: Tensor, run_cost: int = RUN_COST, worthwhile: float = WORTHWHILE) -> list[Tensor]:
    """Row numbers by group so that Σ(rows × longest + run_cost) is least; one group if that saves too little.

    Optimal among all partitions: rows in order of length, cut where the sum is least (dynamic programming over
    the distinct lengths).
    """
    together = len(lengths) * int(lengths.max()) + run_cost
    if int(lengths.sum()) + run_cost > worthwhile * together:
        return [np.arange(len(lengths))]  # not even rows without any padding would save enough
    order = np.argsort(lengths, kind="stable")
    longest, counts = np.unique(lengths, return_counts=True)
    ends = np.concatenate(([0], np.cumsum(counts)))
    best = np.zeros(len(longest) + 1)
    cuts = np.zeros(len(longest) + 1, dtype=int)
    for last in range(1, len(ends)):
        costs = best[:last] + (ends[last] - ends[:last]) * longest[last - 1] + run_cost
        cuts[last] = int(costs.argmin())
        best[last] = costs[cuts[last]]
    if best[-1] > worthwhile * together:
        return [np.arange(len(lengths))]
    groups: list[Tensor] = []
    last = len(longest)
    while last > 0:
        groups.append(order[ends[cuts[last]] : ends[last]])
        last = int(cuts[last])
    return groups[::-1]


def limit_groups(groups: list[Tensor], lengths: Tensor, run_tokens: int) -> list[Tensor]:
    """Cut groups of more than `run_tokens` tokens, padding included, into like parts (0: no limit)."""
    if run_tokens == 0:
        return groups
    limited: list[Tensor] = []
    for rows in groups:
        parts = -(-len(rows) * int(lengths[rows].max()) // run_tokens)
        limited += np.array_split(rows, min(parts, len(rows)))
    return limited
