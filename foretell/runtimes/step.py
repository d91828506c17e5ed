"""What a transform step is, and what it may look at when it is made. Knows no step of its own."""

from typing import Protocol

import msgspec

from foretell.core.tensor import Signature, Tensors
from foretell.store.package import Package

MASK = "attention_mask"
"""The model input that tells tokens (1) from padding (0)."""


class Step(Protocol):
    """One step over a whole batch. `reads` names the tensors it needs, `makes` those it adds (None: unknown)."""

    @property
    def reads(self) -> tuple[str, ...]: ...

    @property
    def makes(self) -> tuple[str, ...] | None: ...

    def __call__(self, tensors: Tensors, given: Tensors) -> Tensors:
        """The tensors it makes, rows along the first axis.

        `tensors` are those of its side: what was sent and made before the model, or what the model and the steps
        behind it made. `given` is always the side before the model.
        """
        ...


class Context(msgspec.Struct, frozen=True):
    """What a step may look at when it is made.

    `model` is the artifact's own signature, `after` tells whether the step runs behind the model, `threads` is the
    replica's share of the cores.
    """

    package: Package
    model: Signature
    after: bool
    threads: int
    trust_code: bool
