"""Vectors after the model: pooling token vectors by the mask, scaling rows to unit length."""

import numpy as np

from foretell.core.errors import ModelFailed
from foretell.core.tensor import Tensor, Tensors
from foretell.runtimes.step import MASK, Context
from foretell.store.manifest import NormalizeStep, PoolStep


class Pool:
    """Token vectors `input` [n, t, d] → `output` [n, d] over the tokens that the attention mask keeps."""

    def __init__(self, step: PoolStep, masked: bool) -> None:
        self.reads = (step.input, MASK) if masked else (step.input,)
        self.makes = (step.output,)
        self._step = step
        self._masked = masked

    def __call__(self, tensors: Tensors, given: Tensors) -> Tensors:
        vectors = tensors[self._step.input]
        if vectors.ndim != 3:
            raise ModelFailed(f'pooling needs "{self._step.input}" as [n, t, d], the model made {list(vectors.shape)}')
        mask = given[MASK] if self._masked else np.ones(vectors.shape[:2], np.int64)
        return {self._step.output: pool(vectors, mask, self._step.method)}


def pool(vectors: Tensor, mask: Tensor, method: str) -> Tensor:
    """[n, t, d] and mask [n, t] → [n, d] by the mean, the maximum or the first token ("cls") of each row."""
    if method == "cls":
        first = mask.argmax(axis=1)
        return np.ascontiguousarray(vectors[np.arange(len(vectors)), first])
    if method == "max":
        kept: Tensor = np.where(mask[:, :, None] != 0, vectors, -np.inf).max(axis=1)
        return kept.astype(vectors.dtype)
    weights = mask.astype(vectors.dtype)
    counts = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    # One matrix product a row: no [n, t, d] intermediate.
    mean: Tensor = np.matmul((weights / counts)[:, None, :], vectors)[:, 0, :]
    return mean


class Normalize:
    """Scales each row of `output` to Euclidean length 1; rows of zeros stay zeros."""

    def __init__(self, step: NormalizeStep) -> None:
        self.reads = self.makes = (step.output,)
        self._name = step.output

    def __call__(self, tensors: Tensors, given: Tensors) -> Tensors:
        return {self._name: normalize(tensors[self._name])}


def normalize(vectors: Tensor) -> Tensor:
    """[n, …] → the same shape and dtype, each row divided by its Euclidean length over the last axis."""
    lengths = np.sqrt(np.einsum("...i,...i->...", vectors, vectors, dtype=np.float64))[..., None]
    scaled: Tensor = vectors / np.maximum(lengths, 1e-12)
    return scaled.astype(vectors.dtype)


def make_step(step: PoolStep | NormalizeStep, context: Context) -> Pool | Normalize:
    """Pooling uses the mask if the model takes one, else all positions."""
    if isinstance(step, NormalizeStep):
        return Normalize(step)
    return Pool(step, masked=any(s.name == MASK for s in context.model.inputs))
