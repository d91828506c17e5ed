"""Scores → class labels and their probabilities, the best `top` of each row."""

import msgspec
import numpy as np

from foretell.core.errors import ModelFailed, PackageError
from foretell.core.tensor import Tensor, Tensors
from foretell.runtimes.step import Context
from foretell.store.manifest import LabelsStep


class Labels:
    """Scores `input` [n, c] → `label` BYTES and `probability` FP32, both [n], or [n, top] best first."""

    def __init__(self, step: LabelsStep, labels: list[str]) -> None:
        self.reads = (step.input,)
        self.makes = ("label", "probability")
        self._step = step
        self._labels = np.empty(len(labels), dtype=object)
        self._labels[:] = [label.encode() for label in labels]

    def __call__(self, tensors: Tensors, given: Tensors) -> Tensors:
        scores = tensors[self._step.input]
        if scores.ndim != 2 or scores.shape[1] != len(self._labels):
            raise ModelFailed(
                f'"{self._step.input}" has shape {list(scores.shape)}; the package names {len(self._labels)} labels'
            )
        shares = softmax(scores) if self._step.softmax else scores.astype(np.float32)
        best = top_indices(shares, self._step.top)
        probability = np.take_along_axis(shares, best, axis=1)
        if self._step.top == 1:
            best, probability = best[:, 0], probability[:, 0]
        return {"label": self._labels[best], "probability": np.ascontiguousarray(probability)}


def softmax(scores: Tensor) -> Tensor:
    """[n, c] logits → [n, c] FP32 probabilities; large logits do not overflow."""
    shifted: Tensor = scores.astype(np.float32) - scores.max(axis=1, keepdims=True).astype(np.float32)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted


def top_indices(shares: Tensor, top: int) -> Tensor:
    """The columns of the `top` largest values of each row, largest first; equal values in column order."""
    if top == 1:
        best: Tensor = shares.argmax(axis=1, keepdims=True)
    else:
        best = np.argsort(-shares, axis=1, kind="stable")[:, :top]
    return best


def make_step(step: LabelsStep, context: Context) -> Labels:
    """Read the package's list of labels. Raises `PackageError` if it is no list of strings, or too short."""
    path = context.package.file(step.labels)
    try:
        labels = msgspec.json.decode(path.read_bytes(), type=list[str])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageError(f"{path.name} must be a JSON list of strings, one a class in order: {error}") from None
    spec = next((s for s in context.model.outputs if s.name == step.input), None)
    if spec is not None and len(spec.shape) == 2 and spec.shape[1] not in (-1, len(labels)):
        raise PackageError(f"{path.name} names {len(labels)} labels, the model has {spec}")
    if not 1 <= step.top <= len(labels):
        raise PackageError(f"the labels step asks for the top {step.top} of {len(labels)} labels")
    return Labels(step, labels)
