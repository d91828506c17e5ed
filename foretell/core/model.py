"""The contract between a loaded model and whoever runs it."""

from typing import Protocol

from foretell.core.errors import ForetellError
from foretell.core.generation import Event, GenerateRequest, Load
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


class Generator(Protocol):
    """A prompt in, token events out, many requests at a time.

    Not thread-safe, and it never waits: the caller's loop takes in requests and calls `step` while there is work.
    `number` is the caller's name for a request. Every submitted request ends once: with a `Finished` for each of its
    choices, with one error, or by `cancel`, after which nothing more is said of it.
    """

    def submit(self, number: int, request: GenerateRequest) -> None:
        """Take in a request. Raises `InvalidInput` or `Overloaded`; then nothing of it is kept."""

    def cancel(self, number: int) -> None:
        """Drop a request wherever it is; unknown numbers are ignored."""

    def step(self) -> list[tuple[int, Event | ForetellError]]:
        """Run one step of the model and say what came of it; [] when there is nothing to do."""

    def load(self) -> Load:
        """What it holds now. Idle exactly when `running` and `waiting` are 0."""

    def close(self) -> None: ...
