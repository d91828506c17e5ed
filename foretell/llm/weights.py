"""What a source of weights gives: arrays by their names in Hugging Face's checkpoints. Knows no file format."""

from collections.abc import Collection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Weights(Protocol):
    """Weights by canonical name ("model.layers.0.self_attn.q_proj.weight", shaped [out, in])."""

    def names(self) -> Collection[str]: ...

    def get(self, name: str) -> NDArray[np.float32]:
        """The weight as float32. Raises `PackageError` when it is missing or of a kind that cannot be read."""
