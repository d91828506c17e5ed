"""The contract between a loaded model and whoever runs it."""

from typing import Protocol

from foretell.core.tensor import Signature, Tensors


class Predictor(Protocol):
    """A batch of rows in, a batch of rows out. Wrappers keep this shape: a transformed predictor is one too.

    Not thread-safe: one caller at a time. `predict` gets inputs that agree with `signature` and returns every
    output of it with the same number of rows; whatever it raises is the model's failure.
    """

    @property
    def signature(self) -> Signature: ...

    def predict(self, inputs: Tensors) -> Tensors: ...

    def close(self) -> None: ...
